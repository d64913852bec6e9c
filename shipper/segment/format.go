package segment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// The format, version 1. All integers are little endian, all checksums CRC-64/NVME. These constants never change: a file
// written with them is at a target for as long as somebody keeps the point. A new layout takes a new Version.
const (
	// Version is the newest version this package reads, and the one it writes. 1: the layout in shipper/README.md.
	Version = 1

	// MaxPayload bounds the payload of a frame: what a reader must hold to read any block.
	MaxPayload = 4 << 20
	// Alignment is what the size of a segment is a multiple of, because a page blob is.
	Alignment = 512
	// MaxName bounds each of the two names in the header, in bytes.
	MaxName = 4096

	headerMagic  = "vhdrseg\n"
	frameMagic   = "vhfr"
	indexMagic   = "vhix"
	trailerMagic = "vhdrend\n"

	headerFixed   = 88 // up to the names; then the names, then 8 bytes of checksum
	frameFixed    = 40 // up to the extents; then those, the block checksums, 8 bytes of checksum
	indexFixed    = 24 // up to the tables
	frameEntryLen = 24
	dataEntryLen  = 12
	zeroEntryLen  = 16
	trailerLen    = 64
	sumLen        = 8

	codecStored = 0
	codecZstd   = 1
)

const (
	maxFrameBlocks = MaxPayload / extent.BlockSize
	maxHeader      = headerFixed + 2*MaxName + sumLen
	maxFrameHeader = frameFixed + maxFrameBlocks*(dataEntryLen+sumLen) + sumLen
	// maxBlock keeps every byte offset of a disk an int64.
	maxBlock = extent.DiskBlock(math.MaxInt64 / extent.BlockSize)
)

var le = binary.LittleEndian

// Header says what a segment is of. Times are not in it: the record has them.
type Header struct {
	VM, Disk    string   // names or ids as the writer knows them, at most MaxName bytes each
	Generation  uint64   // of the writer
	Epoch       uint64   // that this segment is of
	Previous    uint64   // the epoch before it in the VM's chain, 0 for none
	EpochUUID   [16]byte // the same in all segments of an epoch
	UUID        [16]byte // this segment's own
	VirtualSize int64    // bytes of the virtual disk at the seal
}

// diskBlocks is the number of blocks of the disk, the last one perhaps partial.
func (h Header) diskBlocks() extent.DiskBlock {
	n := h.VirtualSize / extent.BlockSize
	if h.VirtualSize%extent.BlockSize != 0 {
		n++
	}
	return extent.DiskBlock(n)
}

func (h Header) check() error {
	if len(h.VM) > MaxName || len(h.Disk) > MaxName {
		return fmt.Errorf("%w: VM name of %d bytes, disk name of %d, at most %d", ErrName, len(h.VM), len(h.Disk), MaxName)
	}
	if h.VirtualSize < 0 {
		return fmt.Errorf("%w: virtual size %d", ErrBounds, h.VirtualSize)
	}
	return nil
}

func (h Header) encode() []byte {
	n := headerFixed + len(h.VM) + len(h.Disk) + sumLen
	b := make([]byte, 0, n)
	b = append(b, headerMagic...)
	b = le.AppendUint16(b, Version)
	b = le.AppendUint16(b, 0)
	b = le.AppendUint32(b, uint32(n))
	b = le.AppendUint64(b, h.Generation)
	b = le.AppendUint64(b, h.Epoch)
	b = le.AppendUint64(b, h.Previous)
	b = append(b, h.EpochUUID[:]...)
	b = append(b, h.UUID[:]...)
	b = le.AppendUint64(b, uint64(h.VirtualSize))
	b = le.AppendUint16(b, uint16(len(h.VM)))
	b = le.AppendUint16(b, uint16(len(h.Disk)))
	b = le.AppendUint32(b, 0)
	b = append(b, h.VM...)
	b = append(b, h.Disk...)
	return appendSum(b)
}

// headerLength checks what must be right before the rest of a header may be read, and returns how long it is.
// b holds at least headerFixed bytes.
func headerLength(b []byte) (int, error) {
	if string(b[:8]) != headerMagic {
		return 0, bad(ErrMagic, "header", 0, "found %q", b[:8])
	}
	if v := le.Uint16(b[8:]); v > Version {
		return 0, bad(ErrVersion, "header", 8, "version %d, this program knows %d", v, Version)
	} else if v == 0 {
		return 0, bad(ErrMalformed, "header", 8, "version 0")
	}
	n := le.Uint32(b[12:])
	if n < headerFixed+sumLen || n > maxHeader {
		return 0, bad(ErrMalformed, "header", 12, "length %d", n)
	}
	return int(n), nil
}

