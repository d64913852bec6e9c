package vhd

import (
	"encoding/binary"
	"math/bits"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// table reads the block table and the sector bitmaps of the blocks that are allocated.
func (f file) table(footer image.Footer, h header, info image.Info) (*image.Table, error) {
	s := image.Shape{
		Format: info.Format, VirtualSize: footer.CurrentSize, BlockSize: h.blockSize, Sector: sectorSize, FileSize: f.size,
		Differencing: footer.Type == image.TypeDifferencing, Fixed: f.fixed(footer, h),
		TableOffset: h.table, EntrySize: entrySize, BitmapAhead: bitmapSize(h.blockSize),
	}
	if s.Differencing {
		s.Parent = h.parentID
	}
	raw, err := f.read("block table", h.table, s.Blocks()*entrySize)
	if err != nil {
		return nil, err
	}
	b := image.NewBuilder(s)
	place := func(i int64) (at image.FileOffset, ok bool) {
		sector := binary.BigEndian.Uint32(raw[i*entrySize:])
		return image.FileOffset(sector) * sectorSize, sector != unallocated
	}
	for i := range s.Blocks() {
		if at, ok := place(i); ok {
			b.Full(i, at+image.FileOffset(s.BitmapAhead))
		}
	}
	if err := b.Check(); err != nil {
		return nil, err
	}
	for i := range s.Blocks() {
		if at, ok := place(i); ok {
			if err := f.block(b, i, at, s.BitmapAhead); err != nil {
				return nil, err
			}
		}
	}
	return b.Table()
}

// block reads the sector bitmap at off and enters the block whose data follows it.
func (f file) block(b *image.Builder, block int64, off image.FileOffset, bitmap int64) error {
	m, err := f.read("sector bitmap", off, bitmap)
	if err != nil {
		return err
	}
	for i := range m {
		m[i] = bits.Reverse8(m[i]) // the table wants the least significant bit first
	}
	b.Partial(block, off+image.FileOffset(bitmap), m)
	return nil
}

// bitmapSize is how many bytes the sector bitmap of a block takes: whole sectors.
func bitmapSize(blockSize int64) int64 {
	return (blockSize/sectorSize + 8*sectorSize - 1) / (8 * sectorSize) * sectorSize
}

// fixed lists what lies in the file besides blocks. A trailing footer that is not there takes no place.
func (f file) fixed(footer image.Footer, h header) []image.FileRange {
	span := func(name string, at image.FileOffset, n int64) image.FileRange {
		return image.FileRange{Name: name, Start: at, End: at + image.FileOffset(n)}
	}
	all := []image.FileRange{
		span("copy of the footer", 0, image.FooterSize), span("header", image.FileOffset(footer.DataOffset), headerSize),
		span("block table", h.table, h.entries*entrySize),
	}
	for _, l := range h.locators {
		if l.kind != "" && l.length > 0 && l.length <= maxLocator && footer.Type == image.TypeDifferencing {
			all = append(all, span("parent locator", l.offset, l.length))
		}
	}
	if end := image.FileOffset(f.size - image.FooterSize); f.endsInFooter(end, footer.ID) {
		all = append(all, span("footer", end, image.FooterSize))
	}
	return all
}

// endsInFooter says whether the last sector is this image's footer. While a block is being allocated it is the block's,
// and may then be the footer of an image that the guest keeps in its disk.
func (f file) endsInFooter(end image.FileOffset, id [16]byte) bool {
	last, err := f.footerAt(end)
	return end > 0 && err == nil && last.ID == id
}
