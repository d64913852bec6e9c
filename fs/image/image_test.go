package image

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

var testID = [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

func goldenFooter() [FooterSize]byte {
	return FixedFooter(64<<20, testID, time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC))
}

// TestGoldenFooter: the bytes of a footer never change.
func TestGoldenFooter(t *testing.T) {
	const golden = "636f6e6563746978" + "00000002" + "00010000" + "ffffffffffffffff" + "2d732e40" + "77696e20" + "000a0000" + "5769326b" +
		"0000000004000000" + "0000000004000000" + "03c30811" + "00000002" + "ffffef63" + "000102030405060708090a0b0c0d0e0f" + "00"
	f := goldenFooter()
	got := hex.EncodeToString(f[:85])
	if got != golden {
		t.Errorf("got  %s\nwant %s", got, golden)
	}
	if !bytes.Equal(f[85:], make([]byte, 427)) {
		t.Error("the reserved part is not zero")
	}
}

func TestFooterRoundTrip(t *testing.T) {
	b := goldenFooter()
	f, err := ParseFooter(b[:])
	if err != nil {
		t.Fatal(err)
	}
	if f.CurrentSize != 64<<20 || f.OriginalSize != 64<<20 || f.ID != testID || f.Type != TypeFixed || f.DataOffset != noDataOffset ||
		!f.Created.Equal(time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)) || !f.sizeTrusted() || len(f.notes()) != 0 {
		t.Errorf("%+v, notes %q", f, f.notes())
	}
}

func TestTimesOutsideTheRangeAreClipped(t *testing.T) {
	for _, c := range []struct {
		at   time.Time
		want uint32
	}{{time.Time{}, 0}, {epoch2000, 0}, {epoch2000.Add(time.Second), 1}, {epoch2000.AddDate(1000, 0, 0), 1<<32 - 1}} {
		if got := vhdTime(c.at); got != c.want {
			t.Errorf("%v: %d, want %d", c.at, got, c.want)
		}
	}
}

// reseal gives an edited footer a right checksum.
func reseal(b []byte) { binary.BigEndian.PutUint32(b[offChecksum:], footerChecksum(b)) }

// TestFooterErrorsNameTheField: what is wrong, where, what was found and expected.
func TestFooterErrorsNameTheField(t *testing.T) {
	be := binary.BigEndian
	for _, c := range []struct {
		field  string
		off    FileOffset
		edit   func(b []byte)
		sealed bool
		want   error
	}{
		{"cookie", 0, func(b []byte) { b[0] = 'C' }, true, ErrNotYet},
		{"checksum", offChecksum, func(b []byte) { b[300]++ }, false, ErrInvalid},
		{"version", offVersion, func(b []byte) { be.PutUint32(b[offVersion:], footerVersion+1) }, true, ErrInvalid},
		{"type", offType, func(b []byte) { be.PutUint32(b[offType:], 1) }, true, ErrInvalid},
		{"type", offType, func(b []byte) { be.PutUint32(b[offType:], 5) }, true, ErrInvalid},
		{"current size", offCurrentSize, func(b []byte) { be.PutUint64(b[offCurrentSize:], 0) }, true, ErrInvalid},
		{"current size", offCurrentSize, func(b []byte) { be.PutUint64(b[offCurrentSize:], 513) }, true, ErrInvalid},
		{"current size", offCurrentSize, func(b []byte) { be.PutUint64(b[offCurrentSize:], 1<<63) }, true, ErrInvalid},
		{"current size", offCurrentSize, func(b []byte) { be.PutUint64(b[offCurrentSize:], 63<<20) }, true, ErrInvalid},
	} {
		image := make([]byte, 1<<20)
		footer := FixedFooter(1<<20, testID, epoch2000)
		c.edit(footer[:])
		if c.sealed {
			reseal(footer[:])
		}
		image = append(image, footer[:]...)
		_, err := Probe("vm/disk.vhd", bytes.NewReader(image), int64(len(image)))
		var e *Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field || e.Path != "vm/disk.vhd" || e.Offset != c.off+1<<20 || e.Found == "" || e.Expected == "" {
			t.Errorf("%s: %v", c.field, err)
		}
	}
	if _, err := ParseFooter(make([]byte, 511)); !errors.Is(err, ErrNotYet) {
		t.Errorf("short: %v", err)
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string][2]bool{
		"a.vhd": {true, false}, "A.VHDX": {true, false}, "vm/b.avhd": {true, false}, "c.AvhdX": {true, false}, "d.img": {true, false}, "e.raw": {true, false},
		"x.qcow2": {false, true}, "x.vmdk": {false, true}, "x.VDI": {false, true}, "a.vhd.part": {false, false}, ".vhd": {false, false},
		"vm.vhd/note": {false, false}, "vhd": {false, false}, "": {false, false},
	} {
		if got := [2]bool{IsImageName(name), IsUnsupportedName(name)}; got != want {
			t.Errorf("%q: %v, want %v", name, got, want)
		}
	}
}

