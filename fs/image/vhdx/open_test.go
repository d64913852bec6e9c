package vhdx

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// sample is an image of three blocks with a parent; dirty leaves its table in the log.
func sample(dirty bool) *logged {
	w := newWriter(3<<20, mebibyte, 512, 2, imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, ""), "base.vhdx")
	w.Write(0, bytes.Repeat([]byte{1}, 4096))
	before := bytes.Clone(w.B)
	w.Write(2<<20, bytes.Repeat([]byte{2}, 4096))
	if dirty {
		w.logSince(before, 255*page) // the entry goes on at the start of the log
	}
	return w
}

// find is where a metadata item lies.
func find(b []byte, id guid) int {
	at := bytes.Index(b[imagetest.VHDXMetadata:], id[:])
	return imagetest.VHDXMetadata + int(le.Uint32(b[imagetest.VHDXMetadata+at+16:]))
}

// TestErrorsNameTheField: what is wrong, where, what was found, what was expected, and which sentinel it is.
func TestErrorsNameTheField(t *testing.T) {
	headers := func(edit func(h []byte)) func(b []byte) {
		return func(b []byte) {
			for _, at := range []int{headerAt, otherHeaderAt} {
				edit(b[at : at+headerSize])
				seal(b[at : at+headerSize])
			}
		}
	}
	tables := func(edit func(r []byte)) func(b []byte) {
		return func(b []byte) {
			for _, at := range []int{regionAt, otherRegionAt} {
				edit(b[at : at+tableSize])
				seal(b[at : at+tableSize])
			}
		}
	}
	entry := imagetest.VHDXLog + 255*page
	for _, c := range []struct {
		field string
		want  error
		dirty bool
		edit  func(b []byte)
	}{
		{"signature", image.ErrMagic, false, func(b []byte) { b[0] = 'V' }},
		{"header signature", image.ErrMagic, false, headers(func(h []byte) { h[0] = 'H' })},
		{"header checksum", image.ErrChecksum, false, func(b []byte) { b[headerAt+99]++; b[otherHeaderAt+99]++ }},
		{"header version", image.ErrVersion, false, headers(func(h []byte) { h[offVersion] = 2 })},
		{"log version", image.ErrVersion, true, headers(func(h []byte) { h[offLogVersion] = 1 })},
		{"log offset", image.ErrInvalid, false, headers(func(h []byte) { h[offLogOffset] = 1 })},
		{"log", image.ErrTruncated, true, headers(func(h []byte) { h[offLogOffset+5] = 1 })},
		{"region table signature", image.ErrMagic, false, tables(func(r []byte) { r[0] = 'R' })},
		{"region table checksum", image.ErrChecksum, false, func(b []byte) { b[regionAt+999]++; b[otherRegionAt+999]++ }},
		{"region table entry count", image.ErrInvalid, false, tables(func(r []byte) { le.PutUint32(r[8:], 2048) })},
		{"region", image.ErrFeature, false, tables(func(r []byte) { r[16]++ })},
		{"region offset", image.ErrInvalid, false, tables(func(r []byte) { r[32]++ })},
		{"region offset", image.ErrTruncated, false, tables(func(r []byte) { r[37]++ })},
		{"region table", image.ErrInvalid, false, tables(func(r []byte) { le.PutUint32(r[8:], 1) })},
		{"metadata signature", image.ErrMagic, false, func(b []byte) { b[imagetest.VHDXMetadata] = 'M' }},
		{"metadata item", image.ErrFeature, false, func(b []byte) { b[imagetest.VHDXMetadata+32]++ }},
		{"metadata item offset", image.ErrInvalid, false, func(b []byte) { b[imagetest.VHDXMetadata+32+19] = 1 }},
		{"virtual disk size", image.ErrInvalid, false, func(b []byte) { b[find(b, itemSize)] = 1 }},
		{"logical sector size", image.ErrInvalid, false, func(b []byte) { b[find(b, itemLogical)] = 1 }},
		{"block size", image.ErrInvalid, false, func(b []byte) { b[find(b, itemParameters)] = 1 }},
		{"parent locator type", image.ErrFeature, false, func(b []byte) { b[find(b, itemLocator)]++ }},
		{"parent locator entry", image.ErrInvalid, false, func(b []byte) { b[find(b, itemLocator)+22] = 1 }},
		{"block table", image.ErrInvalid, false, func(b []byte) { b[find(b, itemSize)+5] = 1 }},
		{"block table entry 1", image.ErrInvalid, false, func(b []byte) { b[imagetest.VHDXTable+8] = 5 }},
		{"block table entry 0", image.ErrTruncated, false, func(b []byte) { b[imagetest.VHDXTable+5] = 1 }},
		{"block table entry 0", image.ErrInvalid, false, func(b []byte) { clear(b[imagetest.VHDXTable+1 : imagetest.VHDXTable+8]) }},
		{"sector bitmap entry 0", image.ErrInvalid, false, func(b []byte) { clear(b[imagetest.VHDXTable+4096*8:][:8]) }},
		{"log entry flushed file offset", image.ErrTruncated, true, func(b []byte) { b[entry+offLogFlushed+5] = 1; relog(b) }},
		{"log entry descriptors", image.ErrInvalid, true, func(b []byte) { b[entry+offLogDescriptors+2] = 1; relog(b) }},
		{"log descriptor signature", image.ErrMagic, true, func(b []byte) { b[entry+logHeaderSize] = 'D'; relog(b) }},
		{"log descriptor sequence number", image.ErrInvalid, true, func(b []byte) { b[entry+logHeaderSize+24]++; relog(b) }},
		{"log descriptor file offset", image.ErrInvalid, true, func(b []byte) { b[entry+logHeaderSize+16]++; relog(b) }},
		{"log data sector", image.ErrInvalid, true, func(b []byte) { b[imagetest.VHDXLog] = 'D'; relog(b) }},
	} {
		b := sample(c.dirty).B
		c.edit(b)
		_, err := Open(bytes.NewReader(b), int64(len(b)))
		var e *image.Error
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field || e.Found == "" || e.Expected == "" {
			t.Errorf("%s: %v", c.field, err)
		}
	}
}

