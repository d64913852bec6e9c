package vhd

import (
	"bytes"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestGoldenImages: files that qemu 7.2 made, checked in, so that they are read the same without qemu and for ever.
func TestGoldenImages(t *testing.T) {
	written := make([]byte, 5<<20)
	copy(written[2096640:], bytes.Repeat([]byte{7}, 1024)) // over the end of the first block
	copy(written[4<<20:], bytes.Repeat([]byte{9}, 512))
	for name, want := range map[string]struct {
		format image.Format
		disk   []byte
	}{
		"qemu-dynamic": {image.VHDDynamic, written}, "qemu-empty": {image.VHDDynamic, make([]byte, 1<<20)}, "qemu-fixed": {image.VHDFixed, make([]byte, 8<<10)},
	} {
		b := imagetest.Golden(t, "testdata/"+name+".hex")
		i := openBytes(t, b)
		if i.Info.Format != want.format || i.Info.Creator != "qem2" || len(i.Info.Notes) != 0 || !bytes.Equal(imagetest.ReadAll(t, i.Disk(nil)), want.disk) {
			t.Errorf("%s: %+v, or another disk", name, i.Info)
		}
		imagetest.CheckMappings(t, i.Table)
	}
}
