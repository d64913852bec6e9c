package image

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
)

const (
	sectorSize = 512
	mebibyte   = 1 << 20

	// FooterSize is the length of a VHD footer, in bytes.
	FooterSize = 512

	footerCookie  = "conectix"
	footerVersion = 0x00010000
	noDataOffset  = ^uint64(0)
)

// DiskType is the type field of a VHD footer.
type DiskType uint32

// The types of VHDs that exist (specification, "Hard Disk Footer Format").
const (
	TypeFixed        DiskType = 2
	TypeDynamic      DiskType = 3
	TypeDifferencing DiskType = 4
)

// Offsets of the fields of a footer, in bytes. Never change: this is the format.
const (
	offFeatures       = 8
	offVersion        = 12
	offDataOffset     = 16
	offTime           = 24
	offCreator        = 28
	offCreatorVersion = 32
	offCreatorOS      = 36
	offOriginalSize   = 40
	offCurrentSize    = 48
	offGeometry       = 56
	offType           = 60
	offChecksum       = 64
	offID             = 68
	offSavedState     = 84
)

// epoch2000 is second 0 of a VHD time stamp.
var epoch2000 = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Footer is a decoded VHD footer. CurrentSize is the size of the virtual disk; Geometry never is.
type Footer struct {
	Features       uint32
	DataOffset     uint64 // all ones in a fixed VHD
	Created        time.Time
	Creator        [4]byte
	CreatorVersion uint32
	CreatorOS      [4]byte
	OriginalSize   int64 // bytes
	CurrentSize    int64 // bytes
	Geometry       Geometry
	Type           DiskType
	ID             [16]byte
	SavedState     bool
}

// ParseFooter decodes and checks the first 512 bytes of b: cookie, checksum, version, type and the range of the
// current size. A missing cookie is ErrNotYet, everything else ErrInvalid, in an *Error.
func ParseFooter(b []byte) (Footer, error) {
	if len(b) < FooterSize {
		return Footer{}, &Error{Field: "footer", Found: fmt.Sprintf("%d bytes", len(b)), Expected: "512 bytes", Err: ErrNotYet}
	}
	b = b[:FooterSize]
	if err := checkFooter(b); err != nil {
		return Footer{}, err
	}
	be := binary.BigEndian
	f := Footer{
		Features:       be.Uint32(b[offFeatures:]),
		DataOffset:     be.Uint64(b[offDataOffset:]),
		Created:        epoch2000.Add(time.Duration(be.Uint32(b[offTime:])) * time.Second),
		CreatorVersion: be.Uint32(b[offCreatorVersion:]),
		OriginalSize:   int64(be.Uint64(b[offOriginalSize:])),
		CurrentSize:    int64(be.Uint64(b[offCurrentSize:])),
		Geometry:       Geometry{be.Uint16(b[offGeometry:]), b[offGeometry+2], b[offGeometry+3]},
		Type:           DiskType(be.Uint32(b[offType:])),
		SavedState:     b[offSavedState] != 0,
	}
	copy(f.Creator[:], b[offCreator:])
	copy(f.CreatorOS[:], b[offCreatorOS:])
	copy(f.ID[:], b[offID:])
	return f, nil
}

func checkFooter(b []byte) error {
	be := binary.BigEndian
	if !bytes.HasPrefix(b, []byte(footerCookie)) {
		return &Error{Field: "cookie", Found: fmt.Sprintf("%q", b[:8]), Expected: fmt.Sprintf("%q", footerCookie), Err: ErrNotYet,
			Hint: "no VHD footer here: the file is still being written, was cut, or is not a VHD"}
	}
	if got, want := be.Uint32(b[offChecksum:]), footerChecksum(b); got != want {
		return &Error{Field: "checksum", Offset: offChecksum, Found: fmt.Sprintf("%#08x", got), Expected: fmt.Sprintf("%#08x", want),
			Hint: "the footer is damaged", Err: ErrChecksum}
	}
	if got := be.Uint32(b[offVersion:]); got != footerVersion {
		return &Error{Field: "version", Offset: offVersion, Found: fmt.Sprintf("%#08x", got), Expected: fmt.Sprintf("%#08x", footerVersion),
			Hint: "written by a newer tool?", Err: ErrVersion}
	}
	if got := DiskType(be.Uint32(b[offType:])); got < TypeFixed || got > TypeDifferencing {
		return invalid("type", offType, fmt.Sprint(uint32(got)), "2, 3 or 4", "")
	}
	if got := be.Uint64(b[offCurrentSize:]); got == 0 || got > 1<<62 || got%sectorSize != 0 {
		return invalid("current size", offCurrentSize, fmt.Sprint(got), "a whole number of 512-byte sectors", "")
	}
	return nil
}

