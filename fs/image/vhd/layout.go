package vhd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"unicode/utf16"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// Sizes of the format in bytes. Never change.
const (
	sectorSize = 512
	headerSize = 1024
	entrySize  = 4

	headerCookie  = "cxsparse"
	headerVersion = 0x00010000
	unallocated   = 0xffffffff

	maxBlockSize = 256 << 20
	maxLocator   = 64 << 10                   // bytes of a parent's path that are believed
	maxEntries   = (2040 << 30) / (512 << 10) // of a block table: the largest disk in blocks of a quarter of the usual size
)

// Offsets of the fields of a dynamic header (specification, "Dynamic Disk Header Format").
const (
	offTable      = 16
	offVersion    = 24
	offEntries    = 28
	offBlockSize  = 32
	offChecksum   = 36
	offParentID   = 40
	offParentTime = 56
	offParentName = 64
	offLocators   = 576

	parentNameSize = 512
	locators       = 8
	locatorSize    = 24
)

// Offsets of the fields of a parent locator entry.
const (
	locatorLength = 8
	locatorOffset = 16
)

// header is a decoded dynamic header.
type header struct {
	at        image.FileOffset
	table     image.FileOffset
	entries   int64
	blockSize int64
	parentID  [16]byte
	time      uint32 // seconds since 2000
	name      string
	locators  [locators]locator
}

type locator struct {
	kind   string
	length int64
	offset image.FileOffset
}

// parseHeader decodes and checks 1024 bytes; offsets in its errors are relative to them.
func parseHeader(b []byte) (header, error) {
	be := binary.BigEndian
	if !bytes.HasPrefix(b, []byte(headerCookie)) {
		return header{}, fail("header cookie", 0, fmt.Sprintf("%q", b[:8]), fmt.Sprintf("%q", headerCookie), image.ErrMagic)
	}
	if got, want := be.Uint32(b[offChecksum:]), checksum(b, offChecksum); got != want {
		return header{}, fail("header checksum", offChecksum, fmt.Sprintf("%#08x", got), fmt.Sprintf("%#08x", want), image.ErrChecksum)
	}
	if got := be.Uint32(b[offVersion:]); got != headerVersion {
		return header{}, fail("header version", offVersion, fmt.Sprintf("%#08x", got), fmt.Sprintf("%#08x", headerVersion), image.ErrVersion)
	}
	h := header{
		table: image.FileOffset(be.Uint64(b[offTable:])), entries: int64(be.Uint32(b[offEntries:])), blockSize: int64(be.Uint32(b[offBlockSize:])),
		time: be.Uint32(b[offParentTime:]), name: utf16Text(b[offParentName:offParentName+parentNameSize], be),
	}
	copy(h.parentID[:], b[offParentID:])
	for i := range h.locators {
		l := b[offLocators+i*locatorSize:]
		h.locators[i] = locator{string(bytes.TrimRight(l[:4], "\x00 ")), int64(be.Uint32(l[locatorLength:])), image.FileOffset(be.Uint64(l[locatorOffset:]))}
	}
	if h.blockSize < sectorSize || h.blockSize > maxBlockSize || h.blockSize&(h.blockSize-1) != 0 {
		return header{}, fail("block size", offBlockSize, fmt.Sprint(h.blockSize), "a power of two from 512 bytes to 256 MiB", image.ErrInvalid)
	}
	return h, nil
}

// checksum is the ones' complement of the sum of all bytes, the four of the field itself taken as zero.
func checksum(b []byte, field int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < field || i >= field+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

// utf16Text decodes UTF-16 up to the first NUL.
func utf16Text(b []byte, order binary.ByteOrder) string {
	var units []uint16
	for ; len(b) >= 2; b = b[2:] {
		u := order.Uint16(b)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return string(utf16.Decode(units))
}

// file is an image while it is opened.
type file struct {
	r    io.ReaderAt
	size int64
}

// read returns n bytes at off: see image.ReadField.
func (f file) read(field string, off image.FileOffset, n int64) ([]byte, error) {
	return image.ReadField(f.r, f.size, field, off, n)
}

func fail(field string, off image.FileOffset, found, expected string, err error) *image.Error {
	return &image.Error{Field: field, Offset: off, Found: found, Expected: expected, Err: err}
}
