package image

import "github.com/vhdrelay/vhdrelay/journal/extent"

// Layout converts between the blocks of an image file and those of its virtual disk. In the protected formats the
// numbers coincide; what differs is where each ends.
type Layout struct {
	format  Format
	virtual int64 // bytes
}

// Layout returns the layout of the image. It is meaningful for Raw and VHDFixed only.
func (i Info) Layout() Layout { return Layout{format: i.Format, virtual: i.VirtualSize} }

// VirtualSize is the size of the virtual disk in bytes.
func (l Layout) VirtualSize() int64 { return l.virtual }

// Disk is the whole virtual disk in blocks, the last one counted even if the disk ends inside it.
func (l Layout) Disk() extent.Range[extent.DiskBlock] {
	return extent.Cover[extent.DiskBlock](0, l.virtual)
}

// DiskBlocks maps file blocks to disk blocks, clipped to the virtual disk rounded up to a block. A range that holds
// nothing of the disk becomes empty.
func (l Layout) DiskBlocks(r extent.Range[extent.FileBlock]) extent.Range[extent.DiskBlock] {
	d := extent.Range[extent.DiskBlock]{Start: extent.DiskBlock(r.Start), End: extent.DiskBlock(r.End)}
	return d.Intersect(l.Disk())
}

// FileBlocks maps disk blocks to the file blocks that hold them, clipped like DiskBlocks.
func (l Layout) FileBlocks(r extent.Range[extent.DiskBlock]) extent.Range[extent.FileBlock] {
	r = r.Intersect(l.Disk())
	return extent.Range[extent.FileBlock]{Start: extent.FileBlock(r.Start), End: extent.FileBlock(r.End)}
}

// DiskOffset converts an offset in the file; false if no byte of the disk lies there.
func (l Layout) DiskOffset(o FileOffset) (DiskOffset, bool) {
	return DiskOffset(o), o >= 0 && int64(o) < l.virtual
}

// FileOffset converts an offset in the disk; false if it lies outside.
func (l Layout) FileOffset(o DiskOffset) (FileOffset, bool) {
	return FileOffset(o), o >= 0 && int64(o) < l.virtual
}

// Metadata lists the file blocks a capture reads besides data: the block of the footer of a VHD, which may also be
// the last block of the disk.
func (l Layout) Metadata() []extent.Range[extent.FileBlock] {
	if l.format != VHDFixed {
		return nil
	}
	return []extent.Range[extent.FileBlock]{extent.Cover[extent.FileBlock](l.virtual, FooterSize)}
}

// TailBytes is how many bytes of the last disk block belong to the disk, 1 to 4096. The rest of that block is the
// footer's or nobody's: a capture replaces it by zeros. 0 for an empty disk.
func (l Layout) TailBytes() int {
	if l.virtual == 0 {
		return 0
	}
	return int((l.virtual-1)%extent.BlockSize) + 1
}
