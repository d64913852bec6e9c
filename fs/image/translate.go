package image

import (
	"bytes"
	"sort"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Disk is the whole virtual disk in blocks.
func (t *Table) Disk() extent.Range[extent.DiskBlock] {
	return extent.Cover[extent.DiskBlock](0, t.VirtualSize)
}

// DiskBlocks returns the disk blocks of which a byte lies in one of the file blocks, rounded outward. A block of
// metadata carries none: what its change does to the disk is found by comparing tables.
func (t *Table) DiskBlocks(files extent.Set[extent.FileBlock]) extent.Set[extent.DiskBlock] {
	var disk []extent.Range[extent.DiskBlock] // in the order of the file: a Set takes them best sorted
	for _, r := range files.Ranges() {
		disk = t.carried(FileOffset(r.Start)*extent.BlockSize, FileOffset(r.End)*extent.BlockSize, disk)
	}
	return extent.Of(disk...)
}

// carried appends the disk blocks of which a byte lies in [start, end) of the file.
func (t *Table) carried(start, end FileOffset, disk []extent.Range[extent.DiskBlock]) []extent.Range[extent.DiskBlock] {
	k := sort.Search(len(t.order), func(k int) bool { _, e := t.span(int64(t.order[k])); return e > start })
	for ; k < len(t.order); k++ {
		block := int64(t.order[k])
		data := t.entries[block].data()
		if data >= end {
			break
		}
		lo, hi := max(start, data), min(end, data+FileOffset(t.used(block)))
		for e := range t.Extents(DiskOffset(block*t.BlockSize+int64(lo-data)), int64(hi-lo)) {
			if e.From == FromFile {
				disk = append(disk, extent.Cover[extent.DiskBlock](int64(e.Disk), e.Len))
			}
		}
	}
	return disk
}

// DataBlocks returns the file blocks that hold data of disk blocks, rounded outward.
func (t *Table) DataBlocks(disk extent.Set[extent.DiskBlock]) extent.Set[extent.FileBlock] {
	var files []extent.Range[extent.FileBlock]
	for _, r := range disk.Ranges() {
		for e := range t.Extents(DiskOffset(r.Offset()), r.Bytes()) {
			if e.From == FromFile {
				files = append(files, extent.Cover[extent.FileBlock](int64(e.File), e.Len))
			}
		}
	}
	return extent.Of(files...)
}

// FileBlocks returns the file blocks that reading a range of disk blocks takes, rounded outward: the data, the table
// entries, and the sector bitmaps. Headers and log, which every reader needs, are in Metadata only.
func (t *Table) FileBlocks(r extent.Range[extent.DiskBlock]) extent.Set[extent.FileBlock] {
	r = r.Intersect(t.Disk())
	if r.Empty() {
		return extent.Set[extent.FileBlock]{}
	}
	files := t.DataBlocks(extent.Of(r))
	last := min(r.Offset()+r.Bytes(), t.VirtualSize) - 1
	for b := r.Offset() / t.BlockSize; b <= last/t.BlockSize; b++ {
		if t.EntrySize > 0 {
			files.Add(extent.Cover[extent.FileBlock](int64(t.EntryOffset(b)), t.EntrySize))
		}
		if at, n := t.bitmap(b); n > 0 {
			files.Add(extent.Cover[extent.FileBlock](int64(at), n))
		}
	}
	return files
}

// bitmap is where the sector bitmap of a block lies in the file; n is 0 if there is none.
func (t *Table) bitmap(block int64) (at FileOffset, n int64) {
	switch e := t.entries[block]; {
	case t.BitmapAhead > 0 && e.allocated():
		return e.data() - FileOffset(t.BitmapAhead), t.BitmapAhead
	case t.ChunkRatio > 0 && block/t.ChunkRatio < int64(len(t.chunks)) && t.chunks[block/t.ChunkRatio] != 0:
		n = t.bitmapBytes()
		return t.chunks[block/t.ChunkRatio] + FileOffset(block%t.ChunkRatio*n), n
	}
	return 0, 0
}

// Metadata returns all file blocks that hold something else than data, rounded outward: headers, log, tables, sector
// bitmaps and footers. While an epoch of the image is captured they are saved before they change.
func (t *Table) Metadata() extent.Set[extent.FileBlock] {
	var files []extent.Range[extent.FileBlock]
	for _, f := range t.occupied() {
		files = append(files, extent.Cover[extent.FileBlock](int64(f.Start), int64(f.End-f.Start)))
	}
	if t.BitmapAhead > 0 {
		for _, i := range t.order {
			at, n := t.bitmap(int64(i))
			files = append(files, extent.Cover[extent.FileBlock](int64(at), n))
		}
	}
	return extent.Of(files...)
}

// Changed returns the disk blocks that may read differently from what they read when the table was prev, rounded
// outward; files are the file blocks written since. It never misses one, if files misses none, and names a block only if
// a sector in it comes from elsewhere than before or from a file block that was written.
//
// So it finds data that was written long ago and becomes visible by its entry or its bit, blocks moved, freed, zeroed and
// trimmed. What the parent has is the parent's affair, unless it became another parent. Blocks past the end of the
// smaller of the two disks are all named, up to the present end.
func (t *Table) Changed(prev *Table, files extent.Set[extent.FileBlock]) extent.Set[extent.DiskBlock] {
	var disk extent.Set[extent.DiskBlock]
	both := min(prev.VirtualSize, t.VirtualSize)
	if prev.VirtualSize != t.VirtualSize {
		disk.Add(extent.Cover[extent.DiskBlock](both, max(t.VirtualSize-both, 1)).Intersect(t.Disk()))
	}
	if both%extent.BlockSize != 0 && prev.VirtualSize != t.VirtualSize {
		disk.Add(extent.Cover[extent.DiskBlock](both-1, 1))
	}
	if prev.BlockSize == t.BlockSize && prev.Differencing == t.Differencing && prev.Parent == t.Parent {
		t.changedEntries(prev, both, &disk)
	} else {
		t.moved(prev, 0, both, &disk)
	}
	// What is read from where it was read before differs if it was written there. The log's content counts as
	// written, both when it comes and when it goes into its place.
	written := files.Union(t.replayed).Union(prev.replayed)
	return disk.Union(t.DiskBlocks(written))
}

// changedEntries compares block by block and looks closely only where entry or bits differ.
func (t *Table) changedEntries(prev *Table, both int64, disk *extent.Set[extent.DiskBlock]) {
	for b := int64(0); b*t.BlockSize < both; b++ {
		if t.entries[b] != prev.entries[b] || !bytes.Equal(t.bits[b], prev.bits[b]) || t.Sector != prev.Sector {
			t.moved(prev, b*t.BlockSize, min(t.BlockSize, both-b*t.BlockSize), disk)
		}
	}
}

// moved adds the disk blocks in the bytes [off, off+n) that come from elsewhere than before.
func (t *Table) moved(prev *Table, off, n int64, disk *extent.Set[extent.DiskBlock]) {
	for end := off + n; off < end; {
		now, was := t.extentAt(off, end), prev.extentAt(off, end)
		length := min(now.Len, was.Len)
		same := now.From == was.From && now.File == was.File
		if now.From == FromParent && was.From == FromParent && t.Parent != prev.Parent {
			same = false
		}
		if !same {
			disk.Add(extent.Cover[extent.DiskBlock](off, length))
		}
		off += length
	}
}
