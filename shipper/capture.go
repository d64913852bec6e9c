package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
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
	v.closeRemoved()
	if st := v.state.get(); st.Generation == 0 || st.TakingOver != 0 {
		return v.lost() // no generation to name an epoch with
	}
	if err := errors.Join(v.lost(), v.settle()); err != nil {
		return err
	}
	if err := v.finish(ctx); err != nil {
		return err
	}
	if err := v.enforceQuota(); err != nil {
		return err
	}
	disks := v.disksIn(StageComplete)
	v.markOverflow(disks)
	if len(disks) == 0 || v.pausedByQuota() {
		return nil
	}
	now := v.opts.Now()
	if v.idleVM(disks) && !v.forced() {
		return v.refreshUnchanged(ctx, now)
	}
	return v.captureEpoch(ctx, disks)
}

// captureEpoch is one epoch from its seal to its manifest and table.
func (v *VM) captureEpoch(ctx context.Context, disks []*disk) error {
	epoch, err := v.deps.Volume.Seal(v.sealRequest(disks))
	if err != nil {
		return fmt.Errorf("seal: %w", err)
	}
	v.noteSeal(epoch.Time())
	v.opts.Hook(PointAfterSeal)
	c := &capture{vm: v, epoch: epoch, complete: map[string]bool{}, unknown: map[string]int64{}}
	for _, d := range disks {
		c.complete[d.src.ID()] = true
	}
	switch err := c.spool(ctx, disks); {
	case errors.Is(err, spool.ErrUnsettled):
		v.setUnsettled(epoch) // its manifest may come back: merged back it would be in two epochs
		return err
	case err != nil:
		return errors.Join(err, epoch.MergeBack())
	}
	v.opts.Hook(PointAfterManifest)
	v.setUnfinished(&unfinished{epoch: epoch, manifest: c.manifest})
	if err := v.finish(ctx); err != nil {
		return err
	}
	if c.prefix {
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
	req := SealRequest{Extra: map[string][]FileRange{}, Now: v.opts.Now(), SavedLimit: v.savedLimit()}
	for _, d := range disks {
		info, _ := d.info()
		layout := info.Layout()
		extra := append([]FileRange(nil), layout.Metadata()...)
		if t := d.table(); t.UnknownCount() > 0 {
			for r := range t.Unknown().Ranges(DiskRange{End: t.Blocks()}, 0) {
				extra = append(extra, layout.FileBlocks(r))
			}
		}
		req.Extra[d.src.ID()] = extra
	}
	return req
}

// capture is one epoch on its way into the spool.
type capture struct {
	vm       *VM
	epoch    Epoch
	complete map[string]bool
	manifest *spool.Manifest
	draft    *spool.Draft
	unknown  map[string]int64 // by disk: unknown entries when its checksum was taken
	open     string           // why the epoch is no state of the VM; empty: closed
	room     int64            // blocks that may still be captured
	prefix   bool             // the rest of the change set waits for room
}

// leaveOpen notes the first reason why this epoch is never offered.
func (c *capture) leaveOpen(reason string) {
	if c.open == "" {
		c.open = reason
	}
}

// spool writes the segments and, last, the manifest.
func (c *capture) spool(ctx context.Context, disks []*disk) error {
	if err := c.epoch.Wait(ctx); err != nil {
		return err
	}
	c.returnOthers()
	c.budget(disks)
	st := c.vm.state.get()
	draft, err := c.vm.deps.Spool.Begin(st.Generation, c.epoch.Number())
	if err != nil {
		return err
	}
	c.draft = draft
	c.manifest = c.newManifest(st.Generation)
	err = c.write(ctx)
	if err == nil {
		err = draft.Commit(c.manifest)
	}
	if err != nil {
		return errors.Join(err, draft.Abort())
	}
	return nil
}

// write fills the draft and its manifest.
func (c *capture) write(ctx context.Context) error {
	for _, d := range c.vm.disks() {
		if d.state.get().Key == "" {
			continue // not known to the target yet
		}
		if err := c.disk(ctx, d); err != nil {
			return err
		}
	}
	c.judge()
	c.vm.opts.Hook(PointBeforeManifest)
	if c.epoch.Voided() {
		return errVoid
	}
	return nil
}

func (c *capture) newManifest(generation uint64) *spool.Manifest {
	return &spool.Manifest{
		VM: c.vm.opts.Name, VMID: c.vm.opts.ID, Generation: generation, Epoch: c.epoch.Number(),
		Previous: c.vm.newestManifest(), EpochUUID: uuid.UUID(c.epoch.UUID()).String(), SealedAt: c.epoch.Time().UTC(),
	}
}

// returnOthers gives back what the seal took of disks this epoch does not carry:
// disks in initial replication, and disks that came or completed after the request.
func (c *capture) returnOthers() {
	for _, id := range c.epoch.Disks() {
		if !c.complete[id] {
			c.epoch.ReturnDisk(id)
		}
	}
}

func (c *capture) giveBack(id string, ed EpochDisk) {
	var all []FileRange
	for r := range ed.List(0) {
		all = append(all, r)
	}
	c.epoch.Return(id, all...)
}

// budget cuts a capture that does not fit to a prefix: the rest is merged back
// before anything is read, and the epoch stays open.
func (c *capture) budget(disks []*disk) {
	var listed int64
	for _, d := range disks {
		if ed, ok := c.epoch.Disk(d.src.ID()); ok {
			listed += ed.ListBlocks()
		}
	}
	c.room = max(c.vm.freeQuota()/2/extent.BlockSize, minPrefixBlocks)
	if listed <= c.room {
		return
	}
	c.prefix = true
	c.leaveOpen(fmt.Sprintf("%d of %d changed blocks fit into the spool's quota", c.room, listed))
	for _, d := range disks {
		if ed, ok := c.epoch.Disk(d.src.ID()); ok {
			c.cut(d, ed)
		}
	}
}

// cut keeps the first c.room blocks of a disk's list, and its metadata, without
// which the rest cannot be read, and returns the others.
func (c *capture) cut(d *disk, ed EpochDisk) {
	var rest extent.Set[extent.FileBlock]
	for r := range ed.List(0) {
		keep := min(r.Len(), c.room)
		c.room -= keep
		if keep < r.Len() {
			rest.Add(FileRange{Start: r.Start + extent.FileBlock(keep), End: r.End})
		}
	}
	info, _ := d.info()
	for _, meta := range info.Layout().Metadata() {
		rest.Remove(meta)
	}
	c.epoch.Return(d.src.ID(), rest.Ranges()...)
}

// disk writes the segment of one disk and its line in the manifest.
func (c *capture) disk(ctx context.Context, d *disk) error {
	info, _ := d.info()
	md := spool.ManifestDisk{ID: d.src.ID(), Name: d.src.Name(), Format: info.Format, State: spool.Initial, VirtualSize: info.VirtualSize}
	ed, known := c.epoch.Disk(d.src.ID())
	if c.complete[d.src.ID()] && known {
		md.State, md.FileSize = spool.Complete, ed.FileSize()
		if ed.SuspectAtSeal() {
			c.leaveOpen(fmt.Sprintf("disk %s: regions wait for their comparison", d.src.Name()))
		}
		if err := c.segment(ctx, d, ed, &md); err != nil {
			return fmt.Errorf("disk %s: capture of epoch %d: %w", d.src.Name(), c.epoch.Number(), err)
		}
	}
	c.manifest.Disks = append(c.manifest.Disks, md)
	return nil
}

// judge decides whether the epoch is a state of the VM (DESIGN §4, closed or open).
func (c *capture) judge() {
	if c.epoch.Torn() {
		c.leaveOpen("a block could not be saved before the guest overwrote it")
	}
	for _, md := range c.manifest.Disks {
		d := c.vm.diskByID(md.ID)
		doubted := d != nil && d.table() != nil && d.table().UnknownCount() > c.unknown[md.ID]
		if md.State == spool.Complete && (!md.SumKnown || doubted) {
			c.leaveOpen(fmt.Sprintf("disk %s: blocks of unknown content at the target", md.Name))
		}
	}
	c.manifest.Closed, c.manifest.OpenReason = c.open == "", c.open
}

// segment captures one complete disk.
func (c *capture) segment(ctx context.Context, d *disk, ed EpochDisk, md *spool.ManifestDisk) error {
	info, err := sealedInfo(d, ed)
	if err != nil {
		// Without its footer the disk has no size: all of it goes back, and the next epoch looks again.
		c.leaveOpen(fmt.Sprintf("disk %s: %v", d.src.Name(), err))
		d.setInfo(image.Info{}, err)
		c.giveBack(d.src.ID(), ed)
		info, _ = d.info()
	} else {
		d.setInfo(info, nil)
	}
	st := d.state.get()
	resized := st.Resized || st.VirtualSize != info.VirtualSize
	md.Format, md.VirtualSize = info.Format, info.VirtualSize
	dc := &diskCapture{capture: c, disk: d, table: d.table(), info: info, view: ed, page: make([]byte, captureRun*extent.BlockSize)}
	if resized { // the fold must see the new size, changed blocks or not
		if err := dc.begin(); err != nil {
			return err
		}
	}
	if err := dc.run(ctx); err != nil {
		return err
	}
	c.unknown[d.src.ID()] = dc.table.UnknownCount()
	if dc.out == nil {
		md.DiskSum, md.SumKnown = dc.table.DiskSum()
		return nil
	}
	return dc.end(md)
}

// begin starts the segment: a disk of which nothing differs makes none.
func (dc *diskCapture) begin() (err error) {
	if dc.out != nil {
		return nil
	}
	if dc.file, err = dc.draft.Segment(dc.disk.src.ID()); err != nil {
		return err
	}
	dc.out, err = segment.NewWriter(dc.file, dc.header(dc.disk, dc.info), dc.vm.live().Level)
	return err
}

// end closes the segment and says what the disk's checksum will be with it.
func (dc *diskCapture) end(md *spool.ManifestDisk) error {
	sealed, err := dc.out.Close()
	if err != nil {
		return err
	}
	md.Segment = &spool.SegmentRef{UUID: sealed.UUID, Size: sealed.Size, Sum: sealed.Sum, ChangedBytes: sealed.ChangedBytes, StoredBytes: sealed.StoredBytes}
	r, err := segment.Open(dc.file, sealed.Size)
	if err != nil {
		return err
	}
	md.DiskSum, md.SumKnown, err = dc.table.SumAfter(diskBlocks(md.VirtualSize), r.Changes())
	return err
}

func (c *capture) header(d *disk, info image.Info) segment.Header {
	return segment.Header{
		VM: c.vm.opts.ID, Disk: d.src.ID(), Generation: c.manifest.Generation, Epoch: c.manifest.Epoch, Previous: c.manifest.Previous,
		EpochUUID: c.epoch.UUID(), UUID: uuid.New(), VirtualSize: info.VirtualSize,
	}
}

// sealedInfo is format and size of the disk as of the seal.
func sealedInfo(d *disk, ed EpochDisk) (image.Info, error) {
	info, _ := d.info()
	switch info.Format {
	case image.Raw:
		info.FileSize, info.VirtualSize = ed.FileSize(), ed.FileSize()
		return info, nil
	case image.VHDFixed:
		return sealedFooter(info, ed)
	}
	return info, fmt.Errorf("format %s: %w", info.Format, ErrBadDisk)
}

// sealedFooter reads the footer through the sealed view. A file that changed its
// size was written at its new end, so the footer's block is listed there too.
func sealedFooter(info image.Info, ed EpochDisk) (image.Info, error) {
	at := ed.FileSize() - image.FooterSize
	if at < 0 {
		return info, fmt.Errorf("%d bytes are no fixed VHD: %w", ed.FileSize(), ErrBadDisk)
	}
	blocks := extent.Cover[extent.FileBlock](at, image.FooterSize)
	page := make([]byte, blocks.Bytes())
	if err := ed.PeekBlocks(blocks, page); err != nil {
		return info, err
	}
	footer, err := image.ParseFooter(page[at-int64(blocks.Start)*extent.BlockSize:][:image.FooterSize])
	if err != nil {
		return info, err
	}
	if footer.CurrentSize+image.FooterSize != ed.FileSize() {
		return info, fmt.Errorf("footer says %d bytes of disk, the file has %d: %w", footer.CurrentSize, ed.FileSize(), ErrBadDisk)
	}
	info.FileSize, info.VirtualSize = ed.FileSize(), footer.CurrentSize
	return info, nil
}

// diskCapture reads the capture list of one disk into its segment.
type diskCapture struct {
	*capture
	disk    *disk
	table   *checksum.Table
	info    image.Info
	view    EpochDisk
	file    spool.SegmentFile
	out     *segment.Writer // nil until something differs
	page    []byte
	sums    []checksum.Sum
	entries []checksum.Entry
}

func (dc *diskCapture) run(ctx context.Context) error {
	for r := range dc.view.List(captureRun) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if dc.epoch.Voided() {
			return errVoid
		}
		if err := dc.blocks(r); err != nil {
			return err
		}
	}
	return nil
}

