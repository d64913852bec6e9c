package formats

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

func TestProbeTellsWhatIsProtected(t *testing.T) {
	vhd, vhdx := imagetest.NewVHD(3<<20, 64<<10, 1, nil, ""), imagetest.NewVHDX(5<<20, 1<<20, 512, 1, nil, "")
	for _, c := range []struct {
		name   string
		file   []byte
		format image.Format
		size   int64
		err    error
	}{
		{"a.vhd", vhd.File(), image.VHDDynamic, 3 << 20, nil},
		{"a.vhdx", vhdx.B, image.VHDXDynamic, 5 << 20, nil},
		{"a.img", vhdx.B, image.VHDXDynamic, 5 << 20, nil},
		{"a.raw", make([]byte, 8192), image.Raw, 8192, nil},
		{"b.vhd", imagetest.NewVHD(3<<20, 64<<10, 2, vhd, "a.vhd").File(), image.VHDDifferencing, 3 << 20, nil},
		{"b.vhdx", imagetest.NewVHDX(5<<20, 1<<20, 512, 2, vhdx, "a.vhdx").B, image.VHDXDifferencing, 5 << 20, nil},
		{"c.img", append([]byte("QFI\xfb"), make([]byte, 4096)...), image.QCOW2, 0, image.ErrUnsupported},
		{"half.vhdx", vhdx.B[:1<<20], image.VHDX, 0, image.ErrNotYet},
		{"torn.vhdx", append([]byte("vhdxfile"), make([]byte, 1<<20)...), image.VHDX, 0, image.ErrNotYet},
	} {
		info, err := Probe(c.name, bytes.NewReader(c.file), int64(len(c.file)))
		if !errors.Is(err, c.err) || info.Format != c.format || info.VirtualSize != c.size || info.FileSize != int64(len(c.file)) {
			t.Errorf("%s: %+v, %v", c.name, info, err)
		}
		if e := (*image.Error)(nil); err != nil && (!errors.As(err, &e) || e.Path != c.name) {
			t.Errorf("%s: the error does not name it: %v", c.name, err)
		}
	}
}

// What qemu makes is protected, and its disk reads as zeros before anybody writes.
func TestQEMUImagesAreProtected(t *testing.T) {
	imagetest.NeedTool(t, "qemu-img")
	for _, c := range []struct{ name, driver, options string }{
		{"a.vhd", "vpc", "subformat=dynamic,force_size=on"}, {"a.vhdx", "vhdx", "subformat=fixed,block_size=1M"}, {"b.vhdx", "vhdx", "subformat=dynamic,block_size=8M"},
	} {
		path := filepath.Join(t.TempDir(), c.name)
		imagetest.Run(t, "qemu-img", "create", "-q", "-f", c.driver, "-o", c.options, path, "20M")
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		info, err := Probe(c.name, bytes.NewReader(b), int64(len(b)))
		if err != nil || !info.Format.Translated() || info.VirtualSize != 20<<20 {
			t.Errorf("%s: %+v, %v", c.name, info, err)
		}
		i, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		if disk := make([]byte, 20<<20); readAll(t, i, disk) && !bytes.Equal(disk, make([]byte, 20<<20)) {
			t.Errorf("%s: a new disk is not zeros", c.name)
		}
	}
}

func readAll(t *testing.T, i *Image, p []byte) bool {
	t.Helper()
	n, err := i.Disk.ReadAt(p, 0)
	if n != len(p) {
		t.Errorf("%d of %d bytes, %v", n, len(p), err)
	}
	return n == len(p)
}
