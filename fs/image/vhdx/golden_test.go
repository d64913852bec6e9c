package vhdx

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestGoldenImages: files that qemu 7.2 made, checked in, so that they are read the same without qemu and for ever.
func TestGoldenImages(t *testing.T) {
	written := make([]byte, 5<<20)
	copy(written[1048064:], bytes.Repeat([]byte{7}, 1024)) // over the end of the first block
	for name, want := range map[string]struct {
		format image.Format
		disk   []byte
	}{"qemu-dynamic": {image.VHDXDynamic, written}, "qemu-fixed": {image.VHDXFixed, make([]byte, 2<<20)}} {
		i := openBytes(t, imagetest.Golden(t, "testdata/"+name+".hex"))
		if i.Info.Format != want.format || i.Table.BlockSize != mebibyte || i.Replayed != 0 || !bytes.Equal(imagetest.ReadAll(t, i.Disk(nil)), want.disk) {
			t.Errorf("%s: %+v, or another disk", name, i.Info)
		}
		imagetest.CheckMappings(t, i.Table)
	}
}

// FuzzOpenQEMU is FuzzOpen over what qemu makes, one of its log entries included.
func FuzzOpenQEMU(f *testing.F) {
	images := map[bool][]byte{}
	for fixed, name := range map[bool]string{false: "dynamic", true: "fixed"} {
		images[fixed] = imagetest.Golden(f, "testdata/qemu-"+name+".hex")
	}
	f.Fuzz(func(t *testing.T, fixed bool, at1 uint32, p1 []byte, at2 uint32, p2 []byte) {
		b := bytes.Clone(images[fixed][:8<<20])
		copy(b[int(at1)%len(b):], p1)
		copy(b[int(at2)%len(b):], p2)
		for _, s := range []struct{ at, n int }{{headerAt, headerSize}, {otherHeaderAt, headerSize}, {regionAt, tableSize}, {otherRegionAt, tableSize}} {
			seal(b[s.at : s.at+s.n])
		}
		var i *Image
		err := imagetest.CheckMemory(t, "fuzzed", 64<<20, func() (err error) { i, err = Open(bytes.NewReader(b), int64(len(b))); return err })
		if e := (*image.Error)(nil); err != nil && !errors.As(err, &e) {
			t.Fatalf("not an *image.Error: %v", err)
		}
		if err == nil {
			imagetest.CheckMappings(t, i.Table)
		}
	})
}
