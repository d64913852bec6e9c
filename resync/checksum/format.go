package checksum

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// The format of a table file; resync/README.md has the diagram. These
// constants never change: a new format takes a new version.
const (
	headerMagic  = "VRCRCTBL" // at the start of each header slot
	sideMagic    = "VRCRCZER" // at the start of a side list
	slotSize     = 4096       // each header slot has a sector of its own
	entriesStart = 2 * slotSize
	entrySize    = 8
	headerSize   = 64 // bytes of a slot that mean something
	sideHeader   = 48 // bytes of a side list before its block numbers
)

// The version ladder: each rung says what it guarantees; numbers are never
// reused.
const (
	// version1: two header slots, entries of 8 bytes, side list in a file.
	version1 = 1

	newestVersion = version1
)

// maxBlocks bounds the size of a table, so that offsets cannot overflow: a
// disk of 2^52 bytes.
const maxBlocks = 1 << 40

// Why a table could not be opened. Each is wrapped with the path and what was
// found.
var (
	ErrMagic     = errors.New("not a checksum table")
	ErrVersion   = errors.New("checksum table written by a newer version")
	ErrChecksum  = errors.New("checksum table is damaged")
	ErrTruncated = errors.New("checksum table is truncated")
)

// header is what a slot holds.
type header struct {
	serial   uint64 // counts header writes; the higher valid one is current
	position uint64
	blocks   extent.DiskBlock
	id       [16]byte // of this table; its side list carries the same
}

// encode returns the bytes of a slot.
func (h header) encode() []byte {
	p := make([]byte, 0, slotSize)
	p = append(p, headerMagic...)
	p = binary.LittleEndian.AppendUint32(p, newestVersion)
	p = binary.LittleEndian.AppendUint32(p, entriesStart)
	p = binary.LittleEndian.AppendUint64(p, h.serial)
	p = binary.LittleEndian.AppendUint64(p, h.position)
	p = binary.LittleEndian.AppendUint64(p, uint64(h.blocks))
	p = append(p, h.id[:]...)
	p = binary.LittleEndian.AppendUint64(p, uint64(Of(p)))
	return p[:slotSize]
}

// decodeHeader reads a slot. That magic, version and checksum are where they are
// is part of every version, so damage is told from a newer format.
func decodeHeader(p []byte) (header, error) {
	if len(p) < headerSize {
		return header{}, fmt.Errorf("%w: header of %d bytes, expected %d", ErrTruncated, len(p), headerSize)
	}
	if string(p[:8]) != headerMagic {
		return header{}, fmt.Errorf("%w: magic %q, expected %q", ErrMagic, p[:8], headerMagic)
	}
	found, want := Sum(binary.LittleEndian.Uint64(p[headerSize-8:])), Of(p[:headerSize-8])
	if found != want {
		return header{}, fmt.Errorf("%w: header checksum %016x, expected %016x", ErrChecksum, uint64(found), uint64(want))
	}
	version, start := binary.LittleEndian.Uint32(p[8:]), binary.LittleEndian.Uint32(p[12:])
	if version > newestVersion {
		return header{}, fmt.Errorf("%w: version %d, newest known %d", ErrVersion, version, newestVersion)
	}
	blocks := binary.LittleEndian.Uint64(p[32:])
	if version < version1 || start != entriesStart || blocks > maxBlocks {
		return header{}, fmt.Errorf("%w: version %d, entries at %d, %d blocks", ErrChecksum, version, start, blocks)
	}
	h := header{
		serial:   binary.LittleEndian.Uint64(p[16:]),
		position: binary.LittleEndian.Uint64(p[24:]),
		blocks:   extent.DiskBlock(blocks),
		id:       [16]byte(p[40:56]),
	}
	return h, nil
}

// decodeSlots reads both slots and returns the current header. One damaged
// slot is what a power cut in the middle of a header write leaves; the other
// is then the state before. A slot of a newer version refuses the file.
func decodeSlots(p []byte) (header, error) {
	if len(p) < entriesStart {
		return header{}, fmt.Errorf("%w: %d bytes, expected at least %d", ErrTruncated, len(p), entriesStart)
	}
	a, errA := decodeHeader(p[:slotSize])
	b, errB := decodeHeader(p[slotSize:entriesStart])
	switch {
	case errors.Is(errA, ErrVersion):
		return header{}, errA
	case errors.Is(errB, ErrVersion):
		return header{}, errB
	case errA != nil && errB != nil:
		if errors.Is(errA, ErrMagic) { // the slot that still looks like one says more
			return header{}, errB
		}
		return header{}, errA
	case errA != nil:
		return b, nil
	case errB != nil || a.serial > b.serial:
		return a, nil
	}
	return b, nil
}

// encodeSide returns the bytes of a side list: the blocks, in order, whose real
// checksum is 0.
func encodeSide(id [16]byte, blocks []extent.DiskBlock) []byte {
	p := make([]byte, 0, sideHeader+8*len(blocks))
	p = append(p, sideMagic...)
	p = binary.LittleEndian.AppendUint32(p, newestVersion)
	p = binary.LittleEndian.AppendUint32(p, 0)
	p = append(p, id[:]...)
	p = binary.LittleEndian.AppendUint64(p, uint64(len(blocks)))
	p = append(p, make([]byte, 8)...) // the checksum, of everything else
	for _, b := range blocks {
		p = binary.LittleEndian.AppendUint64(p, uint64(b))
	}
	binary.LittleEndian.PutUint64(p[40:], uint64(Of(p)))
	return p
}

// decodeSide reads a side list. It returns ErrChecksum if the list belongs to
// another table: one of the two was exchanged.
func decodeSide(p []byte, id [16]byte) ([]extent.DiskBlock, error) {
	if len(p) < sideHeader {
		return nil, fmt.Errorf("%w: side list of %d bytes, expected %d", ErrTruncated, len(p), sideHeader)
	}
	if string(p[:8]) != sideMagic {
		return nil, fmt.Errorf("%w: side list magic %q, expected %q", ErrMagic, p[:8], sideMagic)
	}
	n := binary.LittleEndian.Uint64(p[32:])
	if n > math.MaxInt32 || uint64(len(p)) != sideHeader+8*n {
		return nil, fmt.Errorf("%w: side list of %d bytes for %d blocks", ErrTruncated, len(p), n)
	}
	found := Sum(binary.LittleEndian.Uint64(p[40:]))
	if want := Update(Update(Of(p[:40]), zeroPage[:8]), p[sideHeader:]); found != want {
		return nil, fmt.Errorf("%w: side list checksum %016x, expected %016x", ErrChecksum, uint64(found), uint64(want))
	}
	if v := binary.LittleEndian.Uint32(p[8:]); v > newestVersion {
		return nil, fmt.Errorf("%w: side list version %d, newest known %d", ErrVersion, v, newestVersion)
	}
	if [16]byte(p[16:32]) != id {
		return nil, fmt.Errorf("%w: side list of table %x, expected %x", ErrChecksum, p[16:32], id)
	}
	blocks := make([]extent.DiskBlock, n)
	for i := range blocks {
		blocks[i] = extent.DiskBlock(binary.LittleEndian.Uint64(p[sideHeader+8*i:]))
	}
	return blocks, nil
}
