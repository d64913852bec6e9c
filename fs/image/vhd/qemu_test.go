package vhd

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

func openAlone(r io.ReaderAt, size int64) (*image.Table, *image.Disk, error) {
	i, err := Open(r, size)
	if err != nil {
		return nil, nil, err
	}
	return i.Table, i.Disk(nil), nil
}

// TestQEMUReadsTheSame: random writes, zeroes and discards by qemu-io; our reader has what qemu-img convert writes, and
// the differences between two moments name every block that changed.
func TestQEMUReadsTheSame(t *testing.T) {
	for _, c := range []struct {
		options string
		size    int64
	}{
		{"subformat=dynamic", 64 << 20},
		{"subformat=dynamic,force_size=on", 33<<20 + 512*7},
		{"subformat=fixed", 8 << 20},
		{"subformat=fixed,force_size=on", 8<<20 + 512},
	} {
		t.Run(c.options, func(t *testing.T) {
			q := imagetest.QEMU{Driver: "vpc", Options: c.options, Size: c.size, Open: openAlone}
			for seed := range uint64(2) {
				q.Check(t, seed, 3, 20)
			}
		})
	}
}

// TestQEMUInfo: size and format as qemu-img create was told.
func TestQEMUInfo(t *testing.T) {
	imagetest.NeedTool(t, "qemu-img")
	for _, size := range []int64{1 << 20, 100 << 20, 200 << 30, 2000 << 30} {
		name := filepath.Join(t.TempDir(), "a.vhd")
		imagetest.Run(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", name, fmt.Sprint(size))
		i := openFile(t, name)
		if i.Info.Format != image.VHDDynamic || i.Info.VirtualSize != size || i.Table.BlockSize != 2<<20 || i.Table.Allocated() != 0 || len(i.Info.Notes) != 0 || i.Link != nil {
			t.Errorf("%d: %+v", size, i.Info)
		}
	}
}
