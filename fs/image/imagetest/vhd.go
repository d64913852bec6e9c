package imagetest

import (
	"bytes"
	"encoding/binary"
	"time"
	"unicode/utf16"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// VHD makes dynamic and differencing VHDs in memory, block by block, as a hypervisor does.
type VHD struct {
	B                  []byte // the file without the trailing footer
	Footer             []byte
	BlockSize, Virtual int64
	table              int64
}

// Created is the time stamp of every VHD here.
var Created = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// Of the Virtual Hard Disk Image Format Specification 1.0.
const (
	vhdSector  = 512
	vhdHeader  = 1024
	vhdEntry   = 4
	vhdLocator = 24
	vhdAbsent  = 0xffffffff
	image2000  = 946684800 // second 0 of a time stamp

	vhdLocators    = 3
	vhdLocatorRoom = 512
)

// NewVHD makes an empty image; parent, if not nil, makes it differencing, its file called name.
func NewVHD(virtual, blockSize int64, id byte, parent *VHD, name string) *VHD {
	be := binary.BigEndian
	footer := image.FixedFooter(virtual, [16]byte{15: id}, Created)
	w := &VHD{Footer: footer[:], BlockSize: blockSize, Virtual: virtual}
	be.PutUint64(w.Footer[16:], 512)
	be.PutUint32(w.Footer[60:], uint32(image.TypeDynamic))
	h := make([]byte, vhdHeader)
	copy(h, "cxsparse")
	be.PutUint64(h[8:], ^uint64(0))
	be.PutUint32(h[24:], 0x00010000)
	entries := (virtual + blockSize - 1) / blockSize
	be.PutUint32(h[28:], uint32(entries))
	be.PutUint32(h[32:], uint32(blockSize))
	tableSize := (entries*vhdEntry + vhdSector - 1) / vhdSector * vhdSector
	w.table = 512 + vhdHeader
	be.PutUint64(h[16:], uint64(w.table))
	var tail []byte
	if parent != nil {
		be.PutUint32(w.Footer[60:], uint32(image.TypeDifferencing))
		copy(h[40:], parent.Footer[68:84])
		copy(h[56:60], parent.Footer[24:])
		copy(h[64:], encode16(name, be))
		tail = make([]byte, vhdLocators*vhdLocatorRoom)
		for i := range vhdLocators {
			be.PutUint64(h[576+i*vhdLocator+16:], uint64(w.table+tableSize+int64(i)*vhdLocatorRoom))
		}
	}
	w.Seal(h)
	w.B = append(bytes.Clone(w.Footer), h...)
	w.B = append(append(w.B, bytes.Repeat([]byte{0xff}, int(tableSize))...), tail...)
	if parent != nil {
		w.Locate(0, "W2ru", `.\`+name)
		w.Locate(1, "W2ku", `C:\vm\`+name)
		w.Locate(2, "MacX", "file://./"+name)
	}
	return w
}

// Locate writes a parent locator, 0 to 2; an empty text takes it away.
func (w *VHD) Locate(i int, kind, text string) {
	b := encode16(text, binary.LittleEndian)
	if kind == "MacX" {
		b = []byte(text)
	}
	h := w.header()
	e := h[576+i*vhdLocator:]
	clear(e[:16])
	if len(b) > 0 {
		copy(e, kind)
		binary.BigEndian.PutUint32(e[4:], 1)
		binary.BigEndian.PutUint32(e[8:], uint32(len(b)))
	}
	copy(w.B[binary.BigEndian.Uint64(e[16:]):][:vhdLocatorRoom], append(b, make([]byte, vhdLocatorRoom)...))
	w.Seal(h)
}

// Reparent links the image to another parent, of a given time.
func (w *VHD) Reparent(parent *VHD, at time.Time) {
	h := w.header()
	copy(h[40:], parent.Footer[68:84])
	binary.BigEndian.PutUint32(h[56:], uint32(at.Unix()-image2000))
	w.Seal(h)
}

// Rename writes the parent's name, which is no locator.
func (w *VHD) Rename(name string) {
	h := w.header()
	clear(h[64:576])
	copy(h[64:576], encode16(name, binary.BigEndian))
	w.Seal(h)
}

func (w *VHD) header() []byte { return w.B[512 : 512+vhdHeader] }

// Seal gives header and footer their checksums, and the copy of the footer at the start.
func (w *VHD) Seal(h []byte) {
	binary.BigEndian.PutUint32(h[36:], sumVHD(h, 36))
	binary.BigEndian.PutUint32(w.Footer[64:], sumVHD(w.Footer, 64))
	if len(w.B) > 0 {
		copy(w.B, w.Footer)
	}
}

func encode16(s string, order binary.ByteOrder) (b []byte) {
	for _, u := range utf16.Encode([]rune(s)) {
		b = append(b, 0, 0)
		order.PutUint16(b[len(b)-2:], u)
	}
	return b
}

func (w *VHD) entry(block int64) []byte { return w.B[w.table+block*vhdEntry:] }

// at is where the bitmap of a block lies, 0 if it is unallocated.
func (w *VHD) at(block int64) int64 {
	if s := binary.BigEndian.Uint32(w.entry(block)); s != vhdAbsent {
		return int64(s) * vhdSector
	}
	return 0
}

func (w *VHD) setEntry(block int64, off int64) {
	s := uint32(vhdAbsent)
	if off != 0 {
		s = uint32(off / vhdSector)
	}
	binary.BigEndian.PutUint32(w.entry(block), s)
}

func (w *VHD) allocate(block int64) int64 {
	if at := w.at(block); at != 0 {
		return at
	}
	at := int64(len(w.B))
	w.B = append(w.B, make([]byte, vhdBitmap(w.BlockSize)+w.BlockSize)...)
	w.setEntry(block, at)
	return at
}

// Write writes whole sectors of the virtual disk, data, then bits.
func (w *VHD) Write(off int64, data []byte) {
	for ; len(data) > 0; off, data = off+vhdSector, data[vhdSector:] {
		block, in := off/w.BlockSize, off%w.BlockSize
		at := w.allocate(block)
		copy(w.B[at+vhdBitmap(w.BlockSize)+in:], data[:vhdSector])
		w.B[at+in/vhdSector/8] |= 0x80 >> (in / vhdSector % 8)
	}
}

// Forget clears the bit of a sector.
func (w *VHD) Forget(off int64) {
	if at := w.at(off / w.BlockSize); at != 0 {
		in := off % w.BlockSize
		w.B[at+in/vhdSector/8] &^= 0x80 >> (in / vhdSector % 8)
	}
}

// Free clears the entry of a block.
func (w *VHD) Free(block int64) { w.setEntry(block, 0) }

// Move puts a block at the end of the file.
func (w *VHD) Move(block int64) {
	if at := w.at(block); at != 0 {
		w.B = append(w.B, w.B[at:at+vhdBitmap(w.BlockSize)+w.BlockSize]...)
		w.setEntry(block, int64(len(w.B))-vhdBitmap(w.BlockSize)-w.BlockSize)
	}
}

// File is the whole image as it lies on disk.
func (w *VHD) File() []byte { return append(bytes.Clone(w.B), w.Footer...) }

// sumVHD is the ones' complement of the sum of all bytes, the four of the field itself left out.
func sumVHD(b []byte, field int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < field || i >= field+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// vhdBitmap is how many bytes the sector bitmap of a block takes: whole sectors.
func vhdBitmap(blockSize int64) int64 {
	return (blockSize/vhdSector + 8*vhdSector - 1) / (8 * vhdSector) * vhdSector
}
