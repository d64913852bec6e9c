package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

func isErr(err, want error) bool { return errors.Is(err, want) }

// sample is an image of four blocks of 8 KiB, three allocated, with a parent.
func sample() *imagetest.VHD {
	w := imagetest.NewVHD(32<<10, 8<<10, 2, imagetest.NewVHD(32<<10, 8<<10, 1, nil, ""), "base.vhd")
	for _, off := range []int64{0, 8 << 10, 24 << 10} {
		w.Write(off, bytes.Repeat([]byte{1}, 4096))
	}
	return w
}

// TestErrorsNameTheField: what is wrong, where, what was found, what was expected, and which sentinel it is.
func TestErrorsNameTheField(t *testing.T) {
	be := binary.BigEndian
	const header = 512
	seal := func(b []byte) {
		be.PutUint32(b[header+offChecksum:], checksum(b[header:header+headerSize], offChecksum))
	}
	table := int64(512 + headerSize)
	for _, c := range []struct {
		field string
		off   image.FileOffset
		want  error
		edit  func(b []byte) []byte
	}{
		{"header cookie", header, image.ErrMagic, func(b []byte) []byte { b[header] = 'C'; return b }},
		{"header checksum", header + offChecksum, image.ErrChecksum, func(b []byte) []byte { b[header+700]++; return b }},
		{"header version", header + offVersion, image.ErrVersion, func(b []byte) []byte { b[header+offVersion] = 9; seal(b); return b }},
		{"block size", header + offBlockSize, image.ErrInvalid, func(b []byte) []byte { be.PutUint32(b[header+offBlockSize:], 12345); seal(b); return b }},
		{"block size", header + offBlockSize, image.ErrInvalid, func(b []byte) []byte { be.PutUint32(b[header+offBlockSize:], 0); seal(b); return b }},
		{"max table entries", header + offEntries, image.ErrInvalid, func(b []byte) []byte { be.PutUint32(b[header+offEntries:], 3); seal(b); return b }},
		{"block table", 1 << 40, image.ErrTruncated, func(b []byte) []byte { be.PutUint64(b[header+offTable:], 1<<40); seal(b); return b }},
		{"block table", -1, image.ErrTruncated, func(b []byte) []byte { be.PutUint64(b[header+offTable:], ^uint64(0)); seal(b); return b }},
		{"block table entry 0", image.FileOffset(table), image.ErrTruncated, func(b []byte) []byte { be.PutUint32(b[table:], 0x12345); return b }},
		{"block table entry 0", image.FileOffset(table), image.ErrInvalid, func(b []byte) []byte { be.PutUint32(b[table:], 0); return b }},
		{"block table entry 1", image.FileOffset(table) + 4, image.ErrInvalid, func(b []byte) []byte { copy(b[table+4:], b[table:table+4]); return b }},
		{"block table entry 3", image.FileOffset(table) + 12, image.ErrTruncated, func(b []byte) []byte { return b[:len(b)-sectorSize-8<<10] }},
		{"cookie", 0, image.ErrNotYet, func(b []byte) []byte { return make([]byte, 512) }},
		{"footer", 0, image.ErrTruncated, func(b []byte) []byte { return b[:100] }},
	} {
		b := c.edit(sample().File())
		_, err := Open(bytes.NewReader(b), int64(len(b)))
		var e *image.Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field || e.Offset != c.off || e.Found == "" || e.Expected == "" {
			t.Errorf("%s: %v", c.field, err)
		}
	}
}

// TestFooterUnderway: while a block is allocated the file ends in no footer, or in one that the guest has in its disk.
func TestFooterUnderway(t *testing.T) {
	w := sample()
	want := imagetest.ReadAll(t, openBytes(t, w.File()).Disk(newFlat(32<<10)))
	guests := image.FixedFooter(1<<20, [16]byte{9}, imagetest.Created)
	w.Write(32<<10-512, guests[:])
	copy(want[32<<10-512:], guests[:])
	for _, file := range [][]byte{w.B, w.File()} {
		i := openBytes(t, file)
		if got := imagetest.ReadAll(t, i.Disk(newFlat(32<<10))); !bytes.Equal(got, want) {
			t.Error("not the disk")
		}
		if (len(i.Info.Notes) == 1) != (len(file) == len(w.B)) {
			t.Errorf("notes %q", i.Info.Notes)
		}
	}
	damaged := w.File()
	damaged[0] = 'x'
	if i := openBytes(t, damaged); len(i.Info.Notes) != 1 || i.Info.Format != image.VHDDifferencing {
		t.Errorf("%+v", i.Info)
	}
}

// flat is a parent of zeros.
type flat struct{ *bytes.Reader }

func newFlat(n int64) flat { return flat{bytes.NewReader(make([]byte, n))} }