// blocks reads one run, drops what the table knows and writes the rest.
func (dc *diskCapture) blocks(r FileRange) error {
	page := dc.page[:r.Bytes()]
	if err := dc.view.ReadBlocks(r, page); err != nil {
		return err
	}
	run := dc.info.Layout().DiskBlocks(r)
	if run.Empty() {
		return nil
	}
	page = page[:run.Bytes()] // in fixed and raw images only the end lies outside the disk
	clearTail(page, run, dc.info.VirtualSize)
	dc.sums = checksum.Blocks(dc.sums[:0], page)
	known := DiskRange{Start: run.Start, End: min(run.End, max(dc.table.Blocks(), run.Start))}
	var err error
	if dc.entries, err = dc.table.Entries(known, dc.entries[:0]); err != nil {
		return err
	}
	return dc.write(page, run)
}

// write passes on the blocks that differ from the table, in runs.
func (dc *diskCapture) write(page []byte, run DiskRange) error {
	for _, p := range splitRuns(page, run.Start) {
		for b := p.Start; b < p.End; {
			end := b
			for end < p.End && dc.differs(end-run.Start, p.zero) {
				end++
			}
			if end == b {
				b++
				continue
			}
			if err := dc.emit(page, run.Start, DiskRange{Start: b, End: end}, p.zero); err != nil {
				return err
			}
			b = end
		}
	}
	return nil
}

