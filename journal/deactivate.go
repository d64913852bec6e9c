package journal

import (
	"context"
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Deactivate takes the records of regions away that can no longer differ from
// the checksum table (design §3): active, nobody in them, not suspect, (a) no
// block in a change set, (b) no epoch sealed, (c) a Datasync that began after
// all that held has succeeded; and nobody was in them since the call before: a
// region in use stays. It returns how many went. ErrSealed while an
// epoch is outstanding, ErrFailing while the journal is. A failed Datasync
// makes the disk's active regions suspect and is returned; other disks go on.
func (vm *VM) Deactivate(ctx context.Context) (int, error) {
	vm.house.Lock()
	defer vm.house.Unlock()
	if err := vm.j.Failing(); err != nil {
		return 0, err
	}
	if vm.sealed.Load() != nil {
		return 0, ErrSealed
	}
	var n int
	var errs error
	for _, d := range vm.Disks() {
		if err := ctx.Err(); err != nil {
			return n, errors.Join(errs, err)
		}
		gone, err := d.deactivate()
		n += gone
		errs = errors.Join(errs, err)
	}
	return n, errs
}

// deactivate does one disk.
func (d *Disk) deactivate() (int, error) {
	candidates := d.candidates()
	if len(candidates) == 0 {
		return 0, nil
	}
	// Candidates come before the sync: the reference bit of each is clear now, and
	// only those that are still unused afterwards may go.
	if err := d.syncImage(); err != nil {
		if d.gone.Load() {
			return 0, nil // withdrawn meanwhile, its file may be closed
		}
		return 0, err
	}
	var n int
	for len(candidates) > 0 {
		some := candidates[:min(len(candidates), kv.MaxOps)]
		candidates = candidates[len(some):]
		gone, err := d.release(some)
		n += gone
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (d *Disk) candidates() []region {
	var out []region
	for _, r := range d.regions.list() {
		// Every region is asked, so that its turn counts from here.
		if rested := d.regions.rested(r); rested && d.settledIn(r) {
			out = append(out, r)
		}
	}
	return out
}

// settledIn says whether nothing in memory needs the record of r.
func (d *Disk) settledIn(r region) bool {
	return !d.inSets(r) && !d.suspects(r)
}

// inSets says whether the current or the sealed change set has a block of r.
func (d *Disk) inSets(r region) bool {
	return d.inSealed(r) || d.vm.phase.Load().set(d.index).Any(r.blocks())
}

// syncImage is Datasync with its consequence: a failed one was the only notice
// of what did not reach the disk, so everything active is suspect at once.
func (d *Disk) syncImage() error {
	d.vm.j.hook(BeforeDeactivationSync)
	err := d.datasync()
	d.vm.j.hook(AfterDeactivationSync)
	if err == nil {
		return nil
	}
	for _, r := range d.regions.list() {
		d.sus.bits.Set(oneRegion(r))
	}
	d.sus.distrust("writing the image back failed", d.sus.bits.Count()*extent.RegionSize)
	return fmt.Errorf("sync image %s, its active regions are suspect now: %w", d.Name(), err)
}

// datasync is the file's, or nothing in the mutant that the tests must catch.
func (d *Disk) datasync() error {
	if d.vm.j.mutant.skipSync {
		return nil
	}
	return d.file.Datasync()
}

// release deletes the records of candidates that are still idle and settled.
func (d *Disk) release(candidates []region) (int, error) {
	j := d.vm.j
	j.commit.Lock()
	defer j.commit.Unlock()
	defer d.left.wake()
	if j.health.failing() {
		return 0, ErrFailing
	}
	var leaving []region
	for _, r := range candidates {
		if d.suspects(r) || !d.regions.depart(r) {
			continue
		}
		// Nobody writes to r from here on; a merge-back may have put a block back.
		if d.inSets(r) {
			d.regions.stay(r)
			continue
		}
		leaving = append(leaving, r)
	}
	if len(leaving) == 0 {
		return 0, nil
	}
	j.hook(BeforeDeactivationApply)
	err := d.forgetLocked(leaving)
	j.hook(AfterDeactivationApply)
	if err != nil {
		return 0, err
	}
	j.stats.deactivations.Add(int64(len(leaving)))
	return len(leaving), nil
}

// forgetLocked deletes the records of leaving regions. They are inactive
// afterwards, whatever the answer: after an error the records may or may not be
// there, a later write activates again, and the journal is failing. The caller
// holds the commit lock.
func (d *Disk) forgetLocked(leaving []region) error {
	var b kv.Batch
	for _, r := range leaving {
		b.Delete(activeKey(d.id, r))
	}
	err := d.vm.j.store.Apply(&b)
	for _, r := range leaving {
		d.regions.gone(r)
	}
	if err != nil {
		err = fmt.Errorf("delete %d records of %s: %w", len(leaving), d.Name(), err)
		d.vm.j.fail(err)
		return err
	}
	d.vm.j.stats.commits.Add(1)
	return nil
}
