package shipper

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// segment captures one complete disk.
func (c *capture) segment(ctx context.Context, d *disk, ed EpochDisk, md *spool.ManifestDisk) error {
	info, err := sealedInfo(d, ed)
	d.setInfo(info, err)
	st := d.state.get()
	if err != nil {
		// Without its footer the disk has no size: all of it goes back, and the next epoch looks again. Nothing is written: a
		// size that nobody knows must not become the replica's.
		c.leaveOpen(fmt.Sprintf("disk %s: %v", d.src.Name(), err))
		c.giveBack(c.files[d], ed)
		c.unread = true
		c.unknown[d.src.ID()] = d.table().UnknownCount()
		md.VirtualSize = st.VirtualSize
		md.DiskSum, md.SumKnown = d.table().DiskSum()
		return nil
	}
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
	return dc.close(md)
}

// close ends the segment, if there is one, and says what the disk's checksum is.
func (dc *diskCapture) close(md *spool.ManifestDisk) error {
	dc.unknown[md.ID] = dc.table.UnknownCount()
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
	if info.Format == "" { // it could not be read when the disk came: it may be now
		var err error
		if info, err = d.probe(); err != nil {
			return info, err
		}
	}
	switch info.Format {
	case image.Raw:
		if ed.FileSize() == 0 { // between a truncation and what comes after it, when a file is written over the disk
			return info, fmt.Errorf("the image is empty: %w", image.ErrNotYet)
		}
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
	if footer.Type != image.TypeFixed { // written over in place; its size may fit all the same
		return info, fmt.Errorf("the image is no fixed VHD any more: %w", ErrBadDisk)
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
		dc.vm.sealing.beat(time.Now())
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
	held := dc.info.Layout().DiskBlocks(r).Ranges()
	if len(held) == 0 {
		return nil
	}
	run := held[0]
	page = page[:run.Bytes()] // in fixed and raw images only the end lies outside the disk
	clearTail(page, run, dc.info.VirtualSize)
	return dc.compare(page, run)
}

// compare writes the blocks of a run that are not what their entries say.
func (dc *diskCapture) compare(page []byte, run DiskRange) error {
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
