package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

// headSize is how much of a file's beginning the signatures need: VDI's lies at offset 64.
const headSize = 512

// Probe says what the file is. name decides between raw and VHD, the content decides everything else; r must give
// size bytes. It is strict: an image that contradicts itself is an error and not a guess.
//
// Errors are *Error around ErrUnsupported (Info.Format says what it is), ErrNotYet, ErrInvalid or a read error.
// FileSize and Format of the returned Info are set as far as they are known even then.
func Probe(name string, r io.ReaderAt, size int64) (Info, error) {
	p := prober{name: name, r: r, size: size}
	info, err := p.probe()
	info.FileSize = size
	return info, err
}

type prober struct {
	name string
	r    io.ReaderAt
	size int64
}

func (p prober) probe() (Info, error) {
	if p.size <= 0 {
		return Info{}, p.fail("file size", 0, fmt.Sprint(p.size), "more than 0 bytes", "the file is empty", ErrNotYet)
	}
	head, err := p.read(0, min(headSize, p.size))
	if err != nil {
		return Info{}, err
	}
	if f, ok := foreign(head); ok {
		if f == VHDX {
			f = p.vhdxKind()
		}
		return Info{Format: f}, p.fail("signature", 0, "that of "+string(f), "a raw image or a fixed VHD",
			"this format is served but not protected; convert it to a fixed VHD or raw", ErrUnsupported)
	}
	switch strings.ToLower(path.Ext(p.name)) {
	case ".vhd", ".avhd":
		return p.probeVHD(head)
	case ".vhdx", ".avhdx":
		return Info{Format: VHDX}, p.fail("signature", 0, fmt.Sprintf("%q", head[:min(8, len(head))]), `"vhdxfile"`,
			"the file is still being written or is no VHDX", ErrNotYet)
	}
	return p.probeRaw(head)
}

// foreign recognises a format by its first bytes.
func foreign(head []byte) (Format, bool) {
	switch {
	case bytes.HasPrefix(head, []byte("vhdxfile")):
		return VHDX, true
	case bytes.HasPrefix(head, []byte("QFI\xfb")):
		return QCOW2, true
	case bytes.HasPrefix(head, []byte("KDMV")), bytes.HasPrefix(head, []byte("COWD")), bytes.HasPrefix(head, []byte("# Disk DescriptorFile")):
		return VMDK, true
	case len(head) >= 68 && binary.LittleEndian.Uint32(head[64:]) == 0xbeda107f:
		return VDI, true
	}
	return "", false
}

// probeVHD wants a footer in the last sector. A dynamic or differencing image is recognised by either copy.
func (p prober) probeVHD(head []byte) (Info, error) {
	if f, err := ParseFooter(head); err == nil && f.Type != TypeFixed {
		return p.unsupportedVHD(f, 0)
	}
	if p.size < FooterSize {
		return Info{Format: VHDFixed}, p.fail("file size", 0, fmt.Sprint(p.size), "at least 512 bytes", "the file is still being written", ErrNotYet)
	}
	base := FileOffset(p.size - FooterSize)
	b, err := p.read(base, FooterSize)
	if err != nil {
		return Info{Format: VHDFixed}, err
	}
	f, err := ParseFooter(b)
	if fe := (*Error)(nil); errors.As(err, &fe) {
		return Info{Format: VHDFixed}, p.explain(fe.at(p.name, base))
	}
	if f.Type != TypeFixed {
		return p.unsupportedVHD(f, base)
	}
	return p.fixed(f, base)
}

func (p prober) fixed(f Footer, base FileOffset) (Info, error) {
	info := Info{Format: VHDFixed, VirtualSize: f.CurrentSize, ID: f.ID, Geometry: f.Geometry,
		Creator: creatorString(f.Creator), Created: f.Created}
	if f.CurrentSize != int64(base) {
		return info, p.fail("current size", base+offCurrentSize, fmt.Sprint(f.CurrentSize), fmt.Sprint(int64(base)),
			"footer and file disagree on the size of the disk; repair it with the tool that wrote it", ErrInvalid)
	}
	info.Notes, info.QEMUSize = f.notes(), f.QEMUSize()
	return info, nil
}

