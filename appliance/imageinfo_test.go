package appliance

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestImageInfoOfTranslatedImages: size of the disk and of its blocks, what is allocated.
func TestImageInfoOfTranslatedImages(t *testing.T) {
	imagetest.NeedTool(t, "qemu-img")
	imagetest.NeedTool(t, "qemu-io")
	for _, c := range []struct {
		driver, options, format string
		block, allocated        int64
	}{
		{"vpc", "subformat=dynamic,force_size=on", "vhd-dynamic", 2 << 20, 4 << 20},
		{"vhdx", "subformat=dynamic,block_size=1M", "vhdx-dynamic", 1 << 20, 2 << 20},
		{"vhdx", "subformat=fixed,block_size=8M", "vhdx-fixed", 8 << 20, 8 << 20}, // qemu gives the block that nobody wrote the state zero
	} {
		name := filepath.Join(t.TempDir(), "a."+map[string]string{"vpc": "vhd", "vhdx": "vhdx"}[c.driver])
		imagetest.Run(t, "qemu-img", "create", "-q", "-f", c.driver, "-o", c.options, name, "16M")
		imagetest.Run(t, "qemu-io", "-f", c.driver, "-c", "write -q -P 1 2096640 1024", name)
		i, err := ImageInfo(nil, name)
		if err != nil || i.Format != c.format || i.VirtualSize != 16<<20 || i.BlockSize != c.block || i.Allocated != c.allocated || i.Parent != nil ||
			i.ID == "" || len(i.Notes) != 0 || len(i.Chain) != 0 || i.ChainError != "" {
			t.Errorf("%s: %+v, %v", c.options, i, err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ImageInfo(nil, name); !errors.Is(err, &control.Error{Code: "bad-image"}) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s, cut: %v", c.options, err)
		}
	}
}

// TestImageInfoShowsChains: three deep, across directories of a store; and of a broken one how far it goes and what is missing.
func TestImageInfoShowsChains(t *testing.T) {
	dir := t.TempDir()
	put := func(name string, b []byte) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, b, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	base := imagetest.NewVHDX(8<<20, 1<<20, 512, 1, nil, "")
	base.Write(0, make([]byte, 512))
	middle := imagetest.NewVHDX(8<<20, 1<<20, 512, 2, base, "base.vhdx")
	middle.Locate("parent_linkage", imagetest.GUIDText(base.DataWrite), "relative_path", `..\golden\base.vhdx`)
	leaf := imagetest.NewVHDX(16<<20, 1<<20, 512, 3, middle, "middle.vhdx")
	put("golden/base.vhdx", base.B)
	put("vm/middle.vhdx", middle.B)
	put("vm/leaf.avhdx", leaf.B)
	c := config.Default()
	c.Stores = []config.Store{{Name: "main", Source: dir, Mount: filepath.Join(t.TempDir(), "m")}}
	i, err := ImageInfo(c, filepath.Join(dir, "vm/leaf.avhdx"))
	if err != nil || len(i.Chain) != 3 || i.ChainError != "" {
		t.Fatalf("%+v, %v", i, err)
	}
	for k, want := range []cli.ImageLink{
		{File: "vm/leaf.avhdx", Format: "vhdx-differencing", ID: imagetest.GUIDText(leaf.DataWrite)[1:37], FileSize: int64(len(leaf.B)), VirtualSize: 16 << 20, BlockSize: 1 << 20},
		{File: "vm/middle.vhdx", Format: "vhdx-differencing", ID: imagetest.GUIDText(middle.DataWrite)[1:37], FileSize: int64(len(middle.B)), VirtualSize: 8 << 20, BlockSize: 1 << 20},
		{File: "golden/base.vhdx", Format: "vhdx-dynamic", ID: imagetest.GUIDText(base.DataWrite)[1:37], FileSize: int64(len(base.B)), VirtualSize: 8 << 20, BlockSize: 1 << 20, Allocated: 1 << 20},
	} {
		if i.Chain[k] != want {
			t.Errorf("%+v, want %+v", i.Chain[k], want)
		}
	}
	i, err = ImageInfo(nil, filepath.Join(dir, "vm/leaf.avhdx"))
	if err != nil || len(i.Chain) != 2 || !strings.Contains(i.ChainError, "vm/middle.vhdx") && !strings.Contains(i.ChainError, "middle.vhdx: ") || !strings.Contains(i.ChainError, `..\\golden\\base.vhdx`) {
		t.Errorf("without a store its directory is all there is: %+v, %v", i, err)
	}
}
