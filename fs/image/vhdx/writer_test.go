package vhdx

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"unicode/utf16"
)

// writer makes dynamic and differencing VHDXs in memory.
type writer struct {
	b                      []byte
	virtual, block, sector int64
	differencing           bool
	sequence               uint64
	dataWrite              guid
	pending                map[int64][]byte // pages that only the log has
}

const (
	writerLog      = 1 << 20
	writerMetadata = 2 << 20
	writerTable    = 3 << 20
	writerData     = 4 << 20
)

var le = binary.LittleEndian

func newWriter(virtual, block, sector int64, id byte, parent *writer, name string) *writer {
	w := &writer{b: make([]byte, writerData), virtual: virtual, block: block, sector: sector, differencing: parent != nil,
		sequence: 1, dataWrite: guid{id, 1, 2, 3, 15: id}, pending: map[int64][]byte{}}
	copy(w.b, signature)
	w.header(guid{})
	w.header(guid{})
	r := w.b[regionAt : regionAt+tableSize]
	copy(r, "regi")
	le.PutUint32(r[8:], 2)
	for i, e := range []struct {
		id guid
		at uint64
	}{{regionTable, writerTable}, {regionMetadata, writerMetadata}} {
		copy(r[16+32*i:], e.id[:])
		le.PutUint64(r[32+32*i:], e.at)
		le.PutUint32(r[40+32*i:], mebibyte)
		le.PutUint32(r[44+32*i:], 1)
	}
	seal(r)
	copy(w.b[otherRegionAt:], r)
	flags := uint32(0)
	var locator []byte
	if parent != nil {
		flags, locator = flagHasParent, parentLocator(parent.dataWrite, name)
	}
	m := w.b[writerMetadata:]
	copy(m, "metadata")
	at := tableSize
	for _, it := range []struct {
		id guid
		b  []byte
	}{
		{itemParameters, le.AppendUint32(le.AppendUint32(nil, uint32(block)), flags)}, {itemSize, le.AppendUint64(nil, uint64(virtual))},
		{itemLogical, le.AppendUint32(nil, uint32(sector))}, {itemPhysical, le.AppendUint32(nil, 4096)},
		{itemID, bytes.Repeat([]byte{id}, 16)}, {itemLocator, locator},
	} {
		if len(it.b) == 0 {
			continue
		}
		n := le.Uint16(m[10:])
		e := m[32+32*int(n):]
		copy(e, it.id[:])
		le.PutUint32(e[16:], uint32(at))
		le.PutUint32(e[20:], uint32(len(it.b)))
		le.PutUint32(e[24:], flagItemRequired)
		copy(m[at:], it.b)
		at += len(it.b)
		le.PutUint16(m[10:], n+1)
	}
	return w
}

func seal(b []byte) { le.PutUint32(b[4:], checksum(b)) }

// header writes the next header in the place of the older one.
func (w *writer) header(log guid) {
	w.sequence++
	h := w.b[headerAt+int(w.sequence%2)*(otherHeaderAt-headerAt):][:headerSize]
	clear(h)
	copy(h, "head")
	le.PutUint64(h[offSequence:], w.sequence)
	copy(h[offDataWrite:], w.dataWrite[:])
	copy(h[offLogGUID:], log[:])
	le.PutUint16(h[offVersion:], version)
	le.PutUint32(h[offLogLength:], mebibyte)
	le.PutUint64(h[offLogOffset:], writerLog)
	seal(h)
}

func encode16(s string) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = le.AppendUint16(b, u)
	}
	return b
}

