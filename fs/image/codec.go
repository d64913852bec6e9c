package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// An encoded table, all numbers little-endian. Never change; a new version gets a new number.
//
//	 0  magic "vhdrtabl"       8
//	 8  version, 1             4
//	12  format, see kinds      4
//	16  virtual size, block size, sector, file size, table offset, entry size, chunk ratio, bitmap ahead: 8 each
//	80  parent                16
//	96  1 if differencing      4
//	100 number of fixed ranges, sector bitmap places, blocks with bits, replayed ranges: 4 each
//	116 fixed ranges: start 8, end 8, length of the name 1, name
//	    entries, one a block: 8 (state in the low 9 bits, offset of the data above)
//	    places of sector bitmaps: 8
//	    blocks with bits: number 8, bits as in the table
//	    replayed ranges: start 8, end 8
const (
	tableMagic   = "vhdrtabl"
	tableVersion = 1
	tableHead    = 116
)

// kinds are the formats by their number in an encoded table. Only ever add at the end.
var kinds = []Format{Raw, VHDFixed, VHDDynamic, VHDDifferencing, VHDXFixed, VHDXDynamic, VHDXDifferencing}

// AppendBinary appends the table in its encoded form. It never fails.
func (t *Table) AppendBinary(b []byte) ([]byte, error) {
	le := binary.LittleEndian
	b = append(b, tableMagic...)
	b = le.AppendUint32(b, tableVersion)
	b = le.AppendUint32(b, uint32(slices.Index(kinds, t.Format)))
	for _, n := range t.numbers() {
		b = le.AppendUint64(b, uint64(*n))
	}
	b = append(b, t.Parent[:]...)
	differing := uint32(0)
	if t.Differencing {
		differing = 1
	}
	for _, n := range []uint32{differing, uint32(len(t.Fixed)), uint32(len(t.chunks)), uint32(len(t.bits)), uint32(len(t.replayed.Ranges()))} {
		b = le.AppendUint32(b, n)
	}
	for _, f := range t.Fixed {
		b = le.AppendUint64(le.AppendUint64(b, uint64(f.Start)), uint64(f.End))
		b = append(append(b, byte(len(f.Name))), f.Name...)
	}
	for _, e := range t.entries {
		b = le.AppendUint64(b, uint64(e))
	}
	for _, at := range t.chunks {
		b = le.AppendUint64(b, uint64(at))
	}
	for _, block := range t.order { // of one table always in the same order
		if m := t.bits[int64(block)]; m != nil {
			b = append(le.AppendUint64(b, uint64(block)), m...)
		}
	}
	for _, r := range t.replayed.Ranges() {
		b = le.AppendUint64(le.AppendUint64(b, uint64(r.Start)), uint64(r.End))
	}
	return b, nil
}

// numbers are the sizes and offsets of a shape in the order of the encoded form.
func (t *Table) numbers() []*int64 {
	return []*int64{&t.VirtualSize, &t.BlockSize, &t.Sector, &t.FileSize, (*int64)(&t.TableOffset), &t.EntrySize, &t.ChunkRatio, &t.BitmapAhead}
}

// Equal says whether two tables say the same of their files.
func (t *Table) Equal(o *Table) bool {
	same := func(a, b *int64) bool { return *a == *b }
	return t.Format == o.Format && t.Parent == o.Parent && t.Differencing == o.Differencing && slices.EqualFunc(t.numbers(), o.numbers(), same) &&
		slices.Equal(t.Fixed, o.Fixed) && slices.Equal(t.entries, o.entries) && slices.Equal(t.chunks, o.chunks) &&
		maps.EqualFunc(t.bits, o.bits, bytes.Equal) && slices.Equal(t.replayed.Ranges(), o.replayed.Ranges())
}

// DecodeTable reads an encoded table. It takes no memory that b is too short for, and checks what a Builder checks. Errors are
// around ErrMagic, ErrVersion, ErrTruncated or ErrInvalid.
func DecodeTable(b []byte) (*Table, error) {
	le := binary.LittleEndian
	switch {
	case len(b) < tableHead && bytes.HasPrefix([]byte(tableMagic), b[:min(len(b), 8)]):
		return nil, tableError("length", len(b), fmt.Sprintf("at least %d", tableHead), ErrTruncated)
	case !bytes.HasPrefix(b, []byte(tableMagic)):
		return nil, tableError("magic", fmt.Sprintf("%q", b[:min(len(b), 8)]), tableMagic, ErrMagic)
	case len(b) < tableHead:
		return nil, tableError("length", len(b), fmt.Sprintf("at least %d", tableHead), ErrTruncated)
	case le.Uint32(b[8:]) != tableVersion:
		return nil, tableError("version", le.Uint32(b[8:]), fmt.Sprint(tableVersion), ErrVersion)
	case le.Uint32(b[12:]) >= uint32(len(kinds)):
		return nil, tableError("format", le.Uint32(b[12:]), "one that is known", ErrInvalid)
	}
	d := &tableDecoder{rest: b[tableHead:]}
	d.t.Format = kinds[le.Uint32(b[12:])]
	for i, n := range d.t.numbers() {
		*n = int64(le.Uint64(b[16+8*i:]))
	}
	copy(d.t.Parent[:], b[80:])
	d.t.Differencing = le.Uint32(b[96:]) == 1
	if err := d.t.checkShape(); err != nil {
		return nil, err
	}
	return d.decode(le.Uint32(b[100:]), le.Uint32(b[104:]), le.Uint32(b[108:]), le.Uint32(b[112:]))
}

