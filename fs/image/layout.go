package image

import (
	"errors"
	"io"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Layout says which blocks of an image file hold which blocks of its virtual disk. In raw images and fixed VHDs the numbers
// coincide and only the ends differ; in a translated image a block table says it, as of one moment.
type Layout struct {
	format  Format
	virtual int64  // bytes
	table   *Table // nil: the numbers coincide
}

// Layout returns the layout of an image that is Raw or VHDFixed; of others see Table.Layout.
func (i Info) Layout() Layout { return Layout{format: i.Format, virtual: i.VirtualSize} }

// Layout is where the table finds the disk. It is exact for the moment of the table only: what moved since is named by Changed.
func (t *Table) Layout() Layout { return Layout{format: t.Format, virtual: t.VirtualSize, table: t} }

// VirtualSize is the size of the virtual disk in bytes.
func (l Layout) VirtualSize() int64 { return l.virtual }

// Disk is the whole virtual disk in blocks, the last one counted even if the disk ends inside it.
func (l Layout) Disk() extent.Range[extent.DiskBlock] {
	return extent.Cover[extent.DiskBlock](0, l.virtual)
}

// DiskBlocks returns the disk blocks of which a byte lies in one of the file blocks, clipped to the virtual disk rounded up to
// a block. File blocks that hold nothing of the disk add none.
func (l Layout) DiskBlocks(r extent.Range[extent.FileBlock]) extent.Set[extent.DiskBlock] {
	if l.table != nil {
		return l.table.DiskBlocks(extent.Of(r))
	}
	d := extent.Range[extent.DiskBlock]{Start: extent.DiskBlock(r.Start), End: extent.DiskBlock(r.End)}
	return extent.Of(d.Intersect(l.Disk()))
}

// FileBlocks returns the file blocks that hold the data of disk blocks, rounded outward and clipped like DiskBlocks.
func (l Layout) FileBlocks(r extent.Range[extent.DiskBlock]) extent.Set[extent.FileBlock] {
	if l.table != nil {
		return l.table.DataBlocks(extent.Of(r))
	}
	r = r.Intersect(l.Disk())
	return extent.Of(extent.Range[extent.FileBlock]{Start: extent.FileBlock(r.Start), End: extent.FileBlock(r.End)})
}

// Metadata lists the file blocks a capture reads besides data: the block of the footer of a VHD, which may also be the last
// block of the disk; of a translated image, all that its table was read from.
func (l Layout) Metadata() []extent.Range[extent.FileBlock] {
	switch {
	case l.table != nil:
		return l.table.Metadata().Ranges()
	case l.format != VHDFixed:
		return nil
	}
	return []extent.Range[extent.FileBlock]{extent.Cover[extent.FileBlock](l.virtual, FooterSize)}
}

// CutOff is the part of r that lies beyond the end of the disk, where that is the end of the file's data. A translated image
// has no such part: where its blocks lie says nothing of the disk's end.
func (l Layout) CutOff(r extent.Range[extent.FileBlock]) extent.Range[extent.FileBlock] {
	if l.table != nil {
		return extent.Range[extent.FileBlock]{Start: r.Start, End: r.Start}
	}
	r.Start = max(r.Start, extent.FileBlock(l.Disk().End))
	return r
}

// ReadDisk fills p, run.Bytes() long, with the blocks of run as src, the image file, has them. Where the file has ended, and
// beyond the end of the disk, it is zeros. What a log has for a block is not looked at: see Table.Changed.
func (l Layout) ReadDisk(src io.ReaderAt, run extent.Range[extent.DiskBlock], p []byte) error {
	if l.table == nil {
		if err := readPadded(src, p, run.Offset()); err != nil {
			return err
		}
		if over := run.Offset() + int64(len(p)) - l.virtual; over > 0 {
			clear(p[max(0, int64(len(p))-over):])
		}
		return nil
	}
	clear(p)
	for e := range l.table.Extents(DiskOffset(run.Offset()), int64(len(p))) {
		if e.From != FromFile {
			continue
		}
		at := int64(e.Disk) - run.Offset()
		if err := readPadded(src, p[at:at+e.Len], int64(e.File)); err != nil {
			return err
		}
	}
	return nil
}

// readPadded reads len(p) bytes at off; past the end of the file they are zeros.
func readPadded(src io.ReaderAt, p []byte, off int64) error {
	n, err := src.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(p[n:])
	return nil
}