// differs compares block i of the run with its entry. A block beyond the table
// is one the disk grew by: the target will hold zeros there.
func (dc *diskCapture) differs(i extent.DiskBlock, zero bool) bool {
	if int(i) >= len(dc.entries) {
		return !zero
	}
	e := dc.entries[i]
	return !e.Known || e.Sum != dc.sums[i]
}

func (dc *diskCapture) emit(page []byte, start extent.DiskBlock, r DiskRange, zero bool) error {
	if err := dc.begin(); err != nil {
		return err
	}
	if zero {
		return dc.out.Zero(r)
	}
	lo, hi := r.Start-start, r.End-start
	return dc.out.Data(r.Start, page[offsetOf(lo):offsetOf(hi)], dc.sums[lo:hi])
}

// commitTables enters the epoch's checksums into the tables; a redo is harmless.
func (v *VM) commitTables(m *spool.Manifest) error {
	for _, md := range m.Disks {
		if md.State != spool.Complete || md.Segment == nil {
			continue
		}
		if err := v.commitTable(m, md); err != nil {
			return fmt.Errorf("disk %s: checksum table, epoch %d: %w", md.Name, m.Epoch, err)
		}
	}
	return nil
}

func (v *VM) commitTable(m *spool.Manifest, md spool.ManifestDisk) error {
	d := v.diskByID(md.ID)
	if d == nil {
		return v.markGone(md.ID) // its table misses this epoch
	}
	st, table := d.state.get(), d.table()
	if st.Stage != StageComplete || m.Epoch <= st.Base || table == nil || m.Epoch <= table.Position() {
		return nil // in the table, or of an earlier life of the disk
	}
	f, err := v.deps.Spool.OpenSegment(m, md.ID)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := segment.Open(f, md.Segment.Size)
	if err != nil {
		return err
	}
	return table.Commit(m.Epoch, diskBlocks(md.VirtualSize), r.Changes())
}

