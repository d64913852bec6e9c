package vhdx

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

var le = binary.LittleEndian

// logged leaves changes of an image in its log.
type logged struct {
	*imagetest.VHDX
	pending map[int64][]byte // pages that only the log has
}

func newWriter(virtual, block, sector int64, id byte, parent *imagetest.VHDX, name string) *logged {
	return &logged{imagetest.NewVHDX(virtual, block, sector, id, parent, name), map[int64][]byte{}}
}

func (w *logged) open(t testing.TB) *Image { return openBytes(t, w.B) }

func seal(b []byte) { imagetest.SealVHDX(b) }

// next is the sequence number of an entry, higher than all before.
func (w *logged) next() uint64 {
	return max(le.Uint64(w.B[headerAt+offSequence:]), le.Uint64(w.B[otherHeaderAt+offSequence:])) + 100
}

// flush writes what only the log has into its place and ends the log.
func (w *logged) flush() {
	for at, p := range w.pending {
		copy(w.B[at:], p)
	}
	w.pending = map[int64][]byte{}
	w.Header(guid{})
}

// logSince takes every page of the table and of the bitmaps that differs from before back, and logs it instead.
func (w *logged) logSince(before []byte, at int64) {
	var descriptors, data []byte
	sequence := w.next()
	count := uint32(0)
	for off := int64(imagetest.VHDXTable); off < int64(len(before)); off += page {
		now := w.B[off : off+page]
		if bytes.Equal(now, before[off:off+page]) || !w.metadata(off) {
			continue
		}
		count++
		descriptors = append(append(append(descriptors, "desc"...), now[page-4:]...), now[:8]...)
		descriptors = le.AppendUint64(le.AppendUint64(descriptors, uint64(off)), sequence)
		data = le.AppendUint32(append(data, "data"...), uint32(sequence>>32))
		data = le.AppendUint32(append(data, now[8:page-4]...), uint32(sequence))
		w.pending[off] = bytes.Clone(now)
		copy(w.B[off:], before[off:off+page])
	}
	log := guid{byte(sequence), byte(sequence >> 8), 3: 1}
	e := make([]byte, logHeaderSize)
	copy(e, "loge")
	e = append(e, descriptors...)
	e = append(e, make([]byte, -len(e)&(page-1))...)
	e = append(e, data...)
	le.PutUint32(e[offLogEntryLength:], uint32(len(e)))
	le.PutUint32(e[offLogTail:], uint32(at))
	le.PutUint64(e[offLogSequence:], sequence)
	le.PutUint32(e[offLogDescriptors:], count)
	copy(e[offLogEntryGUID:], log[:])
	le.PutUint64(e[offLogFlushed:], uint64(len(w.B)))
	le.PutUint64(e[offLogLast:], uint64(len(w.B)))
	seal(e)
	for i := range e {
		w.B[imagetest.VHDXLog+(at+int64(i))%mebibyte] = e[i]
	}
	w.Header(log)
}

// metadata says whether a page belongs to the block table or to a sector bitmap.
func (w *logged) metadata(off int64) bool {
	if off < imagetest.VHDXData {
		return true
	}
	e := w.Ratio() * 8
	at := int64(le.Uint64(w.B[imagetest.VHDXTable+e:]) >> 20 << 20)
	return at != 0 && off >= at && off < at+mebibyte
}

func openBytes(t testing.TB, b []byte) *Image {
	t.Helper()
	i, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func openFile(t testing.TB, name string) (*Image, []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return openBytes(t, b), b
}
