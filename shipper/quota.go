package shipper

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// minPrefixBlocks is the smallest prefix that is worth an epoch: 1 MiB.
const minPrefixBlocks = 256

// freeQuota is what spool and saved blocks may still take, in bytes.
func (v *VM) freeQuota() int64 { return max(0, v.opts.Quota()-v.deps.Spool.Bytes()) }

// savedLimit is the saved blocks' share of the quota; a capture that is a prefix
// of half the free quota leaves room for it.
func (v *VM) savedLimit() int64 { return v.freeQuota() / 4 }

// pausedByQuota decides whether sealing rests: the current epoch grows instead,
// which costs memory bits and no disk. It rests below a quarter of the quota and
// goes on when half of it is free again, so that an outage does not end in ever
// smaller epochs.
func (v *VM) pausedByQuota() bool {
	free, quota := v.freeQuota(), v.opts.Quota()
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case free == 0 || free < quota/4:
		if !v.mu.overQuota {
			v.mu.restsSince = v.opts.Now()
		}
		v.mu.overQuota = true
		if v.mu.catchUp == "" {
			v.mu.catchUp = "the spool reached its quota"
		}
	case free >= quota/2:
		v.mu.overQuota, v.mu.restsSince = false, time.Time{}
	}
	return v.mu.overQuota
}

// resumeSealing ends a rest as soon as there is room again.
func (v *VM) resumeSealing() {
	v.mu.Lock()
	resting := v.mu.overQuota
	v.mu.Unlock()
	if resting && v.freeQuota() >= v.opts.Quota()/2 {
		v.capture.wake()
	}
}

// markOverflow marks the VM when the unshipped changes of a disk reach their
// threshold. No knowledge is lost: the ordinary captures are the comparison, and
// the next closed epoch ends the mark.
func (v *VM) markOverflow(disks []*disk) {
	threshold := v.live().Threshold
	for _, d := range disks {
		info, _ := d.info()
		unshipped := d.src.PendingBlocks()*extent.BlockSize + v.unshippedOf(d.src.ID())
		if info.VirtualSize > 0 && float64(unshipped) >= threshold*float64(info.VirtualSize) {
			v.setCatchUp(fmt.Sprintf("%d MiB of disk %s changed and not shipped, the mark is at %.0f %%", unshipped>>20, d.src.Name(), 100*threshold))
			return
		}
	}
}

// unshippedOf are the changed bytes of a disk in epochs that the target does not hold.
func (v *VM) unshippedOf(id string) int64 {
	st := v.state.get()
	var n int64
	for _, m := range v.deps.Spool.Manifests() {
		if md := m.Disk(id); md != nil && md.Segment != nil && m.Epoch > max(st.Recorded.Epoch, st.UnrecordedThrough) {
			n += md.Segment.ChangedBytes
		}
	}
	return n
}

// heldForWindow tells whether a VM that changed too much waits for the window to
// catch up (resync.overflow). An operator who asks does not wait.
func (v *VM) heldForWindow() bool {
	v.mu.Lock()
	marked := v.mu.catchUp != ""
	v.mu.Unlock()
	return marked && v.live().HoldCatchUp && !v.forced()
}

func (v *VM) setCatchUp(why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.catchUp = why
}

// enforceQuota gives up spooled epochs when resting is not enough: the quota
// shrank under what is there, or a segment cannot be shipped.
func (v *VM) enforceQuota() error {
	if v.deps.Spool.Bytes() > v.opts.Quota()/2 && v.spoolGate.TryLock() {
		err := v.releaseShipped()
		v.spoolGate.Unlock()
		if err != nil {
			return err
		}
	}
	v.mu.Lock()
	from := v.mu.giveUpFrom
	v.mu.Unlock()
	if from == 0 {
		from = v.overflowFrom()
	}
	if from == 0 {
		return nil
	}
	if err := v.giveUp(from); err != nil {
		return fmt.Errorf("give up the spool from epoch %d: %w", from, err)
	}
	v.mu.Lock()
	v.mu.giveUpFrom = 0
	v.mu.Unlock()
	return nil
}

// overflowFrom is the oldest epoch of the suffix to give up so that the rest fits
// the quota, 0 if there is nothing to give up.
func (v *VM) overflowFrom() uint64 {
	quota := v.opts.Quota()
	if v.deps.Spool.Bytes() <= quota {
		return 0
	}
	var kept int64
	for _, m := range v.deps.Spool.Manifests() {
		kept += m.SegmentBytes()
		if kept > quota && m.Epoch >= v.giveable(m.Epoch) {
			return m.Epoch
		}
	}
	return 0
}