// notes are the oddities of a footer that is good enough.
func (f Footer) notes() []string {
	var n []string
	if f.DataOffset != noDataOffset {
		n = append(n, fmt.Sprintf("the data offset of a fixed VHD is all ones, here it is %#x", f.DataOffset))
	}
	if f.SavedState {
		n = append(n, "the footer says that the VM is in a saved state")
	}
	if q := f.QEMUSize(); q != 0 {
		n = append(n, fmt.Sprintf("QEMU before 10 sees %d bytes here, the geometry, and not %d", q, f.CurrentSize))
	}
	return n
}

// QEMUSize is the size in bytes that QEMU before 10 takes, if it is not CurrentSize; else 0.
func (f Footer) QEMUSize() int64 {
	if f.sizeTrusted() || f.Geometry.Bytes() == f.CurrentSize {
		return 0
	}
	return f.Geometry.Bytes()
}

// sizeTrusted says whether every QEMU takes the current size for this footer (block/vpc.c, vpc_open).
func (f Footer) sizeTrusted() bool {
	switch string(f.Creator[:]) {
	case "win ", "qem2", "d2v ", "CTXS", "tap\x00":
		return true
	}
	return f.Geometry == Geometry{65535, 16, 255}
}

func (p prober) unsupportedVHD(f Footer, base FileOffset) (Info, error) {
	info := Info{Format: VHDDynamic, ID: f.ID, Geometry: f.Geometry, Creator: creatorString(f.Creator)}
	if f.Type == TypeDifferencing {
		info.Format = VHDDifferencing
	}
	return info, p.fail("type", base+offType, fmt.Sprintf("%d, %s", f.Type, info.Format), "2, vhd-fixed",
		"this format is served but not protected; convert it to a fixed VHD", ErrUnsupported)
}

// explain adds what the length of the file tells about a missing footer.
func (p prober) explain(e *Error) error {
	if e.Field == "cookie" && p.size%sectorSize == FooterSize-1 {
		e.Hint = "the file ends inside a sector: Virtual PC before 2004 wrote footers of 511 bytes, convert it"
	}
	return e
}

func (p prober) probeRaw(head []byte) (Info, error) {
	if f, err := ParseFooter(head); err == nil && f.Type != TypeFixed {
		return p.unsupportedVHD(f, 0)
	}
	info := Info{Format: Raw, VirtualSize: p.size}
	if p.size%sectorSize != 0 {
		info.Notes = append(info.Notes, "the size is no whole number of 512-byte sectors: a guest may not see the end")
	}
	if p.size < FooterSize {
		return info, nil
	}
	tail, err := p.read(FileOffset(p.size-FooterSize), FooterSize)
	if err != nil {
		return info, err
	}
	if _, err := ParseFooter(tail); err == nil {
		info.Notes = append(info.Notes, "it ends in a VHD footer but is named raw: the footer is taken for data")
	}
	return info, nil
}

// read returns n bytes at off; a short file is ErrNotYet, because it is shorter than was said.
func (p prober) read(off FileOffset, n int64) ([]byte, error) {
	b := make([]byte, n)
	got, err := p.r.ReadAt(b, int64(off))
	if int64(got) == n {
		return b, nil
	}
	if errors.Is(err, io.EOF) {
		return nil, p.fail("file size", off, fmt.Sprintf("%d bytes short", n-int64(got)), fmt.Sprint(p.size), "the file is changing", ErrNotYet)
	}
	return nil, p.fail("file", off, "unreadable", fmt.Sprintf("%d bytes", n), "", err)
}

func (p prober) fail(field string, off FileOffset, found, expected, hint string, err error) *Error {
	return &Error{Path: p.name, Field: field, Offset: off, Found: found, Expected: expected, Hint: hint, Err: err}
}
