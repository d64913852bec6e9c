package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// translation is a translated disk in a capture: what its image says as of the seal,
// and which blocks of the disk may differ from their entries.
type translation struct {
	disk   *disk
	view   EpochDisk
	image  *formats.Image // nil: it could not be read, and nothing of the disk is captured
	number uint64         // of the block table that the epoch leaves behind
	due    extent.Set[extent.DiskBlock]
	moved  extent.Set[extent.DiskBlock] // of them, what only the comparison of tables tells of

	changes extent.Set[extent.FileBlock] // written in the epoch
}

// translate reads the block tables of the translated disks as of the seal, all of
// whose blocks are protected until their lists are narrowed.
func (c *capture) translate(disks []*disk) error {
	c.translated = map[string]*translation{}
	for _, d := range disks {
		ed, ok := c.epoch.Disk(d.src.ID())
		if !ok || !d.translated() {
			continue
		}
		tr := &translation{disk: d, view: ed, number: d.state.get().Blocks}
		c.translated[d.src.ID()] = tr
		img, err := formats.Open(sealedFile{ed}, ed.FileSize())
		switch {
		case err == nil && img.Link != nil:
			err = fmt.Errorf("it lies over a parent now: %w", ErrBadDisk)
		case err == nil && img.Table == nil:
			err = fmt.Errorf("format %s: %w", img.Info.Format, ErrBadDisk)
		}
		if c.epoch.Voided() {
			return errVoid
		}
		if err != nil {
			// Its writer is in the middle of something. All of it goes back, and the table
			// before stays the one to compare with, so that nothing is missed.
			c.leaveOpen(fmt.Sprintf("disk %s: %v", d.src.Name(), err))
			d.setInfo(image.Info{}, err)
			c.epoch.ReturnDisk(d.src.ID())
			continue
		}
		img.Info.FileSize = ed.FileSize()
		d.setInfo(img.Info, nil)
		tr.image = img
		tr.look()
	}
	return nil
}

// look finds what may differ: by the change set, by the two tables, and what has an
// unknown entry.
func (tr *translation) look() {
	t, table := tr.image.Table, tr.disk.table()
	tr.changes = extent.Set[extent.FileBlock]{}
	for r := range tr.view.List(0) {
		tr.changes.Add(r)
	}
	tr.moved = extent.Of(t.Disk())
	if prev := tr.disk.previous(); prev != nil {
		tr.moved = t.Changed(prev, extent.Set[extent.FileBlock]{})
	}
	unknown := []DiskRange{}
	for r := range table.Unknown().Ranges(DiskRange{End: min(table.Blocks(), t.Disk().End)}, 0) {
		unknown = append(unknown, r)
	}
	unknown = append(unknown, DiskRange{Start: table.Blocks(), End: max(table.Blocks(), t.Disk().End)}) // no entry yet
	tr.moved = tr.moved.Union(extent.Of(unknown...))
	tr.due = tr.moved.Union(t.DiskBlocks(tr.changes))
}

// data are the blocks of the list that are read from the file; the others are zeros.
func (tr *translation) data() extent.Set[extent.DiskBlock] {
	var all []DiskRange
	for _, r := range tr.due.Ranges() {
		for e := range tr.image.Table.Extents(image.DiskOffset(r.Offset()), r.Bytes()) {
			if e.From == image.FromFile {
				all = append(all, extent.Cover[extent.DiskBlock](int64(e.Disk), e.Len))
			}
		}
	}
	return extent.Of(all...)
}

// cutTranslated keeps c.room of the disk's blocks. Of the others, what the change set
// tells of goes back there, and what only the tables tell of becomes unknown: it is
// in no change set, and the table that tells of it is about to go.
//
// What the disk grew by has no entry that could become unknown: with this epoch its
// blocks become known zeros. So of them only those are left out that the change set
// goes on telling of.
func (c *capture) cutTranslated(tr *translation) error {
	t, table := tr.image.Table, tr.disk.table()
	data := tr.data()
	grown := data.Intersect(extent.Of(DiskRange{Start: table.Blocks(), End: max(table.Blocks(), t.Disk().End)}))
	stay := grown.Subtract(t.DiskBlocks(tr.changes))
	kept, next, left := keepFrom(data.Subtract(stay).Ranges(), tr.disk.cutFromDisk, max(0, c.room-stay.Blocks()))
	tr.disk.cutFromDisk, c.room = next, left
	rest, back, shared := tr.leaveOut(data.Subtract(stay).Subtract(kept), grown)
	tr.due = tr.due.Subtract(rest)
	if unknown := tr.moved.Union(t.DiskBlocks(shared)).Intersect(rest).Subtract(grown); !unknown.Empty() {
		if err := table.Forget(unknown.Ranges()...); err != nil {
			return fmt.Errorf("disk %s: what does not fit becomes unknown: %w", tr.disk.src.Name(), err)
		}
	}
	tr.disk.owe(t.DataBlocks(rest.Intersect(grown)))
	c.epoch.Return(tr.disk.src.ID(), back.Ranges()...)
	return nil
}

