package vhdx

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestMemoryIsBoundedByTheFile: images whose claims would take more memory than the file has bytes are refused before it is
// taken.
func TestMemoryIsBoundedByTheFile(t *testing.T) {
	base := imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, "")
	log := sample(true).B
	for _, at := range []int{headerAt, otherHeaderAt} {
		le.PutUint32(log[at+offLogLength:], 1<<31)
		seal(log[at : at+headerSize])
	}
	items := sample(false).B
	m := items[imagetest.VHDXMetadata:]
	for k := range 2000 {
		copy(m[32+32*(6+k):], m[32:64])
		le.PutUint32(m[32+32*(6+k)+20:], 900<<10)
	}
	le.PutUint16(m[10:], 2006)
	for _, c := range []struct {
		what, field string
		file        imagetest.Sparse
		want        error
	}{
		{"blocks one on the other, each partly there", "block table entry 1", overlaid(base), image.ErrInvalid},
		{"keys that all name the same text", "parent locator entry", echoing(base), image.ErrInvalid},
		{"a log of 2 GiB", "log length", imagetest.Sparse{Size: 4 << 30, Parts: map[int64][]byte{0: log}}, image.ErrFeature},
		{"an item again and again", "metadata item", imagetest.Sparse{Size: int64(len(items)), Parts: map[int64][]byte{0: items}}, image.ErrInvalid},
		{"64 TiB in blocks of 1 MiB", "block table", claiming(64 << 40), image.ErrUnsupported},
		{"one block more than a replica can hold", "block table", claiming(8<<40 + mebibyte), image.ErrUnsupported},
	} {
		err := imagetest.CheckMemory(t, c.what, 24<<20, func() error { _, err := Open(c.file, c.file.Size); return err })
		e := (*image.Error)(nil)
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// overlaid is a disk of 4 TiB whose 16,384 blocks of 256 MiB are partly there, all in one place, all with one bitmap.
func overlaid(parent *imagetest.VHDX) imagetest.Sparse {
	w := imagetest.NewVHDX(4<<40, 256<<20, 512, 2, parent, "base.vhdx")
	for b := range int64(1 << 14) {
		w.Set(b, statePartial, 512<<20)
		le.PutUint64(w.B[imagetest.VHDXTable+(b/w.Ratio()*(w.Ratio()+1)+w.Ratio())*8:], stateFull|8<<20)
	}
	return imagetest.Sparse{Size: 1 << 30, Parts: map[int64][]byte{0: w.B, 8 << 20: bytes.Repeat([]byte{0x55}, mebibyte)}}
}

// echoing has a parent locator whose 60,000 values are the same 60,000 bytes.
func echoing(parent *imagetest.VHDX) imagetest.Sparse {
	w := imagetest.NewVHDX(3<<20, mebibyte, 512, 2, parent, "base.vhdx")
	at := find(w.B, itemLocator)
	l := w.B[at : at+900<<10]
	clear(l[18:])
	le.PutUint16(l[18:], 60000)
	for k := range 60000 {
		e := l[20+12*k:]
		le.PutUint32(e, 800<<10)
		le.PutUint32(e[4:], 800<<10)
		le.PutUint16(e[8:], 8)
		le.PutUint16(e[10:], 60000)
	}
	entry := bytes.Index(w.B[imagetest.VHDXMetadata:], itemLocator[:])
	le.PutUint32(w.B[imagetest.VHDXMetadata+entry+20:], 900<<10)
	return imagetest.Sparse{Size: int64(len(w.B)), Parts: map[int64][]byte{0: w.B}}
}

// claiming is a sparse file with a block table that is large enough for its disk of blocks of 1 MiB, and empty.
func claiming(virtual int64) imagetest.Sparse {
	w := imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, "")
	le.PutUint64(w.B[imagetest.VHDXMetadata+64<<10+8:], uint64(virtual))
	const table = 600 * mebibyte
	for _, at := range []int{regionAt, otherRegionAt} {
		r := w.B[at : at+tableSize]
		for k := range le.Uint32(r[8:]) {
			if e := r[16+k*tableEntry:]; bytes.Equal(e[:16], regionTable[:]) {
				le.PutUint32(e[24:], table)
			}
		}
		seal(r)
	}
	return imagetest.Sparse{Size: 2 * table, Parts: map[int64][]byte{0: w.B}}
}