// relog gives the log entry of a dirty sample, which goes on at the start of the log, its checksum.
func relog(b []byte) {
	at := imagetest.VHDXLog + 255*page
	n := int(le.Uint32(b[at+offLogEntryLength:]))
	e := append(bytes.Clone(b[at:at+page]), b[imagetest.VHDXLog:imagetest.VHDXLog+n-page]...)
	copy(b[at+4:], le.AppendUint32(nil, checksum(e)))
}

// TestOneOfTwoIsEnough: a damaged header or region table has a copy.
func TestOneOfTwoIsEnough(t *testing.T) {
	for _, at := range []int{headerAt, otherHeaderAt, regionAt, otherRegionAt} {
		b := newWriter(2<<20, mebibyte, 512, 1, nil, "").B
		b[at]++
		if i := openBytes(t, b); i.Info.VirtualSize != 2<<20 {
			t.Errorf("%d: %+v", at, i.Info)
		}
	}
}

// TestTornLogEntryIsNotReplayed: an entry that was not written whole leaves the image as it was before.
func TestTornLogEntryIsNotReplayed(t *testing.T) {
	whole := sample(true)
	if i := whole.open(t); i.Replayed != 1 || i.Table.Allocated() != 8192 {
		t.Errorf("whole: %d entries, %d bytes", i.Replayed, i.Table.Allocated())
	}
	whole.B[imagetest.VHDXLog+500]++
	if i := whole.open(t); i.Replayed != 0 || i.Table.Allocated() != 4096 || len(i.Info.Notes) != 1 {
		t.Errorf("torn: %d entries, %d bytes, %q", i.Replayed, i.Table.Allocated(), i.Info.Notes)
	}
}

