package appliance

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestImageInfoOfTranslatedImages: size of the disk and of its blocks, what is allocated; and that they stay unprotected.
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
		i, err := ImageInfo(name)
		if err != nil || i.Format != c.format || i.VirtualSize != 16<<20 || i.BlockSize != c.block || i.Allocated != c.allocated || i.Parent != nil ||
			i.ID == "" || len(i.Notes) != 1 || !strings.Contains(i.Notes[0], "not protected") || !strings.Contains(i.Notes[0], c.format) {
			t.Errorf("%s: %+v, %v", c.options, i, err)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, b[:len(b)/2], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ImageInfo(name); !errors.Is(err, &control.Error{Code: "bad-image"}) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s, cut: %v", c.options, err)
		}
	}
}
