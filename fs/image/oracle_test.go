package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestGeometryIsTheSpecifications: the pairs were computed by hand from the appendix "CHS Calculation".
func TestGeometryIsTheSpecifications(t *testing.T) {
	for _, c := range []struct {
		size int64
		want Geometry
	}{
		{0, Geometry{0, 4, 17}},
		{1 << 20, Geometry{30, 4, 17}},
		{64 << 20, Geometry{963, 8, 17}},
		{512 << 20, Geometry{1040, 16, 63}},
		{1 << 30, Geometry{2080, 16, 63}},
		{127 << 30, Geometry{65278, 16, 255}},
		{2040 << 30, Geometry{65535, 16, 255}},
		{1 << 50, Geometry{65535, 16, 255}},
	} {
		if got := geometryOf(c.size); got != c.want {
			t.Errorf("%d: %+v, want %+v", c.size, got, c.want)
		}
		if g := geometryOf(c.size); g.Bytes() > c.size {
			t.Errorf("%d: the geometry is larger: %d", c.size, g.Bytes())
		}
	}
}

// TestGeometryIsQEMUs: for sizes that a geometry describes exactly, qemu-img and we write the same one.
func TestGeometryIsQEMUs(t *testing.T) {
	needTool(t, "qemu-img")
	for _, size := range []string{"3M", "100M", "600M", "5G", "200G"} {
		name := filepath.Join(t.TempDir(), "a.vhd")
		run(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic", name, size)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := ParseFooter(b)
		if err != nil {
			t.Fatal(err)
		}
		if got := geometryOf(f.Geometry.Bytes()); f.Geometry.Bytes() == f.CurrentSize && got != f.Geometry {
			t.Errorf("%s: %+v, qemu-img writes %+v", size, got, f.Geometry)
		}
	}
}

// TestDifferencingIsRecognised: by the copy at the start, by the footer, and under a raw name.
func TestDifferencingIsRecognised(t *testing.T) {
	footer := FixedFooter(1<<20, testID, epoch2000)
	binary.BigEndian.PutUint32(footer[offType:], uint32(TypeDifferencing))
	reseal(footer[:])
	body := make([]byte, 4096)
	for name, b := range map[string][]byte{
		"start.vhd":  append(append([]byte{}, footer[:]...), body...),
		"end.avhd":   append(append([]byte{}, body...), footer[:]...),
		"start.img":  append(append([]byte{}, footer[:]...), body...),
		"footer.vhd": footer[:],
	} {
		info, err := probeBytes(name, b)
		if info.Format != VHDDifferencing || !errors.Is(err, ErrUnsupported) || info.ID != testID {
			t.Errorf("%s: %+v, %v", name, info, err)
		}
	}
}

// TestVHDXKinds: the flags of the file parameters decide, and a VHDX that cannot be read so far is still one.
func TestVHDXKinds(t *testing.T) {
	needTool(t, "qemu-img")
	name := filepath.Join(t.TempDir(), "a.vhdx")
	run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic", name, "5M")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	parameters := bytes.Index(good, guidFileParameters)
	base := bytes.Index(good, []byte("metadata"))
	flags := base + int(binary.LittleEndian.Uint32(good[parameters+16:])) + 4
	for _, c := range []struct {
		what string
		edit func(b []byte)
		want Format
	}{
		{"as made", func([]byte) {}, VHDXDynamic},
		{"leave blocks allocated", func(b []byte) { b[flags] = 1 }, VHDXFixed},
		{"has parent", func(b []byte) { b[flags] = 2 }, VHDXDifferencing},
		{"no region table", func(b []byte) { b[vhdxRegionTable] = 0 }, VHDX},
		{"no metadata region", func(b []byte) { b[bytes.Index(b, guidMetadataRegion)] ^= 1 }, VHDX},
		{"no metadata table", func(b []byte) { b[base] = 0 }, VHDX},
		{"no file parameters", func(b []byte) { b[parameters] ^= 1 }, VHDX},
		{"item outside", func(b []byte) { binary.LittleEndian.PutUint32(b[parameters+16:], 1<<31) }, VHDX},
		{"many entries", func(b []byte) { binary.LittleEndian.PutUint32(b[vhdxRegionTable+8:], 1<<31) }, VHDXDynamic},
		{"region outside", func(b []byte) {
			binary.LittleEndian.PutUint64(b[bytes.Index(b, guidMetadataRegion)+16:], 1<<63)
		}, VHDX},
	} {
		b := bytes.Clone(good)
		c.edit(b)
		info, err := probeBytes("a.vhdx", b)
		if info.Format != c.want || !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %s, %v", c.what, info.Format, err)
		}
	}
	if info, err := probeBytes("a.vhdx", good[:1<<16]); info.Format != VHDX || !errors.Is(err, ErrUnsupported) {
		t.Errorf("cut: %s, %v", info.Format, err)
	}
}

// TestErrorReadsAsASentence: an operator sees the place, the fact and the next action.
func TestErrorReadsAsASentence(t *testing.T) {
	e := &Error{Path: "vm/a.vhd", Field: "checksum", Offset: 64, Found: "0x1", Expected: "0x2", Hint: "the footer is damaged", Err: ErrInvalid}
	const want = "vm/a.vhd: invalid image: checksum at offset 64 is 0x1, expected 0x2 (the footer is damaged)"
	if e.Error() != want {
		t.Errorf("%s", e)
	}
	moved := e.at("b.vhd", 1000)
	if moved.Offset != 1064 || moved.Path != "b.vhd" || e.Offset != 64 {
		t.Errorf("%+v, %+v", moved, e)
	}
	if bare := (&Error{Field: "x", Found: "y", Err: ErrNotYet}).Error(); bare != "not a complete image yet: x at offset 0 is y" {
		t.Errorf("%s", bare)
	}
}

// TestQEMUReadsWhatWePad: a disk that is no whole number of MiB, padded as the replica is, has the same bytes for
// qemu-img, and zeros behind.
func TestQEMUReadsWhatWePad(t *testing.T) {
	needTool(t, "qemu-img")
	dir := t.TempDir()
	const size = 3<<20 + 12345
	data := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
	padded := make([]byte, PaddedSize(size))
	copy(padded, data)
	footer := FixedFooter(int64(len(padded)), testID, epoch2000)
	vhd, raw := filepath.Join(dir, "a.vhd"), filepath.Join(dir, "a.raw")
	if err := errors.Join(os.WriteFile(vhd, append(bytes.Clone(padded), footer[:]...), 0o644), os.WriteFile(raw, padded, 0o644)); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(vhd); err != nil || st.Size() != ReplicaSize(size) {
		t.Errorf("size: %v, %v", st.Size(), err)
	}
	run(t, "qemu-img", "compare", "-s", "-f", "vpc", "-F", "raw", vhd, raw)
}

func ExampleInfo_Layout() {
	l := Info{Format: VHDFixed, VirtualSize: 8192 + 512}.Layout()
	fmt.Println(l.Disk().Len(), l.Metadata()[0].Start)
	// Output: 3 2
}