// giveable is the oldest epoch from which the spool may be given up, at or after
// from. What the target holds stays. So does an epoch whose record was attempted:
// it may be a point already, or become one by a late request, and its segments are
// at the target. It is one epoch at most, for records are made in order.
func (v *VM) giveable(from uint64) uint64 {
	from = max(from, v.shippedThrough()+1)
	for _, m := range v.deps.Spool.Manifests() {
		if m.RecordAttempted && m.Epoch >= from {
			from = m.Epoch + 1
		}
	}
	return from
}

// shippedThrough is the newest epoch whose segments the target holds for sure.
func (v *VM) shippedThrough() uint64 {
	st := v.state.get()
	return max(st.Recorded.Epoch, st.UnrecordedThrough)
}

// requestGiveUp asks the capture stage, which owns change sets and tables, to
// give up everything from an epoch on.
func (v *VM) requestGiveUp(from uint64) {
	v.mu.Lock()
	if v.mu.giveUpFrom == 0 || from < v.mu.giveUpFrom {
		v.mu.giveUpFrom = from
	}
	v.mu.Unlock()
	v.capture.wake()
}

// giveUp drops the suffix of the spool from an epoch on, without losing what it
// carried: the intent is durable first, then all its entries are durably
// unknown, so that the next captures carry them, only then files go (I4). The
// caller is the capture stage, so no epoch is in capture.
func (v *VM) giveUp(from uint64) error {
	v.stopForGiveUp()
	v.sealing.pause() // whoever has the gate may hang with the target, on NFS for hours
	v.spoolGate.Lock()
	defer v.spoolGate.Unlock()
	v.sealing.beat(time.Now())
	v.mu.Lock()
	v.mu.givingUp = false
	v.mu.Unlock()
	from = v.giveable(from)
	if ms := v.deps.Spool.Manifests(); len(ms) == 0 || ms[len(ms)-1].Epoch < from {
		return nil // the target has got it meanwhile
	}
	if err := v.deps.Spool.IntendGiveUp(from); err != nil {
		return err
	}
	v.opts.Hook(PointAfterIntent)
	return v.redoGiveUp(from)
}

// stopForGiveUp ends the upload that a give-up would wait for: a hanging target
// could hold it up for long.
func (v *VM) stopForGiveUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.givingUp = true
	if v.mu.stopShipping != nil {
		v.mu.stopShipping(errGiveUp)
	}
}

// redoGiveUp is the part of a give-up that is done again after a crash.
func (v *VM) redoGiveUp(from uint64) error {
	if err := v.forgetFrom(from); err != nil {
		return err
	}
	v.opts.Hook(PointAfterForget)
	if err := v.deps.Spool.FinishGiveUp(); err != nil {
		return err
	}
	v.mu.Lock()
	v.mu.newestEpoch = v.newestSpooled()
	if v.mu.catchUp == "" {
		v.mu.catchUp = "spooled epochs were given up"
	}
	v.mu.Unlock()
	v.ship.wake()
	v.opts.Log.Warn("spooled epochs given up; their blocks are captured again", "from_epoch", from)
	return nil
}

// forgetFrom makes everything unknown that epochs from one on carry.
func (v *VM) forgetFrom(from uint64) error {
	for _, damage := range v.deps.Spool.Damaged() {
		if damage.Epoch >= from {
			// Its manifest may be unreadable, so nobody knows whom it carries.
			return v.forgetAll(fmt.Sprintf("epoch %d in the spool is damaged", damage.Epoch))
		}
	}
	for _, m := range v.deps.Spool.Manifests() {
		if m.Epoch < from {
			continue
		}
		for _, md := range m.Disks {
			if md.State != spool.Complete {
				continue
			}
			if err := v.forgetSegment(m, md); err != nil {
				return fmt.Errorf("disk %s, epoch %d: %w", md.Name, m.Epoch, err)
			}
		}
	}
	return nil
}

// forgetAll makes every entry of every complete disk unknown.
func (v *VM) forgetAll(why string) error {
	for _, d := range v.disksIn(StageComplete) {
		if d.table() == nil {
			continue
		}
		v.opts.Log.Warn("the whole disk is captured anew", "disk", d.src.Name(), "cause", why)
		if err := v.forgetDisk(d, DiskRange{End: d.table().Blocks()}); err != nil {
			return fmt.Errorf("disk %s: %w", d.src.Name(), err)
		}
	}
	return nil
}

