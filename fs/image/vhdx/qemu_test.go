package vhdx

import (
	"bytes"
	"fmt"
	"io"
	"os"
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

// TestQEMUReadsTheSame: random writes, zeroes and discards by qemu-io at several block sizes; our reader has what
// qemu-img convert writes, and the differences between two moments name every block that changed.
func TestQEMUReadsTheSame(t *testing.T) {
	for _, c := range []struct {
		options string
		size    int64
	}{
		{"subformat=dynamic,block_size=1M", 24 << 20},
		{"subformat=dynamic,block_size=8M", 33<<20 + 512*7},
		{"subformat=dynamic,block_size=32M", 40 << 20},
		{"subformat=fixed,block_size=2M", 8 << 20},
	} {
		t.Run(c.options, func(t *testing.T) {
			q := imagetest.QEMU{Driver: "vhdx", Options: c.options, Size: c.size, Open: openAlone}
			for seed := range uint64(2) {
				q.Check(t, seed, 3, 20)
			}
		})
	}
}

// TestQEMULogLeftBehind: qemu's own last log entry, made a log that nobody replayed yet. What we read with it in memory is
// what qemu-img reads after it has repaired the image.
func TestQEMULogLeftBehind(t *testing.T) {
	imagetest.NeedTool(t, "qemu-img")
	imagetest.NeedTool(t, "qemu-io")
	dir := t.TempDir()
	name, raw := filepath.Join(dir, "a.vhdx"), filepath.Join(dir, "a.raw")
	imagetest.Run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", name, "8M")
	imagetest.Run(t, "qemu-io", "-f", "vhdx", "-c", "write -q -P 7 1M 3M", name)
	i, b := openFile(t, name)
	want := imagetest.ReadAll(t, i.Disk(nil))
	newest, other := b[headerAt:][:headerSize], b[otherHeaderAt:][:headerSize]
	if le.Uint64(newest[offSequence:]) < le.Uint64(other[offSequence:]) {
		newest, other = other, newest
	}
	entry := b[bytes.LastIndex(b[:2<<20], []byte("loge")):]
	copy(newest[offLogGUID:], entry[offLogEntryGUID:][:16])
	seal(newest)
	clear(b[i.Table.TableOffset:][:page])
	i = openBytes(t, b)
	if got := imagetest.ReadAll(t, i.Disk(nil)); i.Replayed == 0 || !bytes.Equal(got, want) || want[2<<20] != 7 {
		t.Errorf("%d entries, not the disk", i.Replayed)
	}
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	imagetest.Run(t, "qemu-img", "check", "-q", "-r", "all", name)
	imagetest.Run(t, "qemu-img", "convert", "-f", "vhdx", "-O", "raw", name, raw)
	if qemus, err := os.ReadFile(raw); err != nil || !bytes.Equal(qemus, want) {
		t.Errorf("not what qemu reads after a repair, %v", err)
	}
}

// TestQEMUSecondChunk: past 4 GiB an entry of a sector bitmap lies between those of the blocks.
func TestQEMUSecondChunk(t *testing.T) {
	imagetest.NeedTool(t, "qemu-io")
	name := filepath.Join(t.TempDir(), "a.vhdx")
	imagetest.Run(t, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "block_size=1M", name, "9G")
	args := []string{"-f", "vhdx", "-t", "unsafe"}
	places := []int64{0, 4<<30 - 1<<20, 4 << 30, 5<<30 + 3<<20, 8<<30 - 4096, 8 << 30, 9<<30 - 4096}
	for k, off := range places {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 4096", k+1, off))
	}
	imagetest.Run(t, "qemu-io", append(args, name)...)
	i, _ := openFile(t, name)
	for k, off := range places {
		b := make([]byte, 4096)
		if _, err := i.Disk(nil).ReadAt(b, off); err != nil || !bytes.Equal(b, bytes.Repeat([]byte{byte(k + 1)}, 4096)) {
			t.Errorf("at %d: %v, %d", off, err, b[0])
		}
	}
	imagetest.CheckMappings(t, i.Table)
	if i.Info.VirtualSize != 9<<30 || i.Info.Format != image.VHDXDynamic || i.Table.Allocated() != 7<<20 {
		t.Errorf("%+v, %d allocated", i.Info, i.Table.Allocated())
	}
}