// checkShape refuses what no Builder's caller would ask for.
func (s Shape) checkShape() error {
	const most = 1 << 50 // bytes; far above every format's limits, and nothing computed with it overflows
	switch {
	case s.VirtualSize <= 0 || s.VirtualSize > most || s.FileSize < 0 || s.FileSize > most:
		return tableError("sizes", fmt.Sprintf("%d and %d", s.VirtualSize, s.FileSize), "sizes of a disk", ErrInvalid)
	case s.Sector != 512 && s.Sector != 4096:
		return tableError("sector", s.Sector, "512 or 4096", ErrInvalid)
	case s.BlockSize < s.Sector || s.BlockSize%s.Sector != 0 || s.BlockSize > most:
		return tableError("block size", s.BlockSize, "whole sectors", ErrInvalid)
	case s.TableOffset < 0 || s.TableOffset > most || s.EntrySize < 0 || s.EntrySize > 8 || s.ChunkRatio < 0 || s.BitmapAhead < 0 || s.BitmapAhead > most:
		return tableError("places", "impossible", "offsets of a file", ErrInvalid)
	}
	return nil
}

// tableDecoder takes an encoded table apart. After its end everything is zero and short is set.
type tableDecoder struct {
	t     Table
	rest  []byte
	short bool
}

func (d *tableDecoder) bytes(n int64) []byte {
	if n > int64(len(d.rest)) {
		d.short = true
		return nil
	}
	b := d.rest[:n]
	d.rest = d.rest[n:]
	return b
}

func (d *tableDecoder) number() int64 {
	if b := d.bytes(8); b != nil {
		return int64(binary.LittleEndian.Uint64(b))
	}
	return 0
}

func (d *tableDecoder) decode(fixed, chunks, partial, replayed uint32) (*Table, error) {
	for range fixed {
		f := FileRange{Start: FileOffset(d.number()), End: FileOffset(d.number())}
		if n := d.bytes(1); n != nil {
			f.Name = string(d.bytes(int64(n[0])))
		}
		if d.short || f.Start < 0 || f.End < f.Start {
			return nil, d.failed("fixed range")
		}
		d.t.Fixed = append(d.t.Fixed, f)
	}
	if d.t.Blocks() > int64(len(d.rest))/8 {
		return nil, tableError("entries", len(d.rest), fmt.Sprintf("%d blocks", d.t.Blocks()), ErrTruncated)
	}
	for range d.t.Blocks() {
		e := entry(d.number())
		if s := e.state(); s > BlockEmpty || !e.allocated() && e.data() != 0 {
			return nil, tableError("entry", uint64(e), "a known state", ErrInvalid)
		}
		d.t.entries = append(d.t.entries, e)
	}
	for range chunks {
		at := FileOffset(d.number())
		if d.short || at < 0 || int64(at) > d.t.FileSize {
			return nil, d.failed("sector bitmap")
		}
		d.t.chunks = append(d.t.chunks, at)
	}
	if err := d.partial(partial); err != nil {
		return nil, err
	}
	for range replayed {
		r := extent.Range[extent.FileBlock]{Start: extent.FileBlock(d.number()), End: extent.FileBlock(d.number())}
		if d.short || r.Start < 0 || r.Empty() || r.End > 1<<40 {
			return nil, d.failed("replayed range")
		}
		d.t.replayed.Add(r)
	}
	if len(d.rest) > 0 {
		return nil, tableError("length", len(d.rest), "nothing behind the last range", ErrInvalid)
	}
	return (&Builder{t: d.t}).Table()
}

// partial reads the bits of the blocks that are partly there: of these and no others, and neither all nor none.
func (d *tableDecoder) partial(n uint32) error {
	d.t.bits = map[int64][]byte{}
	for range n {
		block := d.number()
		if d.short || block < 0 || block >= d.t.Blocks() || d.t.entries[block].state() != BlockPartial || d.t.bits[block] != nil {
			return d.failed("bits of a block")
		}
		m := d.bytes(d.t.maskBytes(block))
		if d.short {
			return d.failed("bits of a block")
		}
		e := d.t.entries[block]
		(&Builder{t: d.t}).Partial(block, e.data(), m)
		if d.t.entries[block] != e || !bytes.Equal(d.t.bits[block], m) {
			return tableError("bits of a block", block, "some of its sectors", ErrInvalid)
		}
	}
	for i, e := range d.t.entries {
		if e.state() == BlockPartial && d.t.bits[int64(i)] == nil {
			return tableError("bits of a block", i, "there", ErrInvalid)
		}
	}
	return nil
}

func (d *tableDecoder) failed(field string) error {
	if d.short {
		return tableError(field, "cut off", "whole", ErrTruncated)
	}
	return tableError(field, "impossible", "a place in the file", ErrInvalid)
}

func tableError(field string, found any, expected string, err error) error {
	return fmt.Errorf("%w: %s of an encoded block table is %v, expected %s", err, field, found, expected)
}
