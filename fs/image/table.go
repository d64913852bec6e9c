package image

import (
	"bytes"
	"cmp"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sort"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// BlockState says where the sectors of one block of a translated image come from.
type BlockState uint8

// The states of a block. The low bits of a table entry hold them.
const (
	BlockAbsent  BlockState = iota // nothing in the file: zeros, in a differencing image the parent's
	BlockZero                      // zeros, whatever the parent has
	BlockFull                      // all sectors in the file
	BlockPartial                   // those whose bit is set in the file, the others as in BlockAbsent
	BlockEmpty                     // allocated, no bit set: reads like BlockAbsent
)

const stateMask = sectorSize - 1

// entry is a state and the offset of the data in the file, which is a multiple of 512. Data of absent blocks is at 0.
type entry uint64

func newEntry(s BlockState, data FileOffset) entry { return entry(s) | entry(data) }

func (e entry) state() BlockState { return BlockState(e & stateMask) }
func (e entry) data() FileOffset  { return FileOffset(e &^ stateMask) }
func (e entry) allocated() bool   { return e.state() >= BlockFull }

// Shape is what a block table has in common for all its blocks. Sizes and offsets are in bytes.
type Shape struct {
	Format      Format
	VirtualSize int64
	BlockSize   int64
	Sector      int64 // bytes a bit of a sector bitmap stands for
	FileSize    int64 // where data must end; after log replay

	// Parent identifies what absent blocks read from, in a differencing image.
	Parent       [16]byte
	Differencing bool

	Fixed []FileRange // headers, tables, log: what is no data wherever the blocks lie, named for errors

	TableOffset FileOffset // of entry 0
	EntrySize   int64      // of an entry in the file
	// ChunkRatio is after how many entries one of a sector bitmap comes (VHDX), 0 for never.
	ChunkRatio int64
	// BitmapAhead is how many bytes of sector bitmap lie directly before the data of each block (VHD), 0 for none.
	BitmapAhead int64
}

// FileRange is a named half-open range of bytes of an image file.
type FileRange struct {
	Name       string
	Start, End FileOffset
}

// Table is the block table of a translated image as a value: where each sector of the virtual disk is read from. It is
// built with a Builder, never changes afterwards, and can be compared with that of an earlier moment: see Changed.
//
// It takes 12 bytes a block, and the sector bitmaps of blocks that are only partly there.
type Table struct {
	Shape
	entries []entry
	bits    map[int64][]byte // by block, least significant bit first
	chunks  []FileOffset     // of the sector bitmaps, by chunk; VHDX
	order   []uint32         // allocated blocks by their data's offset
	// replayed are the blocks whose content is the log's and not the file's.
	replayed extent.Set[extent.FileBlock]
}

// Replayed are the file blocks whose content is the log's and not the file's.
func (t *Table) Replayed() extent.Set[extent.FileBlock] { return t.replayed.Clone() }

// Blocks is the number of blocks of the virtual disk, the last one counted even if the disk ends inside it.
func (s Shape) Blocks() int64 { return (s.VirtualSize + s.BlockSize - 1) / s.BlockSize }

// bitmapBytes is how many bytes of sector bitmap a block has.
func (s Shape) bitmapBytes() int64 { return (s.BlockSize/s.Sector + 7) / 8 }

// EntryOffset is where the entry of a block lies in the file.
func (s Shape) EntryOffset(block int64) FileOffset {
	if s.ChunkRatio > 0 {
		block += block / s.ChunkRatio
	}
	return s.TableOffset + FileOffset(block*s.EntrySize)
}

// used is how many bytes of a block belong to the virtual disk.
func (s Shape) used(block int64) int64 { return min(s.BlockSize, s.VirtualSize-block*s.BlockSize) }

// maskBytes is how many bytes of bits the table keeps of a block that is partly there.
func (s Shape) maskBytes(block int64) int64 { return ((s.used(block)+s.Sector-1)/s.Sector + 7) / 8 }

// Builder collects the entries of a Table.
type Builder struct {
	t       Table
	checked bool
}

// NewBuilder begins a table whose blocks are all absent. The caller has checked that the file is large enough to hold
// such a table: memory is taken for every block at once.
func NewBuilder(s Shape) *Builder {
	return &Builder{t: Table{Shape: s, entries: make([]entry, s.Blocks()), bits: map[int64][]byte{}}}
}

// Zero makes a block read as zeros.
func (b *Builder) Zero(block int64) { b.t.entries[block] = newEntry(BlockZero, 0) }

// Full says that the whole block lies at data, a multiple of 512.
func (b *Builder) Full(block int64, data FileOffset) {
	b.t.entries[block] = newEntry(BlockFull, data)
}

// Partial says that the sectors of a block whose bit is set (least significant first) lie at data. It keeps a copy of
// the bitmap only if it says more than all or nothing. Bits past the end of the disk do not count.
func (b *Builder) Partial(block int64, data FileOffset, bitmap []byte) {
	sectors := (b.t.used(block) + b.t.Sector - 1) / b.t.Sector
	m := bytes.Clone(bitmap[:(sectors+7)/8])
	if rest := sectors % 8; rest != 0 {
		m[len(m)-1] &= 1<<rest - 1
	}
	set := int64(0)
	for _, c := range m {
		set += int64(bits.OnesCount8(c))
	}
	switch set {
	case 0:
		b.t.entries[block] = newEntry(BlockEmpty, data)
	case sectors:
		b.t.entries[block] = newEntry(BlockFull, data)
	default:
		b.t.entries[block] = newEntry(BlockPartial, data)
		b.t.bits[block] = m
	}
}

// Chunks says where the sector bitmap of each chunk lies, 0 for none.
func (b *Builder) Chunks(at []FileOffset) { b.t.chunks = at }

// Replayed says which file blocks have the content of a log.
func (b *Builder) Replayed(s extent.Set[extent.FileBlock]) { b.t.replayed = s.Clone() }

// Check says whether no two things of the file overlap and all lie inside it. Blocks that are not in the table yet must not
// be allocated afterwards. Only then are bitmaps read, one for each block: of blocks that lie one on the other there may be
// any number, and a bitmap takes 1/4096 of its block. Errors are *Error around ErrTruncated or ErrInvalid, without a path.
func (b *Builder) Check() error {
	t := &b.t
	b.checked, t.order = true, nil
	for i, e := range t.entries {
		if e.allocated() {
			t.order = append(t.order, uint32(i))
		}
	}
	slices.SortFunc(t.order, func(x, y uint32) int { return cmp.Compare(t.entries[x].data(), t.entries[y].data()) })
	return t.checkBlocks()
}

// Table returns the finished table, checked.
func (b *Builder) Table() (*Table, error) {
	if !b.checked {
		if err := b.Check(); err != nil {
			return nil, err
		}
	}
	return &b.t, nil
}

func (t *Table) checkBlocks() error {
	for k, i := range t.order {
		start, end := t.span(int64(i))
		if start < 0 || int64(start) > t.FileSize || int64(end) > t.FileSize {
			return t.entryError(int64(i), ErrTruncated, fmt.Sprintf("a block that ends at %d", end), fmt.Sprintf("within the %d bytes of the file", t.FileSize))
		}
		if k > 0 {
			j := int64(t.order[k-1])
			if _, before := t.span(j); before > start {
				return t.entryError(int64(i), ErrInvalid, fmt.Sprintf("a block at %d", start), fmt.Sprintf("behind block %d, which ends at %d", j, before))
			}
		}
	}
	for _, f := range t.occupied() {
		k := sort.Search(len(t.order), func(k int) bool { _, end := t.span(int64(t.order[k])); return end > f.Start })
		if k == len(t.order) {
			continue
		}
		if start, _ := t.span(int64(t.order[k])); start < f.End {
			return t.entryError(int64(t.order[k]), ErrInvalid, fmt.Sprintf("a block at %d", start), fmt.Sprintf("outside the %s, [%d, %d)", f.Name, f.Start, f.End))
		}
	}
	return nil
}

// span is what an allocated block takes of the file: its bitmap, if that lies before it, and the data that belongs to the disk.
func (t *Table) span(block int64) (start, end FileOffset) {
	data := t.entries[block].data()
	return data - FileOffset(t.BitmapAhead), data + FileOffset(t.used(block))
}

func (t *Table) occupied() []FileRange {
	all := slices.Clone(t.Fixed)
	for i, at := range t.chunks {
		if at != 0 {
			all = append(all, FileRange{fmt.Sprintf("sector bitmap %d", i), at, at + mebibyte})
		}
	}
	return all
}

func (t *Table) entryError(block int64, err error, found, expected string) error {
	return &Error{Field: fmt.Sprintf("block table entry %d", block), Offset: t.EntryOffset(block), Found: found, Expected: expected,
		Hint: "the image is damaged: repair it with the tool that wrote it", Err: err}
}

// Source says where bytes of the virtual disk come from.
type Source uint8

// The sources of an Extent.
const (
	FromZeros  Source = iota // nowhere: they are zeros
	FromFile                 // this file
	FromParent               // the same place of the parent's disk
)

// Extent is a half-open run of bytes of the virtual disk with one source. File is set with FromFile only.
type Extent struct {
	Disk DiskOffset
	Len  int64
	From Source
	File FileOffset
}

func (e Extent) joins(n Extent) bool {
	return e.From == n.From && (e.From != FromFile || e.File+FileOffset(e.Len) == n.File)
}

// Extents yields the bytes [off, off+n) of the virtual disk in order, clipped to it, neighbours from one place merged.
func (t *Table) Extents(off DiskOffset, n int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		var run Extent
		end := min(int64(off)+n, t.VirtualSize)
		for at := max(int64(off), 0); at < end; {
			next := t.extentAt(at, end)
			at += next.Len
			if run.Len > 0 && run.joins(next) {
				run.Len += next.Len
				continue
			}
			if run.Len > 0 && !yield(run) {
				return
			}
			run = next
		}
		if run.Len > 0 {
			yield(run)
		}
	}
}