func parentLocator(parent guid, name string) []byte {
	pairs := []string{"parent_linkage", "{" + parent.String() + "}", "relative_path", `.\` + name, "absolute_win32_path", `C:\vm\` + name}
	b := append(bytes.Clone(locatorVHDX[:]), 0, 0, byte(len(pairs)/2), 0)
	texts := []byte(nil)
	base := len(b) + len(pairs)/2*12
	for i := 0; i < len(pairs); i += 2 {
		k, v := encode16(pairs[i]), encode16(pairs[i+1])
		b = le.AppendUint32(b, uint32(base+len(texts)))
		b = le.AppendUint32(b, uint32(base+len(texts)+len(k)))
		b = le.AppendUint16(le.AppendUint16(b, uint16(len(k))), uint16(len(v)))
		texts = append(append(texts, k...), v...)
	}
	return append(b, texts...)
}

func (w *writer) ratio() int64 { return sectorsPerChunk * w.sector / w.block }

func (w *writer) entry(block int64) []byte { return w.b[writerTable+(block+block/w.ratio())*8:] }

func (w *writer) get(block int64) (state uint64, at int64) {
	e := le.Uint64(w.entry(block))
	return e & 7, int64(e >> 20 << 20)
}

func (w *writer) set(block int64, state uint64, at int64) {
	le.PutUint64(w.entry(block), state|uint64(at))
}

func (w *writer) append(n int64) int64 {
	at := int64(len(w.b))
	w.b = append(w.b, make([]byte, (n+mebibyte-1)/mebibyte*mebibyte)...)
	return at
}

// bits is the sector bitmap of a block, allocated with its chunk.
func (w *writer) bits(block int64) []byte {
	chunk := block / w.ratio()
	e := (chunk*(w.ratio()+1) + w.ratio()) * 8
	if le.Uint64(w.b[writerTable+e:]) == 0 {
		at := w.append(mebibyte)
		le.PutUint64(w.b[writerTable+e:], stateFull|uint64(at))
	}
	at := int64(le.Uint64(w.b[writerTable+e:]) >> 20 << 20)
	n := w.block / w.sector / 8
	return w.b[at+block%w.ratio()*n:][:n]
}

// write writes whole sectors. In a differencing image a block that was absent becomes partly present.
func (w *writer) write(off int64, data []byte) {
	for ; len(data) > 0; off, data = off+w.sector, data[w.sector:] {
		block, in := off/w.block, off%w.block
		state, at := w.get(block)
		if state != stateFull && state != statePartial {
			at = w.append(w.block)
			if next := uint64(stateFull); w.differencing && state == stateNotPresent {
				next = statePartial
				clear(w.bits(block))
				w.set(block, next, at)
			} else {
				w.set(block, next, at)
			}
			state, _ = w.get(block)
		}
		copy(w.b[at+in:], data[:w.sector])
		if state == statePartial {
			w.bits(block)[in/w.sector/8] |= 1 << (in / w.sector % 8)
		}
	}
}

func (w *writer) move(block int64) {
	if state, at := w.get(block); state >= stateFull {
		to := w.append(w.block)
		copy(w.b[to:], w.b[at:at+w.block])
		w.set(block, state, to)
	}
}

// flush writes what only the log has into its place and ends the log.
func (w *writer) flush() {
	for at, p := range w.pending {
		copy(w.b[at:], p)
	}
	w.pending = map[int64][]byte{}
	w.header(guid{})
}

// logSince takes every page of the table and of the bitmaps that differs from before back, and logs it instead.
func (w *writer) logSince(before []byte, at int64) {
	var descriptors, data []byte
	sequence := w.sequence + 100
	count := uint32(0)
	for off := int64(writerTable); off < int64(len(before)); off += page {
		now := w.b[off : off+page]
		if bytes.Equal(now, before[off:off+page]) || !w.metadata(off) {
			continue
		}
		count++
		descriptors = append(append(append(descriptors, "desc"...), now[page-4:]...), now[:8]...)
		descriptors = le.AppendUint64(le.AppendUint64(descriptors, uint64(off)), sequence)
		data = le.AppendUint32(append(data, "data"...), uint32(sequence>>32))
		data = le.AppendUint32(append(data, now[8:page-4]...), uint32(sequence))
		w.pending[off] = bytes.Clone(now)
		copy(w.b[off:], before[off:off+page])
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
	le.PutUint64(e[offLogFlushed:], uint64(len(w.b)))
	le.PutUint64(e[offLogLast:], uint64(len(w.b)))
	seal(e)
	for i := range e {
		w.b[writerLog+(at+int64(i))%mebibyte] = e[i]
	}
	w.header(log)
}

// metadata says whether a page belongs to the block table or to a sector bitmap.
func (w *writer) metadata(off int64) bool {
	if off < writerData {
		return true
	}
	e := w.ratio() * 8
	at := int64(le.Uint64(w.b[writerTable+e:]) >> 20 << 20)
	return at != 0 && off >= at && off < at+mebibyte
}

func (w *writer) open(t testing.TB) *Image { return openBytes(t, w.b) }

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