func TestSizes(t *testing.T) {
	for _, c := range [][2]int64{{0, 0}, {1, 1 << 20}, {1 << 20, 1 << 20}, {1<<20 + 1, 2 << 20}} {
		if got := PaddedSize(c[0]); got != c[1] {
			t.Errorf("PaddedSize(%d) = %d", c[0], got)
		}
		if got := ReplicaSize(c[0]); got != c[1]+512 {
			t.Errorf("ReplicaSize(%d) = %d", c[0], got)
		}
	}
}

func probeBytes(name string, b []byte) (Info, error) {
	return Probe(name, bytes.NewReader(b), int64(len(b)))
}

func TestProbeRaw(t *testing.T) {
	info, err := probeBytes("d.img", make([]byte, 10000))
	if err != nil || info.Format != Raw || info.VirtualSize != 10000 || info.FileSize != 10000 || len(info.Notes) != 1 {
		t.Errorf("%+v, %v", info, err)
	}
	if _, err := probeBytes("d.img", nil); !errors.Is(err, ErrNotYet) {
		t.Errorf("empty: %v", err)
	}
	if info, err := probeBytes("d.raw", []byte("x")); err != nil || info.VirtualSize != 1 {
		t.Errorf("one byte: %+v, %v", info, err)
	}
	footer := goldenFooter()
	info, err = probeBytes("d.raw", append(make([]byte, 4096), footer[:]...))
	if err != nil || info.Format != Raw || info.VirtualSize != 4096+512 || len(info.Notes) != 1 {
		t.Errorf("with a footer: %+v, %v", info, err)
	}
}

func TestProbeOddities(t *testing.T) {
	footer := FixedFooter(1<<20, testID, epoch2000)
	copy(footer[offCreator:], "vbox")
	binary.BigEndian.PutUint64(footer[offDataOffset:], 512)
	footer[offSavedState] = 1
	reseal(footer[:])
	info, err := probeBytes("d.vhd", append(make([]byte, 1<<20), footer[:]...))
	if err != nil || len(info.Notes) != 3 || info.Creator != "vbox" {
		t.Errorf("%+v, %v", info, err)
	}
	short, err := probeBytes("d.vhd", append(make([]byte, 1<<20), footer[:511]...))
	if e := (*Error)(nil); !errors.As(err, &e) || !errors.Is(err, ErrNotYet) || !strings.Contains(e.Hint, "2004") || short.Format != VHDFixed {
		t.Errorf("511 bytes: %v", err)
	}
	if _, err := probeBytes("d.vhd", make([]byte, 100)); !errors.Is(err, ErrNotYet) {
		t.Errorf("100 bytes: %v", err)
	}
	if _, err := probeBytes("d.vhdx", make([]byte, 1<<20)); !errors.Is(err, ErrNotYet) {
		t.Errorf("an empty vhdx: %v", err)
	}
}

// failingReader fails at and behind an offset.
type failingReader struct{ at int64 }

func (r failingReader) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > r.at {
		return 0, os.ErrPermission
	}
	return len(p), nil
}

