package shipper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// captureRun is what a capture reads at once, in blocks: one chunk.
const captureRun = extent.BlocksPerChunk

// errVoid ends a capture whose sealed view is lost; its changes are merged back.
var errVoid = errors.New("sealed view is lost")

// captureStep seals the VM and brings the epoch into the spool, unless nothing
// changed or there is no room.
func (v *VM) captureStep(ctx context.Context) error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	defer v.sealing.begin(time.Now())()
	v.closeRemoved()
	if st := v.state.get(); st.Generation == 0 || st.TakingOver != 0 {
		return v.lost() // no generation to name an epoch with
	}
	if err := errors.Join(v.lost(), v.settle(), v.mendTables()); err != nil {
		return err
	}
	if err := v.finish(ctx); err != nil {
		return err
	}
	if err := v.enforceQuota(); err != nil {
		return err
	}
	if err := v.place(); err != nil {
		return err
	}
	disks := v.disksIn(StageComplete)
	for _, d := range disks {
		d.owe(extent.Set[extent.FileBlock]{}) // no epoch is under way
	}
	if len(disks) == 0 || v.matching() {
		return nil
	}
	for _, d := range disks {
		if err := v.writtenOver(d); err != nil {
			return err
		}
	}
	v.markOverflow(disks)
	if v.pausedByQuota() || v.heldForWindow() {
		return nil
	}
	now := v.opts.Now()
	if v.idleVM(disks) && !v.forced() {
		// What came to rest leaves the activity log, so that a crash compares nothing.
		v.noteUnchanged(now)
		return v.deps.Volume.Deactivate(ctx)
	}
	return v.captureEpoch(ctx, disks)
}

// captureEpoch is one epoch from its seal to its manifest and table.
func (v *VM) captureEpoch(ctx context.Context, disks []*disk) error {
	epoch, err := v.deps.Volume.Seal(v.sealRequest(disks))
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	v.noteSeal(epoch.Number(), epoch.Time())
	v.opts.Hook(PointAfterSeal)
	c := &capture{vm: v, epoch: epoch, files: map[*disk]string{}, plain: map[string]bool{}, unknown: map[string]int64{}}
	if v.unclear != "" {
		c.leaveOpen(v.unclear)
	}
	for _, d := range disks {
		c.files[d] = d.src.file()
		c.plain[d.src.file()] = !d.translated()
	}
	switch err := c.spool(ctx, disks); {
	case errors.Is(err, spool.ErrUnsettled):
		v.setUnsettled(epoch) // its manifest may come back: merged back it would be in two epochs
		return err
	case err != nil:
		v.dropSeal(epoch.Number())
		return errors.Join(err, epoch.MergeBack())
	}
	v.opts.Hook(PointAfterManifest)
	v.setUnfinished(&unfinished{epoch: epoch, manifest: c.manifest})
	if err := v.finish(ctx); err != nil {
		return err
	}
	if c.prefix && !c.unread && v.deps.Spool.Bytes() <= v.opts.Quota() {
		v.capture.wake() // the catch-up runs at once: as fast as the spool takes it, not one an interval
	}
	return nil
}

// unfinished is an epoch that is in the spool and whose tables may not be
// written yet. Nothing is captured before they are.
type unfinished struct {
	epoch    Epoch
	manifest *spool.Manifest
}

func (v *VM) setUnfinished(u *unfinished) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.unfinished = u
}

// unfinishedEpoch is the epoch that no later one may pass, 0 for none: its tables
// need its segments.
func (v *VM) unfinishedEpoch() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.unfinished == nil {
		return 0
	}
	return v.mu.unfinished.manifest.Epoch
}

// finish brings an epoch with a manifest to its end; it may be repeated.
func (v *VM) finish(ctx context.Context) error {
	v.mu.Lock()
	u := v.mu.unfinished
	v.mu.Unlock()
	if u == nil {
		return nil
	}
	err := v.commitTables(u.manifest)
	if isSegmentFault(err) {
		return v.abandon(u)
	}
	if err != nil {
		return err
	}
	if err := v.keepFacts(u.manifest); err != nil {
		return err
	}
	v.opts.Hook(PointAfterTable)
	if err := u.end(); err != nil {
		return fmt.Errorf("end of epoch %d: %w", u.manifest.Epoch, err)
	}
	v.noteSpooled(u.manifest)
	v.setUnfinished(nil)
	v.ship.wake()
	return v.deps.Volume.Deactivate(ctx)
}

// end ends the epoch in the change log. One that was voided after its manifest
// was read whole before; the log takes its blocks back nevertheless.
func (u *unfinished) end() error {
	if u.epoch.Voided() {
		return u.epoch.MergeBack()
	}
	return u.epoch.Spooled()
}

// abandon gives up an epoch whose segment cannot be read back into its table.
func (v *VM) abandon(u *unfinished) error {
	if err := v.giveUp(u.manifest.Epoch); err != nil {
		return fmt.Errorf("give up epoch %d: %w", u.manifest.Epoch, err)
	}
	if err := u.epoch.MergeBack(); err != nil {
		return err
	}
	v.setUnfinished(nil)
	return nil
}

func (v *VM) setUnsettled(e Epoch) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.unsettled = e
}

// settle merges an epoch back whose manifest was neither committed nor unlinked,
// as soon as it is unlinked for sure. Until then the VM does not capture.
func (v *VM) settle() error {
	v.mu.Lock()
	e := v.mu.unsettled
	v.mu.Unlock()
	if e == nil {
		return nil
	}
	if err := v.deps.Spool.Settle(); err != nil {
		return err
	}
	if err := e.MergeBack(); err != nil {
		return err
	}
	v.setUnsettled(nil)
	return nil
}

// sealRequest lists what the capture reads besides the changed blocks.
func (v *VM) sealRequest(disks []*disk) SealRequest {
	req := SealRequest{Extra: map[string][]FileRange{}, Whole: map[string]bool{}, SavedLimit: v.savedLimit()}
	for _, d := range disks {
		if d.translated() {
			for _, id := range d.below() {
				req.Whole[id] = true
			}
			req.Whole[d.src.file()] = true
			continue
		}
		info, _ := d.info()
		layout := info.Layout()
		extra := append([]FileRange(nil), layout.Metadata()...)
		if t := d.table(); t.UnknownCount() > 0 {
			for r := range t.Unknown().Ranges(DiskRange{End: t.Blocks()}, 0) {
				extra = append(extra, layout.FileBlocks(r).Ranges()...)
			}
		}
		req.Extra[d.src.file()] = extra
	}
	return req
}

// noteSpooled keeps what the newest epoch was.
func (v *VM) noteSpooled(m *spool.Manifest) {
	v.mu.Lock()
	v.mu.newestEpoch = m.Epoch
	v.mu.openReason = m.OpenReason
	v.mu.spooledBytes += m.SegmentBytes()
	if !m.Closed {
		v.noteOpenLocked(m.Epoch)
	}
	v.mu.Unlock()
	v.notify()
}

func (v *VM) newestManifest() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.newestEpoch
}