// leaveOut is what of rest may be left out, the blocks of the file that go back with
// it, and those that would and cannot: they hold some of what is read.
func (tr *translation) leaveOut(rest, grown extent.Set[extent.DiskBlock]) (out extent.Set[extent.DiskBlock], back, shared extent.Set[extent.FileBlock]) {
	t := tr.image.Table
	for {
		all := t.DataBlocks(rest)
		shared = all.Intersect(t.DataBlocks(tr.due.Subtract(rest)))
		back = all.Subtract(shared)
		untold := rest.Intersect(grown).Subtract(t.DiskBlocks(tr.changes.Intersect(back)))
		if untold.Empty() {
			return rest, back, shared
		}
		rest = rest.Subtract(untold)
	}
}

// narrow fixes the capture lists: what is read from here on, and nothing else.
func (c *capture) narrow() {
	for _, tr := range c.translated {
		if tr.image != nil {
			tr.view.Narrow(tr.image.Table.DataBlocks(tr.due))
		}
	}
}

// segmentTranslated captures one complete translated disk.
func (c *capture) segmentTranslated(ctx context.Context, tr *translation, md *spool.ManifestDisk) error {
	d, st := tr.disk, tr.disk.state.get()
	dc := &diskCapture{capture: c, disk: d, table: d.table(), view: tr.view, page: make([]byte, captureRun*extent.BlockSize)}
	if tr.image == nil {
		md.VirtualSize, md.Blocks = st.VirtualSize, tr.number
		return dc.close(md)
	}
	dc.info = tr.image.Info
	if err := c.keepTable(tr); err != nil {
		return err
	}
	md.Format, md.VirtualSize, md.Blocks = dc.info.Format, dc.info.VirtualSize, tr.number
	if st.Resized || st.VirtualSize != dc.info.VirtualSize {
		if err := dc.begin(); err != nil {
			return err
		}
	}
	for _, r := range tr.due.Ranges() {
		for run := range r.Split(captureRun) {
			if err := dc.translatedRun(ctx, tr, run); err != nil {
				return err
			}
		}
	}
	return dc.close(md)
}

// keepTable writes the block table as of the seal, unless it is the one before.
func (c *capture) keepTable(tr *translation) error {
	prev := tr.disk.previous()
	if prev != nil && tr.image.Table.Equal(prev) {
		return nil
	}
	tr.number = c.epoch.Number()
	return c.vm.writeBlocks(tr.disk, tr.number, tr.image.Table)
}

// translatedRun reads one run of the disk and writes what the table does not know.
func (dc *diskCapture) translatedRun(ctx context.Context, tr *translation, run DiskRange) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if dc.epoch.Voided() {
		return errVoid
	}
	dc.vm.sealing.beat(time.Now())
	page := dc.page[:run.Bytes()]
	n, err := tr.image.Disk.ReadAt(page, run.Offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(page[n:])
	tr.done(run)
	return dc.compare(page, run)
}

// done lets writers overwrite what was read. A block of the file at either end of a
// piece may hold some of the next run.
func (tr *translation) done(run DiskRange) {
	for e := range tr.image.Table.Extents(image.DiskOffset(run.Offset()), run.Bytes()) {
		if f := extent.Cover[extent.FileBlock](int64(e.File), e.Len); e.From == image.FromFile && f.Len() > 2 {
			tr.view.Done(FileRange{Start: f.Start + 1, End: f.End - 1})
		}
	}
}

// sealedFile is an image file as it was at the seal.
type sealedFile struct{ view EpochDisk }

// ReadAt implements io.ReaderAt.
func (f sealedFile) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(0, f.view.FileSize()-off)))
	if n > 0 {
		if err := f.read(p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f sealedFile) read(p []byte, off int64) error {
	blocks := extent.Cover[extent.FileBlock](off, int64(len(p)))
	if blocks.Bytes() == int64(len(p)) {
		return f.view.PeekBlocks(blocks, p)
	}
	buf := make([]byte, blocks.Bytes())
	if err := f.view.PeekBlocks(blocks, buf); err != nil {
		return err
	}
	copy(p, buf[off-blocks.Offset():])
	return nil
}

// learnTranslated enters zero for every block that no file block with data holds.
func learnTranslated(t *checksum.Table, src Source, layout image.Layout) error {
	var data []DiskRange
	for off := int64(0); ; {
		start, end, err := src.NextData(off)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		data = append(data, layout.DiskBlocks(extent.Cover[extent.FileBlock](start, end-start)).Ranges()...)
		off = end
	}
	for _, hole := range extent.Of(DiskRange{End: t.Blocks()}).Subtract(extent.Of(data...)).Ranges() {
		if err := t.Learn(hole, nil); err != nil {
			return err
		}
	}
	return nil
}