func TestProbeReportsReadErrors(t *testing.T) {
	for _, at := range []int64{0, 600} {
		for _, name := range []string{"a.vhd", "a.raw"} {
			if _, err := Probe(name, failingReader{at}, 4096); !errors.Is(err, os.ErrPermission) {
				t.Errorf("%s at %d: %v", name, at, err)
			}
		}
	}
	if _, err := Probe("a.vhd", bytes.NewReader(make([]byte, 1000)), 4096); !errors.Is(err, ErrNotYet) {
		t.Errorf("a shrinking file: %v", err)
	}
}

func TestLayout(t *testing.T) {
	type fr = extent.Range[extent.FileBlock]
	type dr = extent.Range[extent.DiskBlock]
	l := Info{Format: VHDFixed, VirtualSize: 10*4096 + 512}.Layout()
	if got := l.DiskBlocks(fr{Start: 5, End: 100}); !slices.Equal(got.Ranges(), []dr{{Start: 5, End: 11}}) {
		t.Errorf("clipped: %v", got)
	}
	if got := l.DiskBlocks(fr{Start: 50, End: 100}); !got.Empty() {
		t.Errorf("behind the disk: %v", got)
	}
	if got := l.FileBlocks(dr{Start: 0, End: 11}); !slices.Equal(got.Ranges(), []fr{{Start: 0, End: 11}}) {
		t.Errorf("back: %v", got)
	}
	if m := l.Metadata(); len(m) != 1 || m[0] != (fr{Start: 10, End: 11}) {
		t.Errorf("the footer shares the last block: %v", m)
	}
	if l.VirtualSize() != 10*4096+512 {
		t.Errorf("size %d", l.VirtualSize())
	}
	whole := Info{Format: VHDFixed, VirtualSize: 4096}.Layout()
	if m := whole.Metadata(); len(m) != 1 || m[0] != (fr{Start: 1, End: 2}) {
		t.Errorf("the footer has its own block: %v", m)
	}
	raw := Info{Format: Raw, VirtualSize: 1}.Layout()
	if raw.Metadata() != nil || raw.Disk() != (dr{Start: 0, End: 1}) {
		t.Error("raw")
	}
	if got := l.CutOff(fr{Start: 5, End: 20}); got != (fr{Start: 11, End: 20}) {
		t.Errorf("cut off: %v", got)
	}
	p := bytes.Repeat([]byte{9}, 2*4096)
	if err := l.ReadDisk(bytes.NewReader(bytes.Repeat([]byte{1}, 11*4096)), dr{Start: 10, End: 12}, p); err != nil || p[511] != 1 || p[512] != 0 || p[8191] != 0 {
		t.Errorf("the end of the disk, and what lies beyond it: %v, %d %d %d", err, p[511], p[512], p[8191])
	}
}

func needTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skip(err)
	}
}

func run(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func probeFile(t testing.TB, name string) (Info, error) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return Probe(name, f, st.Size())
}

// TestQEMUImages: every format as qemu-img writes it is what Probe says it is.
func TestQEMUImages(t *testing.T) {
	needTool(t, "qemu-img")
	for _, c := range []struct {
		format, options, name string
		want                  Format
		supported             bool
	}{
		{"raw", "", "a.raw", Raw, true},
		{"vpc", "subformat=fixed", "a.vhd", VHDFixed, true},
		{"vpc", "subformat=fixed,force_size=on", "b.VHD", VHDFixed, true},
		{"vpc", "subformat=dynamic", "c.vhd", VHDDynamic, false},
		{"vpc", "subformat=dynamic", "d.img", VHDDynamic, false},
		{"vhdx", "subformat=fixed", "a.vhdx", VHDXFixed, false},
		{"vhdx", "subformat=dynamic", "b.vhdx", VHDXDynamic, false},
		{"qcow2", "", "a.img", QCOW2, false},
		{"vmdk", "", "b.img", VMDK, false},
		{"vdi", "", "c.raw", VDI, false},
	} {
		t.Run(c.format+c.options+c.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), c.name)
			args := []string{"create", "-q", "-f", c.format}
			if c.options != "" {
				args = append(args, "-o", c.options)
			}
			run(t, "qemu-img", append(args, name, "5M")...)
			info, err := probeFile(t, name)
			if info.Format != c.want || (err == nil) != c.supported {
				t.Fatalf("%+v, %v", info, err)
			}
			if !c.supported {
				if e := (*Error)(nil); !errors.As(err, &e) || !errors.Is(err, ErrUnsupported) || !strings.Contains(e.Found, string(c.want)) {
					t.Errorf("%v", err)
				}
				return
			}
			if size := qemuSize(t, c.format, name); info.VirtualSize != size {
				t.Errorf("size %d, qemu-img says %d", info.VirtualSize, size)
			}
		})
	}
}