// extentAt is a run that begins at byte at and ends with its block, at end, or earlier.
func (t *Table) extentAt(at, end int64) Extent {
	block := at / t.BlockSize
	in := at % t.BlockSize
	e := Extent{Disk: DiskOffset(at), Len: min(t.BlockSize-in, end-at)}
	switch s := t.entries[block].state(); s {
	case BlockFull:
		e.From, e.File = FromFile, t.entries[block].data()+FileOffset(in)
	case BlockPartial:
		set, n := t.bitRun(block, in)
		e.Len = min(e.Len, n)
		if !set {
			e.From = t.hole()
			break
		}
		e.From, e.File = FromFile, t.entries[block].data()+FileOffset(in)
	case BlockAbsent, BlockEmpty:
		e.From = t.hole()
	}
	return e
}

func (t *Table) hole() Source {
	if t.Differencing {
		return FromParent
	}
	return FromZeros
}

// bitRun says whether the sector at byte in of a partial block is in the file, and for how many bytes on that stays so.
func (t *Table) bitRun(block, in int64) (set bool, n int64) {
	m := t.bits[block]
	bit := func(i int64) bool { return m[i/8]>>(i%8)&1 != 0 }
	first, all := in/t.Sector, int64(len(m))*8
	i := first + 1
	for set = bit(first); i < all && bit(i) == set; {
		i++
	}
	if i == all {
		return set, t.BlockSize - in
	}
	return set, i*t.Sector - in
}

// Allocated is how many bytes of the virtual disk are read from the file.
func (t *Table) Allocated() (n int64) {
	for e := range t.Extents(0, t.VirtualSize) {
		if e.From == FromFile {
			n += e.Len
		}
	}
	return n
}