// decodeHeader takes exactly the bytes that headerLength counted.
func decodeHeader(b []byte) (Header, error) {
	if !sumOK(b) {
		return Header{}, bad(ErrChecksum, "header", 0, "")
	}
	vm, disk := int(le.Uint16(b[80:])), int(le.Uint16(b[82:]))
	if le.Uint16(b[10:]) != 0 || le.Uint32(b[84:]) != 0 || vm > MaxName || disk > MaxName || headerFixed+vm+disk+sumLen != len(b) {
		return Header{}, bad(ErrMalformed, "header", 0, "names of %d and %d bytes in %d", vm, disk, len(b))
	}
	h := Header{
		Generation: le.Uint64(b[16:]), Epoch: le.Uint64(b[24:]), Previous: le.Uint64(b[32:]),
		EpochUUID: [16]byte(b[40:56]), UUID: [16]byte(b[56:72]),
		VirtualSize: int64(le.Uint64(b[72:])),
		VM:          string(b[headerFixed : headerFixed+vm]),
		Disk:        string(b[headerFixed+vm : headerFixed+vm+disk]),
	}
	if h.VirtualSize < 0 {
		return Header{}, bad(ErrMalformed, "header", 72, "virtual size %d", h.VirtualSize)
	}
	return h, nil
}

// frameEntry is a frame as the index has it: enough to read the frame with one request.
type frameEntry struct {
	offset  int64
	stored  int // bytes of payload as stored
	extents int
	blocks  int
	codec   byte
	first   int64 // number of the frame's first data extent; not in the file
}

func (f frameEntry) headerLen() int {
	return frameFixed + f.extents*dataEntryLen + f.blocks*sumLen + sumLen
}
func (f frameEntry) length() int  { return f.headerLen() + f.stored }
func (f frameEntry) payload() int { return f.blocks * extent.BlockSize }
func (f frameEntry) end() int64   { return f.offset + int64(f.length()) }

func (f frameEntry) append(b []byte) []byte {
	b = le.AppendUint64(b, uint64(f.offset))
	b = le.AppendUint32(b, uint32(f.stored))
	b = le.AppendUint32(b, uint32(f.extents))
	b = le.AppendUint32(b, uint32(f.blocks))
	return le.AppendUint32(b, uint32(f.codec))
}

// decodeFrameEntry refuses what no frame can be, so that whoever allocates by an entry allocates at most MaxPayload.
func decodeFrameEntry(b []byte) (frameEntry, bool) {
	stored, extents, blocks, codec := le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:]), le.Uint32(b[20:])
	if blocks == 0 || blocks > maxFrameBlocks || extents == 0 || extents > blocks || codec > codecZstd {
		return frameEntry{}, false
	}
	f := frameEntry{offset: int64(le.Uint64(b)), stored: int(stored), extents: int(extents), blocks: int(blocks), codec: byte(codec)}
	full := uint32(f.payload())
	return f, stored == full && codec == codecStored || stored > 0 && stored < full && codec == codecZstd
}

// appendFrameHeader encodes a frame's header. extents is already encoded; sum is that of the stored bytes.
func appendFrameHeader(b []byte, f frameEntry, extents []byte, sums []checksum.Sum, sum checksum.Sum) []byte {
	start := len(b)
	b = append(b, frameMagic...)
	b = le.AppendUint32(b, uint32(f.headerLen()))
	b = le.AppendUint32(b, uint32(f.codec))
	b = le.AppendUint32(b, uint32(f.extents))
	b = le.AppendUint32(b, uint32(f.blocks))
	b = le.AppendUint32(b, uint32(f.stored))
	b = le.AppendUint64(b, uint64(f.offset))
	b = le.AppendUint64(b, uint64(sum))
	b = append(b, extents...)
	for _, s := range sums {
		b = le.AppendUint64(b, uint64(s))
	}
	return le.AppendUint64(b, uint64(checksum.Of(b[start:])))
}

// checkFrameHeader compares a frame's own header with what the index says of it, extents included.
func checkFrameHeader(b []byte, f frameEntry, extents []byte, part string) error {
	switch {
	case !sumOK(b):
		return bad(ErrChecksum, part, f.offset, "header")
	case string(b[:4]) != frameMagic:
		return bad(ErrMalformed, part, f.offset, "found %q", b[:4])
	case int(le.Uint32(b[4:])) != f.headerLen() || le.Uint32(b[8:]) != uint32(f.codec) || int(le.Uint32(b[12:])) != f.extents ||
		int(le.Uint32(b[16:])) != f.blocks || int(le.Uint32(b[20:])) != f.stored || int64(le.Uint64(b[24:])) != f.offset:
		return bad(ErrMalformed, part, f.offset, "frame and index disagree")
	case !bytes.Equal(b[frameFixed:frameFixed+len(extents)], extents):
		return bad(ErrMalformed, part, f.offset, "extents of frame and index disagree")
	}
	return nil
}

