package vhd

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// writer makes dynamic and differencing VHDs in memory, block by block, as a hypervisor does.
type writer struct {
	b         []byte // the file without the trailing footer
	footer    []byte
	blockSize int64
	virtual   int64
	table     int64
}

var created = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// newWriter makes an empty image; parent, if not nil, makes it differencing, its file called name.
func newWriter(virtual, blockSize int64, id byte, parent *writer, name string) *writer {
	be := binary.BigEndian
	footer := image.FixedFooter(virtual, [16]byte{15: id}, created)
	w := &writer{footer: footer[:], blockSize: blockSize, virtual: virtual}
	be.PutUint64(w.footer[16:], 512)
	be.PutUint32(w.footer[60:], uint32(image.TypeDynamic))
	h := make([]byte, headerSize)
	copy(h, headerCookie)
	be.PutUint64(h[8:], ^uint64(0))
	be.PutUint32(h[offVersion:], headerVersion)
	entries := (virtual + blockSize - 1) / blockSize
	be.PutUint32(h[offEntries:], uint32(entries))
	be.PutUint32(h[offBlockSize:], uint32(blockSize))
	tableSize := (entries*entrySize + sectorSize - 1) / sectorSize * sectorSize
	w.table = 512 + headerSize
	be.PutUint64(h[offTable:], uint64(w.table))
	var tail []byte
	if parent != nil {
		be.PutUint32(w.footer[60:], uint32(image.TypeDifferencing))
		copy(h[offParentID:], parent.footer[68:84])
		be.PutUint32(h[offParentTime:], 1234)
		copy(h[offParentName:], encode16(name, be))
		tail = make([]byte, 1024)
		for i, l := range []struct{ kind, text string }{{"W2ru", `.\` + name}, {"W2ku", `C:\vm\` + name}, {"MacX", "file://./" + name}} {
			text := encode16(l.text, binary.LittleEndian)
			if l.kind == "MacX" {
				text = []byte(l.text)
			}
			e := h[offLocators+i*locatorSize:]
			copy(e, l.kind)
			be.PutUint32(e[4:], 1)
			be.PutUint32(e[8:], uint32(len(text)))
			be.PutUint64(e[16:], uint64(w.table+tableSize+int64(i)*256))
			copy(tail[i*256:], text)
		}
	}
	w.seal(h)
	w.b = append(bytes.Clone(w.footer), h...)
	w.b = append(append(w.b, bytes.Repeat([]byte{0xff}, int(tableSize))...), tail...)
	return w
}

// seal gives header and footer their checksums, and the copy of the footer at the start.
func (w *writer) seal(h []byte) {
	binary.BigEndian.PutUint32(h[offChecksum:], checksum(h, offChecksum))
	binary.BigEndian.PutUint32(w.footer[64:], checksum(w.footer, 64))
	if len(w.b) > 0 {
		copy(w.b, w.footer)
	}
}

func encode16(s string, order binary.ByteOrder) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, 0, 0)
		order.PutUint16(b[len(b)-2:], u)
	}
	return b
}

func (w *writer) entry(block int64) []byte { return w.b[w.table+block*entrySize:] }

// at is where the bitmap of a block lies, 0 if it is unallocated.
func (w *writer) at(block int64) int64 {
	if s := binary.BigEndian.Uint32(w.entry(block)); s != unallocated {
		return int64(s) * sectorSize
	}
	return 0
}

func (w *writer) setEntry(block int64, off int64) {
	s := uint32(unallocated)
	if off != 0 {
		s = uint32(off / sectorSize)
	}
	binary.BigEndian.PutUint32(w.entry(block), s)
}

func (w *writer) allocate(block int64) int64 {
	if at := w.at(block); at != 0 {
		return at
	}
	at := int64(len(w.b))
	w.b = append(w.b, make([]byte, bitmapSize(w.blockSize)+w.blockSize)...)
	w.setEntry(block, at)
	return at
}

// write writes whole sectors of the virtual disk, data, then bits.
func (w *writer) write(off int64, data []byte) {
	for ; len(data) > 0; off, data = off+sectorSize, data[sectorSize:] {
		block, in := off/w.blockSize, off%w.blockSize
		at := w.allocate(block)
		copy(w.b[at+bitmapSize(w.blockSize)+in:], data[:sectorSize])
		w.b[at+in/sectorSize/8] |= 0x80 >> (in / sectorSize % 8)
	}
}

// forget clears the bit of a sector, free the entry of a block; move puts a block at the end.
func (w *writer) forget(off int64) {
	if at := w.at(off / w.blockSize); at != 0 {
		in := off % w.blockSize
		w.b[at+in/sectorSize/8] &^= 0x80 >> (in / sectorSize % 8)
	}
}

func (w *writer) free(block int64) { w.setEntry(block, 0) }

func (w *writer) move(block int64) {
	if at := w.at(block); at != 0 {
		w.b = append(w.b, w.b[at:at+bitmapSize(w.blockSize)+w.blockSize]...)
		w.setEntry(block, int64(len(w.b))-bitmapSize(w.blockSize)-w.blockSize)
	}
}

// file is the whole image as it lies on disk.
func (w *writer) file() []byte { return append(bytes.Clone(w.b), w.footer...) }

func (w *writer) open(t testing.TB) *Image {
	t.Helper()
	return openBytes(t, w.file())
}

func openBytes(t testing.TB, b []byte) *Image {
	t.Helper()
	i, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func openFile(t testing.TB, name string) *Image {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return openBytes(t, b)
}