// noteSeal keeps the time of the newest seal for the status.
func (v *VM) noteSeal(at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.lastSeal = at
}

// noteSpooled keeps what the newest epoch was.
func (v *VM) noteSpooled(m *spool.Manifest) {
	v.mu.Lock()
	v.mu.newestEpoch = m.Epoch
	v.mu.openReason = m.OpenReason
	v.mu.Unlock()
	v.notify()
}

func (v *VM) newestManifest() uint64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.newestEpoch
}

// keepFacts makes the sizes of an epoch the disks' own, and notes whom it carries.
func (v *VM) keepFacts(m *spool.Manifest) error {
	var carried []string
	for _, md := range m.Disks {
		if md.State != spool.Complete {
			continue
		}
		carried = append(carried, md.ID)
		d := v.diskByID(md.ID)
		if d == nil || m.Epoch <= d.state.get().Base {
			continue
		}
		if st := d.state.get(); st.VirtualSize == md.VirtualSize && !st.Resized && st.MostBytes >= md.VirtualSize {
			continue
		}
		err := d.state.update(func(s *diskRecord) {
			s.VirtualSize, s.MostBytes, s.Resized = md.VirtualSize, max(s.MostBytes, md.VirtualSize), false
		})
		if err != nil {
			return err
		}
	}
	if slices.Equal(carried, v.state.get().Carried) {
		return nil
	}
	return v.state.update(func(s *vmRecord) { s.Carried = carried })
}