// frameSums appends the block checksums in a checked frame header to dst.
func frameSums(dst []checksum.Sum, b []byte, f frameEntry) []checksum.Sum {
	at := frameFixed + f.extents*dataEntryLen
	for range f.blocks {
		dst = append(dst, checksum.Sum(le.Uint64(b[at:])))
		at += sumLen
	}
	return dst
}

// frameSum is the checksum of the stored bytes in a checked frame header.
func frameSum(b []byte) checksum.Sum { return checksum.Sum(le.Uint64(b[32:])) }

func appendData(b []byte, r extent.Range[extent.DiskBlock]) []byte {
	b = le.AppendUint64(b, uint64(r.Start))
	return le.AppendUint32(b, uint32(r.Len()))
}

func decodeData(b []byte) extent.Range[extent.DiskBlock] {
	start := extent.DiskBlock(le.Uint64(b))
	return extent.Range[extent.DiskBlock]{Start: start, End: start + extent.DiskBlock(le.Uint32(b[8:]))}
}

func appendZero(b []byte, r extent.Range[extent.DiskBlock]) []byte {
	b = le.AppendUint64(b, uint64(r.Start))
	return le.AppendUint64(b, uint64(r.Len()))
}

func decodeZero(b []byte) extent.Range[extent.DiskBlock] {
	start := extent.DiskBlock(le.Uint64(b))
	return extent.Range[extent.DiskBlock]{Start: start, End: start + extent.DiskBlock(le.Uint64(b[8:]))}
}

// trailer is the last thing in a file, so that a file that lacks its end lacks this.
type trailer struct {
	size      int64 // of the file
	index     int64 // offset
	indexLen  int64
	indexSum  checksum.Sum
	headerSum checksum.Sum // the checksum at the header's end: header and trailer are of one file
	payload   int64        // bytes in all frames, uncompressed
}

func (t trailer) append(b []byte) []byte {
	b = append(b, trailerMagic...)
	b = le.AppendUint64(b, uint64(t.size))
	b = le.AppendUint64(b, uint64(t.index))
	b = le.AppendUint64(b, uint64(t.indexLen))
	b = le.AppendUint64(b, uint64(t.indexSum))
	b = le.AppendUint64(b, uint64(t.headerSum))
	b = le.AppendUint64(b, uint64(t.payload))
	return le.AppendUint64(b, uint64(checksum.Of(b[len(b)-trailerLen+sumLen:])))
}

// decodeTrailer takes the last trailerLen bytes of a file of the given size.
func decodeTrailer(b []byte, size int64) (trailer, error) {
	at := size - trailerLen
	if string(b[:8]) != trailerMagic {
		return trailer{}, bad(ErrTruncated, "trailer", at, "no trailer at the end")
	}
	if !sumOK(b) {
		return trailer{}, bad(ErrChecksum, "trailer", at, "")
	}
	t := trailer{
		size: int64(le.Uint64(b[8:])), index: int64(le.Uint64(b[16:])), indexLen: int64(le.Uint64(b[24:])),
		indexSum: checksum.Sum(le.Uint64(b[32:])), headerSum: checksum.Sum(le.Uint64(b[40:])), payload: int64(le.Uint64(b[48:])),
	}
	if t.size != size {
		return trailer{}, bad(ErrTruncated, "trailer", at, "size %d, written as %d", size, t.size)
	}
	// Subtractions only: every term is checked against the size before it is used, so nothing overflows.
	if t.index < headerFixed+sumLen || t.index > at || t.indexLen < indexFixed || t.indexLen > at-t.index || at-t.index-t.indexLen >= Alignment {
		return trailer{}, bad(ErrMalformed, "trailer", at, "index of %d bytes at %d in a file of %d", t.indexLen, t.index, size)
	}
	return t, nil
}

// padding is how many zero bytes bring n plus a trailer to a multiple of Alignment.
func padding(n int64) int { return int((Alignment - (n+trailerLen)%Alignment) % Alignment) }

func appendSum(b []byte) []byte { return le.AppendUint64(b, uint64(checksum.Of(b))) }

func sumOK(b []byte) bool {
	n := len(b) - sumLen
	return checksum.Sum(le.Uint64(b[n:])) == checksum.Of(b[:n])
}
