package vhdx

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"unicode/utf16"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// Places and sizes of the format in bytes. Never change.
const (
	mebibyte = 1 << 20
	page     = 4096 // unit of the log

	signature       = "vhdxfile"
	headerAt        = 64 << 10
	otherHeaderAt   = 128 << 10
	headerSize      = 4096
	regionAt        = 192 << 10
	otherRegionAt   = 256 << 10
	tableSize       = 64 << 10 // of a region table and of the metadata table
	tableEntry      = 32
	maxEntries      = 2047
	reservedTop     = mebibyte // what lies before is headers
	entrySize       = 8        // of the block table
	sectorsPerChunk = 1 << 23
	version         = 1
	logVersion      = 0

	maxVirtual = 64 << 40
	maxBlocks  = 8 << 20 // of a disk whose table is read: the largest replica, 8 TiB, in the smallest blocks
	maxItem    = mebibyte
	maxLog     = 64 * mebibyte // what is read at once; Hyper-V and QEMU make logs of 1 MiB
)

// Offsets of the fields of a header.
const (
	offSequence   = 8
	offFileWrite  = 16
	offDataWrite  = 32
	offLogGUID    = 48
	offLogVersion = 64
	offVersion    = 66
	offLogLength  = 68
	offLogOffset  = 72
)

// Payload states in the block table, and the one of a sector bitmap that exists.
const (
	stateNotPresent = 0
	stateUndefined  = 1
	stateZero       = 2
	stateUnmapped   = 3
	stateFull       = 6
	statePartial    = 7
)

// Flags of the file parameters, of region and of metadata entries.
const (
	flagLeaveAllocated = 1
	flagHasParent      = 2
	flagRegionRequired = 1
	flagItemRequired   = 4
)

// guid is 16 bytes in the order of the file.
type guid [16]byte

func mustGUID(text string) guid {
	g, ok := parseGUID(text)
	if !ok {
		panic("vhdx: not a GUID: " + text)
	}
	return g
}

// parseGUID reads 00112233-4455-6677-8899-aabbccddeeff, with or without braces.
func parseGUID(text string) (g guid, ok bool) {
	text = string(bytes.Trim([]byte(text), "{}"))
	var b [16]byte
	var parts [5]string
	if len(text) != 36 {
		return guid{}, false
	}
	if n, err := fmt.Sscanf(text, "%8s-%4s-%4s-%4s-%12s", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4]); n != 5 || err != nil {
		return guid{}, false
	}
	var raw []byte
	if n, err := fmt.Sscanf(parts[0]+parts[1]+parts[2]+parts[3]+parts[4], "%x", &raw); n != 1 || err != nil || len(raw) != 16 {
		return guid{}, false
	}
	copy(b[:], raw)
	return swapped(b), true
}

// swapped turns a GUID from the order of the file into the order of its text, and back.
func swapped(b [16]byte) guid {
	return guid{b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]}
}

func (g guid) String() string {
	s := swapped(g)
	return fmt.Sprintf("%x-%x-%x-%x-%x", s[:4], s[4:6], s[6:8], s[8:10], s[10:])
}

// GUIDText is a GUID of a file as tools print it: 00112233-4455-6677-8899-aabbccddeeff.
func GUIDText(id [16]byte) string { return guid(id).String() }

var (
	regionTable    = mustGUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
	regionMetadata = mustGUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
	itemParameters = mustGUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
	itemSize       = mustGUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
	itemID         = mustGUID("beca12ab-b2e6-4523-93ef-c309e000c746")
	itemLogical    = mustGUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
	itemPhysical   = mustGUID("cda348c7-445d-4471-9cc9-e9885251c556")
	itemLocator    = mustGUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")
	locatorVHDX    = mustGUID("b04aefb7-d19e-4a81-b789-25b8e9445913")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the CRC-32C of b with the four bytes at 4 taken as zero, where every structure of the format has its own.
func checksum(b []byte) uint32 {
	c := crc32.Update(0, castagnoli, b[:4])
	c = crc32.Update(c, castagnoli, make([]byte, 4))
	return crc32.Update(c, castagnoli, b[8:])
}

// checkStructure holds b, which lies at off, against its signature and its checksum.
func checkStructure(what, sign string, b []byte, off image.FileOffset) error {
	if !bytes.HasPrefix(b, []byte(sign)) {
		return fail(what+" signature", off, fmt.Sprintf("%q", b[:4]), fmt.Sprintf("%q", sign), image.ErrMagic)
	}
	if got, want := binary.LittleEndian.Uint32(b[4:]), checksum(b); got != want {
		return fail(what+" checksum", off+4, fmt.Sprintf("%#08x", got), fmt.Sprintf("%#08x", want), image.ErrChecksum)
	}
	return nil
}

// header is a decoded header.
type header struct {
	at         image.FileOffset
	sequence   uint64
	dataWrite  guid
	logVersion uint16
	logGUID    guid
	log        image.FileRange
}

func parseHeader(b []byte, off image.FileOffset) (header, error) {
	le := binary.LittleEndian
	if err := checkStructure("header", "head", b, off); err != nil {
		return header{}, err
	}
	if v := le.Uint16(b[offVersion:]); v != version {
		return header{}, fail("header version", off+offVersion, fmt.Sprint(v), fmt.Sprint(version), image.ErrVersion)
	}
	h := header{at: off, sequence: le.Uint64(b[offSequence:]), logVersion: le.Uint16(b[offLogVersion:])}
	copy(h.dataWrite[:], b[offDataWrite:])
	copy(h.logGUID[:], b[offLogGUID:])
	at, n := le.Uint64(b[offLogOffset:]), le.Uint32(b[offLogLength:])
	if at%mebibyte != 0 || at < reservedTop || at > 1<<62 || n%mebibyte != 0 {
		return header{}, fail("log offset", off+offLogOffset, fmt.Sprintf("%d bytes at %d", n, at), "whole MiB behind the headers", image.ErrInvalid)
	}
	h.log = span("log", image.FileOffset(at), int64(n))
	return h, nil
}

func span(name string, at image.FileOffset, n int64) image.FileRange {
	return image.FileRange{Name: name, Start: at, End: at + image.FileOffset(n)}
}

// text decodes UTF-16LE.
func text(b []byte) string {
	units := make([]uint16, len(b)/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(b[2*i:])
	}
	return string(utf16.Decode(units))
}

func fail(field string, off image.FileOffset, found, expected string, err error) *image.Error {
	return &image.Error{Field: field, Offset: off, Found: found, Expected: expected, Err: err}
}