func qemuSize(t testing.TB, format, name string) int64 {
	t.Helper()
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(run(t, "qemu-img", "info", "--output=json", "-f", format, name), &info); err != nil {
		t.Fatal(err)
	}
	return info.Size
}

// TestEveryReaderAgreesOnOurSize: qemu-img with and without force_size, and libvhdi, see what the footer says.
func TestEveryReaderAgreesOnOurSize(t *testing.T) {
	needTool(t, "qemu-img")
	for _, size := range []int64{1 << 20, 5 << 20, 127 << 20, 1<<30 + 1<<20, 127 << 30, 1023 << 30, 2040 << 30} {
		name := filepath.Join(t.TempDir(), "a.vhd")
		f, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		footer := FixedFooter(size, testID, epoch2000)
		if _, err := f.WriteAt(footer[:], size); err != nil {
			f.Close()
			t.Skipf("a sparse file of %d bytes: %v", size, err)
		}
		f.Close()
		info, err := probeFile(t, name)
		if err != nil || info.VirtualSize != size || len(info.Notes) != 0 {
			t.Errorf("Probe: %+v, %v", info, err)
		}
		if got := qemuSize(t, "vpc", name); got != size {
			t.Errorf("qemu-img: %d, want %d", got, size)
		}
		out := run(t, "qemu-img", "info", "--output=json", "--image-opts", "driver=vpc,force_size_calc=current_size,file.driver=file,file.filename="+name)
		if !bytes.Contains(out, []byte(`"virtual-size": `+itoa(size))) {
			t.Errorf("qemu-img by current size: %s", out)
		}
		if _, err := exec.LookPath("vhdiinfo"); err == nil {
			if out := run(t, "vhdiinfo", name); !bytes.Contains(out, []byte("("+itoa(size)+" bytes)")) && !bytes.Contains(out, []byte(" "+itoa(size)+" bytes")) {
				t.Errorf("vhdiinfo, want %d: %s", size, out)
			}
		}
	}
}

func itoa(n int64) string { b, _ := json.Marshal(n); return string(b) }

// FuzzProbe: any bytes under any name give an answer that is consistent in itself, and never a panic.
func FuzzProbe(f *testing.F) {
	footer := FixedFooter(1<<10, testID, epoch2000)
	f.Add("a.vhd", append(make([]byte, 1<<10), footer[:]...))
	f.Add("a.raw", footer[:])
	f.Add("a.vhdx", append([]byte("vhdxfile"), make([]byte, 300<<10)...))
	f.Add("a.img", []byte("QFI\xfb"))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		info, err := Probe(name, bytes.NewReader(data), int64(len(data)))
		if info.FileSize != int64(len(data)) {
			t.Errorf("file size %d", info.FileSize)
		}
		var e *Error
		if err != nil {
			if !errors.As(err, &e) || e.Field == "" || errors.Is(err, io.EOF) {
				t.Errorf("%v", err)
			}
			return
		}
		if info.Format != Raw && info.Format != VHDFixed || info.VirtualSize <= 0 || info.VirtualSize > info.FileSize {
			t.Errorf("%+v", info)
		}
		if info.Format == VHDFixed && info.VirtualSize+FooterSize != info.FileSize {
			t.Errorf("%+v", info)
		}
	})
}