// TestTruncationIsRefused: cut at every page, each cut opens or says why.
func TestTruncationIsRefused(t *testing.T) {
	whole := sample(true).B
	for n := 0; n < len(whole); n += 37 * page {
		_, err := Open(bytes.NewReader(whole[:n]), int64(n))
		var e *image.Error
		if err != nil && !errors.As(err, &e) {
			t.Fatalf("cut at %d: %v", n, err)
		}
		if n < 6<<20 && !errors.Is(err, image.ErrTruncated) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
}

func TestGUID(t *testing.T) {
	const text = "2dc27766-f623-4200-9d64-115e9bfd4a08"
	if g, ok := parseGUID("{" + text + "}"); !ok || g.String() != text || g[0] != 0x66 || g[15] != 8 {
		t.Errorf("%v, %v", g, ok)
	}
	for _, bad := range []string{"", text[1:], text + "0", "zz" + text[2:], "2dc27766f-623-4200-9d64-115e9bfd4a08"} {
		if g, ok := parseGUID(bad); ok {
			t.Errorf("%q: %v", bad, g)
		}
	}
}

// FuzzOpen changes bytes of a good image, where they matter: headers, log, metadata and table. Never a panic, a hang, or
// more memory than the file justifies; what opens can be read.
func FuzzOpen(f *testing.F) {
	whole := [2][]byte{sample(false).B, sample(true).B}
	f.Add(false, uint32(imagetest.VHDXTable), []byte{7, 0, 0x50}, uint32(imagetest.VHDXMetadata+tableSize), []byte{})
	f.Add(true, uint32(imagetest.VHDXLog+255*page), []byte("loge"), uint32(headerAt), []byte("head"))
	f.Add(true, uint32(imagetest.VHDXLog+255*page+logHeaderSize), []byte("zero\x00\x00\x00\x00\x00\x10"), uint32(regionAt), []byte("regi"))
	f.Add(false, uint32(imagetest.VHDXMetadata+32), []byte{}, uint32(imagetest.VHDXMetadata+tableSize), []byte{0, 0, 0x10, 0, 1})
	f.Fuzz(func(t *testing.T, dirty bool, at1 uint32, p1 []byte, at2 uint32, p2 []byte) {
		b := bytes.Clone(whole[0])
		if dirty {
			b = bytes.Clone(whole[1])
		}
		copy(b[int(at1)%len(b):], p1)
		copy(b[int(at2)%len(b):], p2)
		for _, s := range []struct{ at, n int }{{headerAt, headerSize}, {otherHeaderAt, headerSize}, {regionAt, tableSize}, {otherRegionAt, tableSize}} {
			seal(b[s.at : s.at+s.n])
		}
		if n := le.Uint32(b[imagetest.VHDXLog+255*page+offLogEntryLength:]); n > page && n < mebibyte {
			relog(b)
		}
		i, err := Open(bytes.NewReader(b), int64(len(b)))
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
		read := make([]byte, 4096)
		for off := int64(0); off+4096 <= i.Info.VirtualSize && off < 64<<20; off += mebibyte {
			if _, err := i.Disk(zeros{}).ReadAt(read, off); err != nil {
				t.Fatalf("reading at %d: %v", off, err)
			}
		}
		i.Table.Changed(i.Table, i.Table.Metadata())
	})
}

// zeros is a parent of nothing.
type zeros struct{}

func (zeros) Size() int64 { return 0 }

func (zeros) ReadAt(p []byte, _ int64) (int, error) { clear(p); return len(p), nil }

var _ image.Parent = zeros{}

func TestReadPastTheEnd(t *testing.T) {
	d := newWriter(2<<20, mebibyte, 512, 1, nil, "").open(t).Disk(nil)
	if n, err := d.ReadAt(make([]byte, 1024), 2<<20-512); n != 512 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	if got := imagetest.ReadAll(t, d); len(got) != 2<<20 {
		t.Errorf("%d bytes", len(got))
	}
}
