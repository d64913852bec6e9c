package vhdx

import (
	"encoding/binary"
	"fmt"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// mapper turns the entries of the block table into a Table.
type mapper struct {
	v       *view
	b       *image.Builder
	s       image.Shape
	raw     []byte
	bitmaps []image.FileOffset // of each chunk, 0 for none
	chunk   int64              // whose bitmap is in bitmap
	bitmap  []byte
}

// table reads the block table, and the sector bitmaps of the blocks that are partly there.
func (v *view) table(h header, r regions, m metadata, format image.Format) (*image.Table, error) {
	s := image.Shape{
		Format: format, VirtualSize: m.virtual, BlockSize: m.blockSize, Sector: m.sector, FileSize: v.size,
		Fixed:       []image.FileRange{{Name: "headers", End: reservedTop}, h.log, r.metadata, r.table},
		TableOffset: r.table.Start, EntrySize: entrySize, ChunkRatio: sectorsPerChunk * m.sector / m.blockSize,
	}
	if m.link != nil {
		s.Differencing, s.Parent = true, m.link.ID
	}
	if s.Blocks() > maxBlocks { // a sparse file has room for a table of any size
		return nil, fail("block table", r.table.Start, fmt.Sprintf("%d blocks", s.Blocks()), fmt.Sprintf("at most %d, which are 8 TiB in blocks of 1 MiB", maxBlocks), image.ErrUnsupported)
	}
	chunks := (s.Blocks() + s.ChunkRatio - 1) / s.ChunkRatio
	entries := s.Blocks() + (s.Blocks()-1)/s.ChunkRatio
	if s.Differencing {
		entries = chunks * (s.ChunkRatio + 1)
	}
	if have := int64(r.table.End - r.table.Start); entries*entrySize > have {
		return nil, fail("block table", r.table.Start, fmt.Sprintf("%d bytes", have), fmt.Sprintf("%d entries for %d bytes of disk", entries, m.virtual), image.ErrInvalid)
	}
	raw, err := image.ReadField(v, v.fileSize, "block table", r.table.Start, entries*entrySize)
	if err != nil {
		return nil, err
	}
	p := &mapper{v: v, b: image.NewBuilder(s), s: s, raw: raw, chunk: -1}
	if s.Differencing {
		p.bitmaps = make([]image.FileOffset, chunks)
	}
	for i := range s.Blocks() {
		if err := p.block(i); err != nil {
			return nil, err
		}
	}
	p.b.Chunks(p.bitmaps)
	p.b.Replayed(v.replayed())
	if err := p.b.Check(); err != nil {
		return nil, err
	}
	for i := range s.Blocks() {
		if err := p.partial(i); err != nil {
			return nil, err
		}
	}
	return p.b.Table()
}

// entry is the state and the offset at an index of the block table.
func (p *mapper) entry(index int64) (state uint64, at image.FileOffset) {
	e := binary.LittleEndian.Uint64(p.raw[index*entrySize:])
	return e & 7, image.FileOffset(e >> 20 << 20)
}

func (p *mapper) block(i int64) error {
	state, at := p.entry(i + i/p.s.ChunkRatio)
	switch {
	case state == stateNotPresent:
	case state == stateUndefined, state == stateZero, state == stateUnmapped:
		p.b.Zero(i)
	case state == stateFull:
		p.b.Full(i, at)
	case state == statePartial && p.s.Differencing:
		p.b.Full(i, at)
		return p.chunkBitmap(i / p.s.ChunkRatio)
	default:
		return fail(fmt.Sprintf("block table entry %d", i), p.s.EntryOffset(i), fmt.Sprintf("state %d", state), "0, 1, 2, 3, 6, or 7 in a differencing image", image.ErrInvalid)
	}
	return nil
}

// chunkBitmap finds the sector bitmap of a chunk.
func (p *mapper) chunkBitmap(chunk int64) error {
	if p.bitmaps[chunk] != 0 {
		return nil
	}
	index := chunk*(p.s.ChunkRatio+1) + p.s.ChunkRatio
	state, at := p.entry(index)
	field, place := fmt.Sprintf("sector bitmap entry %d", chunk), p.s.TableOffset+image.FileOffset(index*entrySize)
	switch {
	case state != stateFull:
		return fail(field, place, fmt.Sprintf("state %d", state), "6, since blocks need it", image.ErrInvalid)
	case at < reservedTop:
		return fail(field, place, fmt.Sprintf("a bitmap at %d", at), "behind the headers", image.ErrInvalid)
	}
	p.bitmaps[chunk] = at
	return nil
}

// partial enters which sectors of a block are there, if it is not all or none.
func (p *mapper) partial(i int64) error {
	state, at := p.entry(i + i/p.s.ChunkRatio)
	if state != statePartial {
		return nil
	}
	chunk := i / p.s.ChunkRatio
	if p.chunk != chunk {
		m, err := image.ReadField(p.v, p.s.FileSize, "sector bitmap", p.bitmaps[chunk], mebibyte)
		if err != nil {
			return err
		}
		p.chunk, p.bitmap = chunk, m
	}
	n := p.s.BlockSize / p.s.Sector / 8
	p.b.Partial(i, at, p.bitmap[i%p.s.ChunkRatio*n:][:n])
	return nil
}