// forgetSegment makes the entries of everything a segment carries unknown; of a
// segment that cannot be read, of the whole disk.
func (v *VM) forgetSegment(m *spool.Manifest, md spool.ManifestDisk) error {
	d := v.diskByID(md.ID)
	if d == nil {
		return v.markGone(md.ID)
	}
	if d.table() == nil || m.Epoch <= d.state.get().Base {
		return nil
	}
	if md.Segment == nil {
		return v.forgetDisk(d)
	}
	ranges, err := v.segmentRanges(m, md)
	if err != nil {
		v.opts.Log.Warn("segment cannot be read; the whole disk is captured anew", "disk", md.Name, "epoch", m.Epoch, "cause", err)
		ranges = []DiskRange{{End: d.table().Blocks()}}
	}
	return v.forgetDisk(d, ranges...)
}

// forgetDisk makes entries unknown, and with them those of every block that the
// disk ever had: the target has not seen it shrink. Its next epoch tells the size.
func (v *VM) forgetDisk(d *disk, ranges ...DiskRange) error {
	if err := d.state.update(func(s *diskRecord) { s.Resized = true }); err != nil {
		return err
	}
	t, st := d.table(), d.state.get()
	if had, most := t.Blocks(), diskBlocks(st.MostBytes); had < most {
		// Only a commit grows a table, and only an epoch that no manifest has may do it.
		epoch := max(v.deps.Volume.LastEpoch(), t.Position()) + 1
		if err := v.deps.Volume.RaiseEpoch(epoch); err != nil {
			return err
		}
		if err := t.Commit(epoch, most, func(func(checksum.Change, error) bool) {}); err != nil {
			return err
		}
		ranges = append(ranges, DiskRange{Start: had, End: most})
	}
	return t.Forget(clipped(ranges, t.Blocks())...)
}

func (v *VM) segmentRanges(m *spool.Manifest, md spool.ManifestDisk) ([]DiskRange, error) {
	f, err := v.deps.Spool.OpenSegment(m, md.ID)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := segment.Open(f, md.Segment.Size)
	if err != nil {
		return nil, err
	}
	return rangesOf(r), nil
}

// redo brings local state to where it was going before a crash: tables after
// their manifests, in order, then a give-up that was begun. Epochs that are being
// given up are no part of the first: what they carry is forgotten, and would come
// back.
func (v *VM) redo() error {
	for _, m := range v.deps.Spool.Manifests() {
		if from, pending := v.deps.Spool.GiveUpFrom(); pending && m.Epoch >= from {
			break
		}
		if err := v.redoEpoch(m); err != nil {
			return fmt.Errorf("vm %s: redo of epoch %d: %w", v.opts.Name, m.Epoch, err)
		}
	}
	if err := v.redoDamaged(); err != nil {
		return fmt.Errorf("vm %s: damaged spool: %w", v.opts.Name, err)
	}
	if from, pending := v.deps.Spool.GiveUpFrom(); pending {
		return v.redoGiveUp(from)
	}
	return nil
}

func (v *VM) redoEpoch(m *spool.Manifest) error {
	err := v.commitTables(m)
	switch {
	case err == nil:
		return v.keepFacts(m)
	case !isSegmentFault(err):
		return err
	case m.Epoch >= v.giveable(m.Epoch):
		return v.deps.Spool.IntendGiveUp(m.Epoch)
	}
	return v.forgetAll(err.Error()) // the target holds it, and the tables will never learn what
}

// redoDamaged takes epochs out of the spool that cannot be used, for nothing can
// be captured beside them: those that the target holds are released, the others
// given up. One without a readable manifest may have its record at the target: then
// only a new generation is safe.
func (v *VM) redoDamaged() error {
	for _, damage := range v.deps.Spool.Damaged() {
		if damage.Epoch <= v.shippedThrough() {
			if err := v.releaseThrough(damage.Epoch); err != nil {
				return err
			}
			continue
		}
		if !v.readable(damage.Epoch) {
			why := fmt.Sprintf("the manifest of epoch %d could not be read", damage.Epoch)
			if err := v.state.update(func(s *vmRecord) { s.Distrust = why }); err != nil {
				return err
			}
		}
		if damage.Epoch >= v.giveable(damage.Epoch) {
			if err := v.deps.Spool.IntendGiveUp(damage.Epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

func (v *VM) readable(epoch uint64) bool {
	return slices.ContainsFunc(v.deps.Spool.Manifests(), func(m *spool.Manifest) bool { return m.Epoch == epoch })
}

// isSegmentFault tells a missing or damaged segment from a table that cannot be
// written.
func isSegmentFault(err error) bool {
	var e *segment.Error
	return errors.Is(err, spool.ErrMissing) || errors.Is(err, spool.ErrSegment) || errors.As(err, &e)
}
