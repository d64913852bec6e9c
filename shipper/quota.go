package shipper

import (
	"context"
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/extent"
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
	case free < quota/4:
		v.mu.overQuota = true
		if v.mu.catchUp == "" {
			v.mu.catchUp = "the spool reached its quota"
		}
	case free >= quota/2:
		v.mu.overQuota = false
	}
	return v.mu.overQuota
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

func (v *VM) setCatchUp(why string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.catchUp = why
}

// enforceQuota gives up spooled epochs when resting is not enough: the quota
// shrank under what is there, or a segment cannot be shipped.
func (v *VM) enforceQuota(ctx context.Context) error {
	v.mu.Lock()
	from := v.mu.giveUpFrom
	v.mu.Unlock()
	if from == 0 {
		from = v.overflowFrom()
	}
	if from == 0 {
		return nil
	}
	if err := v.giveUp(ctx, from); err != nil {
		return fmt.Errorf("give up the spool from epoch %d: %w", from, err)
	}
	v.mu.Lock()
	v.mu.giveUpFrom = 0
	v.mu.Unlock()
	return nil
}

// overflowFrom is the oldest epoch of the suffix to give up so that the rest fits
// the quota, 0 if everything fits. An epoch whose record was attempted stays: it
// may be a point already. It is one epoch at most, for records are made in order.
func (v *VM) overflowFrom() uint64 {
	quota := v.opts.Quota()
	if v.deps.Spool.Bytes() <= quota {
		return 0
	}
	var kept int64
	for _, m := range v.deps.Spool.Manifests() {
		for _, md := range m.Disks {
			if md.Segment != nil {
				kept += md.Segment.Size
			}
		}
		if kept > quota && !m.RecordAttempted {
			return m.Epoch
		}
	}
	return 0
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
func (v *VM) giveUp(ctx context.Context, from uint64) error {
	v.mu.Lock()
	if v.mu.stopShipping != nil {
		v.mu.stopShipping(errGiveUp)
	}
	v.mu.Unlock()
	v.spoolGate.Lock()
	defer v.spoolGate.Unlock()
	st := v.state.get()
	from = max(from, st.Recorded.Epoch+1, st.UnrecordedThrough+1)
	if err := v.deps.Spool.IntendGiveUp(from); err != nil {
		return err
	}
	v.opts.Hook(PointAfterIntent)
	return v.redoGiveUp(from)
}

// redoGiveUp is the part of a give-up that is done again after a crash.
func (v *VM) redoGiveUp(from uint64) error {
	for _, m := range v.deps.Spool.Manifests() {
		if m.Epoch < from {
			continue
		}
		for _, md := range m.Disks {
			if err := v.forgetSegment(m, md); err != nil {
				return fmt.Errorf("disk %s, epoch %d: %w", md.Name, m.Epoch, err)
			}
		}
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
	v.opts.Log.Warn("spooled epochs given up; their blocks are captured again", "from_epoch", from)
	return nil
}

// forgetSegment makes the entries of everything a segment carries unknown; of a
// segment that cannot be read, of the whole disk.
func (v *VM) forgetSegment(m *spool.Manifest, md spool.ManifestDisk) error {
	d := v.diskByID(md.ID)
	if md.Segment == nil || d == nil || d.table() == nil {
		return nil
	}
	ranges, err := v.segmentRanges(m, md)
	if err != nil {
		v.opts.Log.Warn("segment cannot be read; the whole disk is compared", "disk", md.Name, "epoch", m.Epoch, "cause", err)
		ranges = []DiskRange{{End: d.table().Blocks()}}
	}
	return d.table().Forget(ranges...)
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
	var all extent.Set[extent.DiskBlock]
	for e := range r.All() {
		all.Add(e.Range)
	}
	return all.Ranges(), nil
}

// redo brings local state to where it was going before a crash: tables after
// their manifests, in order, then a give-up that was begun.
func (v *VM) redo() error {
	for _, m := range v.deps.Spool.Manifests() {
		err := v.commitTables(m)
		if err == nil {
			continue
		}
		if !errors.Is(err, spool.ErrMissing) && !isSegmentFault(err) {
			return fmt.Errorf("vm %s: redo of epoch %d: %w", v.opts.Name, m.Epoch, err)
		}
		if err := v.deps.Spool.IntendGiveUp(m.Epoch); err != nil {
			return err
		}
		break
	}
	if from, pending := v.deps.Spool.GiveUpFrom(); pending {
		return v.redoGiveUp(from)
	}
	return nil
}

// isSegmentFault tells a damaged segment from a table that cannot be written.
func isSegmentFault(err error) bool {
	var e *segment.Error
	return errors.As(err, &e)
}
