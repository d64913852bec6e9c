package vhdx

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

var testNew = New{ID: [16]byte{1, 2, 3, 15: 4}, Content: [16]byte{5, 6, 7, 15: 8}}

func newFile(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "a.vhdx"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// fill writes random pieces in the order of the disk, from an offset on, into the image and the model.
func fill(t *testing.T, w *Writer, model []byte, rnd *rand.Rand, from, to int64) {
	t.Helper()
	for off := from; off < to; off += rnd.Int64N(6 * mebibyte) {
		n := min(rnd.Int64N(3*mebibyte)+1, to-off)
		p := bytes.Repeat([]byte{byte(rnd.IntN(255) + 1)}, int(n))
		if _, err := w.WriteAt(p, off); err != nil {
			t.Fatal(err)
		}
		copy(model[off:], p)
		off += n
	}
}

// TestWrittenImageReads: by our reader and by qemu, whose check finds nothing to say; and it is no larger than its blocks.
func TestWrittenImageReads(t *testing.T) {
	imagetest.NeedTool(t, "qemu-img")
	for seed, size := range []int64{mebibyte, 40*mebibyte + 512, 40*mebibyte - 100, 33 * mebibyte, 1} {
		f := newFile(t)
		n := testNew
		n.VirtualSize = size
		w, err := Create(f, n)
		if err != nil {
			t.Fatal(err)
		}
		model := make([]byte, n.Size())
		fill(t, w, model, rand.New(rand.NewPCG(uint64(seed), 1)), 0, size)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		i, b := openFile(t, f.Name())
		if !bytes.Equal(imagetest.ReadAll(t, i.Disk(nil)), model) {
			t.Fatalf("%d: not what was written", size)
		}
		if i.Info.Format != image.VHDXDynamic || len(i.Info.Notes) != 0 || i.Info.ID != n.ID || guid(i.DataWrite) != swapped(n.Content) ||
			int64(len(b)) != 4*mebibyte+i.Table.Allocated()/mebibyte*mebibyte+roundUp(i.Table.Allocated()%mebibyte) {
			t.Errorf("%d: %+v, a file of %d bytes, %d allocated", size, i.Info, len(b), i.Table.Allocated())
		}
		imagetest.CheckMappings(t, i.Table)
		raw := filepath.Join(t.TempDir(), "a.raw")
		if err := os.WriteFile(raw, model, 0o600); err != nil {
			t.Fatal(err)
		}
		imagetest.Run(t, "qemu-img", "check", "-q", "-f", "vhdx", f.Name())
		imagetest.Run(t, "qemu-img", "compare", "-q", "-f", "vhdx", "-F", "raw", f.Name(), raw)
	}
}

// TestQEMUWritesToIt: what qemu changes in a written image is what we read.
func TestQEMUWritesToIt(t *testing.T) {
	imagetest.NeedTool(t, "qemu-io")
	f := newFile(t)
	n := testNew
	n.VirtualSize = 200 << 30 // blocks of 2 MiB
	w, err := Create(f, n)
	if err == nil {
		_, err = w.WriteAt([]byte("data"), 150<<30)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	imagetest.Run(t, "qemu-io", "-f", "vhdx", "-c", "write -q -P 7 5G 3M", "-c", "write -q -P 8 199G 4k", "-c", "read -q -P 0 100G 4k", f.Name())
	imagetest.Run(t, "qemu-img", "check", "-q", "-f", "vhdx", f.Name())
	i, _ := openFile(t, f.Name())
	got := make([]byte, 4)
	for off, want := range map[int64]string{150 << 30: "data", 5<<30 + 3<<20 - 4: "\a\a\a\a", 199 << 30: "\b\b\b\b", 1 << 30: "\x00\x00\x00\x00"} {
		if _, err := i.Disk(nil).ReadAt(got, off); err != nil || string(got) != want {
			t.Errorf("%d: %q, %v", off, got, err)
		}
	}
	if i.Table.BlockSize != 2*mebibyte {
		t.Errorf("blocks of %d", i.Table.BlockSize)
	}
}

// TestBlockSizes: the table of a disk of any size takes at most 1 MiB, as long as a block may grow.
func TestBlockSizes(t *testing.T) {
	for size, want := range map[int64]int64{1: 1, 127 << 30: 1, 128<<30 + 1: 2, 1 << 40: 8, 4 << 40: 32, 8 << 40: 64, 64 << 40: 256} {
		if got := (New{VirtualSize: size}).BlockSize() / mebibyte; got != want {
			t.Errorf("%d: %d MiB, want %d", size, got, want)
		}
	}
	for _, size := range []int64{0, -1, 64<<40 + 1} {
		if _, err := Create(newFile(t), New{VirtualSize: size}); !errors.Is(err, image.ErrInvalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

// TestInterruptedImageGoesOn: cut anywhere after a flush, with what was written behind it left in the file, it becomes the
// same file.
func TestInterruptedImageGoesOn(t *testing.T) {
	n := testNew
	n.VirtualSize = 24*mebibyte + 512
	whole := newFile(t)
	w, err := Create(whole, n)
	if err != nil {
		t.Fatal(err)
	}
	model := make([]byte, n.VirtualSize)
	fill(t, w, model, rand.New(rand.NewPCG(5, 5)), 0, n.VirtualSize)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	_, want := openFile(t, whole.Name())
	for _, done := range []int64{4096, mebibyte, mebibyte + 4096, 5*mebibyte + 8192, 13 * mebibyte, 24 * mebibyte, n.VirtualSize} {
		f := newFile(t)
		w, err := Create(f, n)
		if err != nil {
			t.Fatal(err)
		}
		copyDisk(t, w, model, 0, done)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		copyDisk(t, w, model, done, min(done+7*mebibyte, n.VirtualSize))
		if done%2 == 0 { // the table of later may have reached the disk, too
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
		if w, err = Resume(f, n, done); err != nil {
			t.Fatal(err)
		}
		copyDisk(t, w, model, done, n.VirtualSize)
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if _, got := openFile(t, f.Name()); !bytes.Equal(got, want) {
			t.Errorf("cut at %d: another file, of %d bytes and not %d", done, len(got), len(want))
		}
	}
}

// copyDisk writes the blocks of 4 KiB that are not zeros.
func copyDisk(t *testing.T, w *Writer, model []byte, from, to int64) {
	t.Helper()
	for off := from; off < to; off += 4096 {
		if p := model[off:min(off+4096, to)]; !zero(p) {
			if _, err := w.WriteAt(p, off); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestResumeRefusesAnotherFile: an entry that is not where this writer puts it, and a file that was cut.
func TestResumeRefusesAnotherFile(t *testing.T) {
	n := testNew
	n.VirtualSize = 8 * mebibyte
	f := newFile(t)
	w, err := Create(f, n)
	if err != nil {
		t.Fatal(err)
	}
	copyDisk(t, w, bytes.Repeat([]byte{1}, 8*mebibyte), 0, 8*mebibyte)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{6, 0, 0x70}, newTable+8); err != nil {
		t.Fatal(err)
	}
	e := (*image.Error)(nil)
	if _, err := Resume(f, n, 8*mebibyte); !errors.Is(err, image.ErrInvalid) || !errors.As(err, &e) || e.Offset != newTable+8 {
		t.Errorf("%v", err)
	}
	w, err = Resume(f, n, mebibyte)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	if i, _ := openFile(t, f.Name()); i.Table.Allocated() != mebibyte {
		t.Errorf("what came later is not forgotten: %d bytes allocated", i.Table.Allocated())
	}
	if err := f.Truncate(newTable); err != nil {
		t.Fatal(err)
	}
	if _, err := Resume(f, n, mebibyte); !errors.Is(err, image.ErrInvalid) {
		t.Errorf("cut: %v", err)
	}
}

// TestWriterRefuses: writes that would make the file depend on their order, or that lie outside.
func TestWriterRefuses(t *testing.T) {
	n := testNew
	n.VirtualSize = 8 * mebibyte
	w, err := Create(newFile(t), n)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte{1}, 4*mebibyte); err != nil {
		t.Fatal(err)
	}
	if _, err := w.WriteAt([]byte{1}, 0); !errors.Is(err, errOrder) {
		t.Errorf("%v", err)
	}
	for _, off := range []int64{-1, 8 * mebibyte} {
		if _, err := w.WriteAt([]byte{1}, off); !errors.Is(err, image.ErrInvalid) {
			t.Errorf("%d: %v", off, err)
		}
	}
}

// TestGoldenImage: every byte of the head that is not zero, so that it does not change unseen.
func TestGoldenImage(t *testing.T) {
	n := testNew
	n.VirtualSize = 3 * mebibyte
	f := newFile(t)
	w, err := Create(f, n)
	if err == nil {
		_, err = w.WriteAt([]byte{0xee}, 2*mebibyte)
	}
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	_, b := openFile(t, f.Name())
	want := imagetest.Golden(t, filepath.Join("testdata", "new.hex"))
	if !bytes.Equal(b, want) {
		t.Errorf("the format of new images has changed:\n%s", imagetest.Dump(b))
	}
}

func zero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
