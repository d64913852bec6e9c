package vhdx

import (
	"bytes"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// record is one page that a log entry writes.
type record struct {
	off  int64
	page []byte
}

// putEntry writes a log entry at a place of the log of b, its number and tail as told; it returns its length.
func putEntry(b []byte, at int64, log guid, sequence uint64, tail int64, records ...record) int64 {
	e := make([]byte, page*(1+len(records)))
	copy(e, "loge")
	le.PutUint32(e[offLogEntryLength:], uint32(len(e)))
	le.PutUint32(e[offLogTail:], uint32(tail))
	le.PutUint64(e[offLogSequence:], sequence)
	le.PutUint32(e[offLogDescriptors:], uint32(len(records)))
	copy(e[offLogEntryGUID:], log[:])
	le.PutUint64(e[offLogFlushed:], uint64(len(b)))
	le.PutUint64(e[offLogLast:], uint64(len(b)))
	for i, r := range records {
		d := e[logHeaderSize+i*descriptorSize:]
		copy(d, "desc")
		copy(d[4:], r.page[page-trailingBytes:])
		copy(d[8:], r.page[:leadingBytes])
		le.PutUint64(d[16:], uint64(r.off))
		le.PutUint64(d[24:], sequence)
		s := e[page*(1+i):][:page]
		copy(s, "data")
		le.PutUint32(s[4:], uint32(sequence>>32))
		copy(s[leadingBytes:], r.page[leadingBytes:page-trailingBytes])
		le.PutUint32(s[page-4:], uint32(sequence))
	}
	seal(e)
	copy(b[imagetest.VHDXLog+at:], e)
	return int64(len(e))
}

// counting is a page whose every byte differs from its neighbours, its ends not zero.
func counting(first byte) []byte {
	p := make([]byte, page)
	for i := range p {
		p[i] = first + byte(i%251)
	}
	return p
}

// TestLoggedPageIsWhole: all 4096 bytes of a page that is only in the log, its first eight and its last four too, which lie in
// the descriptor.
func TestLoggedPageIsWhole(t *testing.T) {
	w := imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, "")
	w.Write(0, make([]byte, mebibyte))
	_, at := w.Get(0)
	want := counting(7)
	putEntry(w.B, 0, guid{5}, 9, 0, record{at + 8192, want})
	w.Header(guid{5})
	i := openBytes(t, w.B)
	got := imagetest.ReadAll(t, i.Disk(nil))
	if i.Replayed != 1 || !bytes.Equal(got[8192:][:page], want) {
		t.Errorf("%d entries, not the page", i.Replayed)
	}
	if !bytes.Equal(got[:8192], make([]byte, 8192)) || got[8192+page] != 0 {
		t.Error("more than the page")
	}
}

// TestLogOverPayloadCountsAsWritten: data that the log has, and then that it has no more, differs from what was there.
func TestLogOverPayloadCountsAsWritten(t *testing.T) {
	w := imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, "")
	w.Write(mebibyte, bytes.Repeat([]byte{1}, mebibyte))
	_, at := w.Get(1)
	plain := openBytes(t, bytes.Clone(w.B))
	putEntry(w.B, 0, guid{5}, 9, 0, record{at + 3*page, counting(7)})
	w.Header(guid{5})
	logged := openBytes(t, w.B)
	block := extent.DiskBlock((mebibyte + 3*page) / extent.BlockSize)
	want := extent.Of(extent.Range[extent.DiskBlock]{Start: block, End: block + 1})
	var none extent.Set[extent.FileBlock]
	for what, got := range map[string]extent.Set[extent.DiskBlock]{
		"it comes": logged.Table.Changed(plain.Table, none), "it goes": plain.Table.Changed(logged.Table, none),
	} {
		if len(got.Ranges()) != 1 || got.Ranges()[0] != want.Ranges()[0] {
			t.Errorf("%s: %v, want %v", what, got.Ranges(), want.Ranges())
		}
	}
}

// TestNewestCompleteSequenceIsReplayed: the log is a ring, and an older sequence that is complete as well is in it still; of
// the newest one only what its last entry's tail names, and nothing of a newer one that lost its tail.
func TestNewestCompleteSequenceIsReplayed(t *testing.T) {
	w := imagetest.NewVHDX(3<<20, mebibyte, 512, 1, nil, "")
	w.Write(0, make([]byte, mebibyte))
	_, at := w.Get(0)
	log := guid{5}
	of := func(b byte) record { return record{at, counting(b)} }
	second := func(b byte) record { return record{at + page, counting(b)} }
	n := putEntry(w.B, 0, log, 10, 0, of(1))            // old and complete
	putEntry(w.B, n, log, 11, 0, second(1))             //
	putEntry(w.B, 20*page, log, 20, 20*page, second(9)) // flushed: before the tail of the next
	putEntry(w.B, 22*page, log, 21, 22*page, of(2))     // the newest that is whole
	putEntry(w.B, 24*page, log, 22, 22*page, record{at + 2*page, counting(3)})
	putEntry(w.B, 40*page, log, 30, 60*page, of(8)) // its tail was overwritten
	w.Header(log)
	i := openBytes(t, w.B)
	got := imagetest.ReadAll(t, i.Disk(nil))
	if i.Replayed != 2 || !bytes.Equal(got[:page], counting(2)) || !bytes.Equal(got[2*page:3*page], counting(3)) {
		t.Errorf("%d entries, the first page begins with %v", i.Replayed, got[:4])
	}
	if !bytes.Equal(got[page:2*page], make([]byte, page)) {
		t.Errorf("an entry that is no part of the newest sequence was replayed: %v", got[page:page+4])
	}
}