func invalid(field string, off FileOffset, found, expected, hint string) *Error {
	return &Error{Field: field, Offset: off, Found: found, Expected: expected, Hint: hint, Err: ErrInvalid}
}

// footerChecksum is the ones' complement of the sum of all bytes, the checksum field itself taken as zero.
func footerChecksum(b []byte) uint32 {
	var sum uint32
	for i, c := range b[:FooterSize] {
		if i < offChecksum || i >= offChecksum+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// FixedFooter returns the footer of a fixed VHD whose virtual disk has virtualSize bytes, a multiple of 512.
//
// The creator is "win ", as Hyper-V writes it: QEMU before 10 multiplies the geometry for creators it does not know,
// and no geometry of the specification's algorithm describes every whole number of MiB. With it every reader takes
// the current size. Times before 2000 become second 0.
func FixedFooter(virtualSize int64, id [16]byte, created time.Time) [FooterSize]byte {
	var b [FooterSize]byte
	be := binary.BigEndian
	copy(b[:], footerCookie)
	be.PutUint32(b[offFeatures:], 2)
	be.PutUint32(b[offVersion:], footerVersion)
	be.PutUint64(b[offDataOffset:], noDataOffset)
	be.PutUint32(b[offTime:], vhdTime(created))
	copy(b[offCreator:], "win ")
	be.PutUint32(b[offCreatorVersion:], 0x000a0000)
	copy(b[offCreatorOS:], "Wi2k")
	be.PutUint64(b[offOriginalSize:], uint64(virtualSize))
	be.PutUint64(b[offCurrentSize:], uint64(virtualSize))
	g := geometryOf(virtualSize)
	be.PutUint16(b[offGeometry:], g.Cylinders)
	b[offGeometry+2], b[offGeometry+3] = g.Heads, g.Sectors
	be.PutUint32(b[offType:], uint32(TypeFixed))
	copy(b[offID:], id[:])
	be.PutUint32(b[offChecksum:], footerChecksum(b[:]))
	return b
}

func vhdTime(t time.Time) uint32 {
	s := t.Unix() - epoch2000.Unix()
	return uint32(min(max(s, 0), 1<<32-1))
}

// geometryOf is the specification's appendix "CHS Calculation".
func geometryOf(virtualSize int64) Geometry {
	sectors := min(virtualSize/sectorSize, 65535*16*255)
	if sectors >= 65535*16*63 {
		return Geometry{uint16(sectors / 255 / 16), 16, 255}
	}
	perTrack, heads := int64(17), int64(0)
	tracks := sectors / perTrack
	heads = max((tracks+1023)/1024, 4)
	if tracks >= heads*1024 || heads > 16 {
		perTrack, heads = 31, 16
		tracks = sectors / perTrack
	}
	if tracks >= heads*1024 {
		perTrack, heads = 63, 16
		tracks = sectors / perTrack
	}
	return Geometry{uint16(tracks / heads), uint8(heads), uint8(perTrack)}
}

// PaddedSize is virtualSize rounded up to whole MiB, what Azure asks of a disk.
func PaddedSize(virtualSize int64) int64 {
	return (virtualSize + mebibyte - 1) / mebibyte * mebibyte
}

// ReplicaSize is the size in bytes of the fixed VHD that replicates a virtual disk: PaddedSize and the footer.
func ReplicaSize(virtualSize int64) int64 { return PaddedSize(virtualSize) + FooterSize }

// creatorString is the creator application as text, for status.
func creatorString(c [4]byte) string { return strings.TrimRight(string(c[:]), "\x00 ") }
