package shipper

import (
	"context"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// unchangedEvery is how often an idle VM says that its newest point still holds.
const unchangedEvery = 5 * time.Minute

// idleVM tells whether a seal would only repeat the newest point: nothing
// changed, nothing unknown or suspect, and the newest epoch recorded.
func (v *VM) idleVM(disks []*disk) bool {
	for _, d := range disks {
		info, err := d.info()
		size, sizeErr := d.src.Size()
		if d.state.get().Resized || d.src.PendingBlocks() > 0 || d.src.Suspect() || d.table().UnknownCount() > 0 || !d.restsBelow() || err != nil || sizeErr != nil || size != info.FileSize {
			return false
		}
	}
	recorded := v.state.get().Recorded
	return !recorded.IsZero() && recorded.Epoch == v.newestManifest() && v.listsAll(disks)
}

// restsBelow tells whether nothing of what the disk lies over changed.
func (d *disk) restsBelow() bool {
	if !d.translated() {
		return true
	}
	for _, id := range d.below() {
		if a, ok := d.files.get(id); ok && (a.src.PendingBlocks() > 0 || a.src.Suspect()) {
			return false
		}
	}
	p := d.previous()
	if p == nil || len(p.marks) == 0 {
		return false
	}
	for i, m := range p.marks[1:] {
		if p.files[i+1] != "" {
			continue
		}
		f, err := d.files.parents().Open(m.Name)
		if err != nil {
			return false
		}
		st, err := f.Stat()
		f.Close() // it was only looked at
		if err != nil || !st.Unwritten(m.Stat, p.at) {
			return false
		}
	}
	return true
}

// listsAll tells whether the newest point is complete for every complete disk, under
// the name it has.
func (v *VM) listsAll(disks []*disk) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.mu.records) == 0 {
		return false
	}
	newest := v.mu.records[len(v.mu.records)-1]
	for _, d := range disks {
		if rd, ok := newest.Disk(d.state.get().Key); !ok || rd.State != catalog.StateComplete || rd.Name != d.src.Name() {
			return false
		}
	}
	return true
}

// forced tells whether somebody asked for an epoch that has not been made.
func (v *VM) forced() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.newestEpoch < v.mu.wanted
}

// noteUnchanged remembers that the newest point was still the truth at a time that
// was taken before the test that found the VM idle, so it can only be too early.
func (v *VM) noteUnchanged(at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.idleAt = at
}

// refreshUnchanged notes that time in vm.json. It is the ship stage's: capture never
// waits for the target. An error is nobody's trouble, the next turn tries again.
func (v *VM) refreshUnchanged(ctx context.Context) {
	v.mu.Lock()
	at, due := v.mu.idleAt, v.mu.idleAt.Sub(v.mu.unchanged) >= unchangedEvery
	v.mu.Unlock()
	if !due {
		return
	}
	err := v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		doc.UnchangedUntil = at.UTC().Truncate(time.Second)
		return nil
	})
	if err != nil {
		v.opts.Log.Debug("vm.json not refreshed", "cause", err)
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.unchanged = at
}