// TestEveryTruncationIsRefusedOrReadable: a file cut anywhere opens or says why; it never panics.
func TestEveryTruncationIsRefusedOrReadable(t *testing.T) {
	whole := sample().File()
	for n := range whole {
		cut := whole[:n]
		i, err := Open(bytes.NewReader(cut), int64(n))
		if err != nil {
			var e *image.Error
			if !errors.As(err, &e) || !errors.Is(err, image.ErrNotYet) && !errors.Is(err, image.ErrInvalid) {
				t.Fatalf("cut at %d: %v", n, err)
			}
			continue
		}
		imagetest.ReadAll(t, i.Disk(newFlat(1<<20)))
	}
}

// TestReadErrorsComeThrough: at every read of an opening.
func TestReadErrorsComeThrough(t *testing.T) {
	b := sample().File()
	for k := 0; ; k++ {
		r := &failing{Reader: bytes.NewReader(b), after: k}
		_, err := Open(r, int64(len(b)))
		if !r.failed {
			return
		}
		if err == nil && k != 0 && k != 1 && !r.soft {
			t.Errorf("read %d failed and nobody said so", k)
		}
		if err != nil && !errors.Is(err, errDisk) {
			t.Errorf("read %d: %v", k, err)
		}
	}
}

var errDisk = errors.New("input/output error")

type failing struct {
	*bytes.Reader
	after        int
	failed, soft bool // soft: of a footer or a locator, of which there are others
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.after--; f.after == -1 {
		f.failed = true
		f.soft = off >= 1536+512 && off < 1536+512+3*512 || off == f.Size()-512
		return 0, errDisk
	}
	return f.Reader.ReadAt(p, off)
}

// FuzzOpen changes bytes of a good image, where they matter, and cuts its end off: what a fuzzer has to find is small. Never a
// panic, a hang, or more memory than the file justifies; what opens can be read whole.
func FuzzOpen(f *testing.F) {
	small := imagetest.NewVHD(100<<10, 4096, 1, nil, "")
	small.Write(8192, bytes.Repeat([]byte{3}, 512))
	fixed := image.FixedFooter(4096, [16]byte{1}, imagetest.Created)
	bases := [][]byte{sample().File(), small.File(), append(make([]byte, 4096), fixed[:]...)}
	for _, name := range []string{"empty", "fixed", "dynamic"} {
		bases = append(bases, imagetest.Golden(f, "testdata/qemu-"+name+".hex"))
	}
	table := uint32(512 + headerSize)
	for base := range uint8(len(bases)) {
		f.Add(base, uint32(0), table, []byte{}, uint32(0), []byte{})
		f.Add(base, uint32(512), table, []byte{}, uint32(0), []byte{}) // the copy of the footer only
	}
	f.Add(uint8(3), uint32(512), table, []byte{0, 0, 0, 4}, uint32(0), []byte{}) // an entry, and its block is not there yet
	f.Add(uint8(0), uint32(0), uint32(512+offLocators), []byte("W2ku\x00\x00\x00\x01\x00\x00\xff\xff"), uint32(512+offBlockSize), []byte{0, 0, 2})
	f.Add(uint8(0), uint32(0), uint32(512+offEntries), []byte{3, 0xff, 0xff, 0xff}, uint32(48), []byte{0, 0, 1})
	parent := newFlat(1 << 20)
	f.Fuzz(func(t *testing.T, base uint8, cut, at1 uint32, p1 []byte, at2 uint32, p2 []byte) {
		b := bytes.Clone(bases[int(base)%len(bases)])
		copy(b[int(at1)%len(b):], p1)
		copy(b[int(at2)%len(b):], p2)
		b = b[:len(b)-int(cut)%(len(b)+1)]
		reseal(b)
		var i *Image
		err := imagetest.CheckMemory(t, "fuzzed", uint64(1<<20+64*len(b)), func() (err error) { i, err = Open(bytes.NewReader(b), int64(len(b))); return err })
		if err != nil {
			var e *image.Error
			if !errors.As(err, &e) {
				t.Fatalf("not an *image.Error: %v", err)
			}
			return
		}
		if i.Table.Blocks()*entrySize > int64(len(b)) {
			t.Fatalf("%d blocks in a file of %d bytes", i.Table.Blocks(), len(b))
		}
		read, disk := make([]byte, 4096), i.Disk(parent)
		for off := int64(0); off < min(i.Info.VirtualSize, 64<<20); off += i.Table.BlockSize {
			if _, err := disk.ReadAt(read[:min(4096, i.Info.VirtualSize-off)], off); err != nil {
				t.Fatalf("reading at %d: %v", off, err)
			}
		}
		i.Table.Changed(i.Table, i.Table.Metadata())
	})
}

// reseal gives what looks like a footer or a header a right checksum, or a fuzzer would never get past it.
func reseal(b []byte) {
	for _, at := range []int{0, len(b) - 512} {
		if at >= 0 && at+512 <= len(b) {
			binary.BigEndian.PutUint32(b[at+64:], checksum(b[at:at+512], 64))
		}
	}
	if len(b) >= 512+headerSize {
		binary.BigEndian.PutUint32(b[512+offChecksum:], checksum(b[512:512+headerSize], offChecksum))
	}
}
