package oracle

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// ErrUnreadable: the bytes of an image file contradict themselves, or say something that is not read here. No point shows
// such a state.
var ErrUnreadable = errors.New("the file is no image at this moment")

// Virtual is the virtual disk in the bytes of a dynamic VHD or a VHDX, read as the formats' specifications say: what has no
// place in the file is zeros. Images with a parent or a log are not read. The disk is put together in space, if it fits.
func Virtual(file, space []byte) ([]byte, error) {
	if bytes.HasPrefix(file, []byte("vhdxfile")) {
		return readVHDX(file, space)
	}
	return readVHD(file, space)
}

// span is file[at:at+n], nil if the file ends before.
func span(file []byte, at, n uint64) []byte {
	if end := at + n; end >= at && end <= uint64(len(file)) {
		return file[at:end]
	}
	return nil
}

// zeros is a disk of n bytes of zeros.
func zeros(space []byte, n uint64) ([]byte, error) {
	const most = 1 << 30 // bytes of memory; no test has a disk so large
	switch {
	case n > most:
		return nil, fmt.Errorf("a disk of %d bytes: %w", n, ErrUnreadable)
	case uint64(cap(space)) < n:
		return make([]byte, n), nil
	}
	space = space[:n]
	clear(space)
	return space, nil
}

// vhdFooter is the footer that counts: the last sector's, if it belongs to this image, else the copy at the start.
func vhdFooter(file []byte) []byte {
	const size = 512
	if len(file) < size {
		return nil
	}
	good := func(b []byte) bool { return string(b[:8]) == "conectix" && vhdSum(b, 64) }
	last, first := file[len(file)-size:], file[:size]
	switch {
	case good(last) && (!good(first) || bytes.Equal(last[68:84], first[68:84])):
		return last
	case good(first):
		return first
	}
	return nil
}

// vhdSum says whether the four bytes at a field are the ones' complement of the sum of all others.
func vhdSum(b []byte, field int) bool {
	var sum uint32
	for i, c := range b {
		if i < field || i >= field+4 {
			sum += uint32(c)
		}
	}
	return ^sum == binary.BigEndian.Uint32(b[field:])
}

func readVHD(file, space []byte) ([]byte, error) {
	const sector, headerSize, dynamic = 512, 1024, 3
	be := binary.BigEndian
	footer := vhdFooter(file)
	if footer == nil || be.Uint32(footer[60:]) != dynamic {
		return nil, fmt.Errorf("no footer of a dynamic VHD: %w", ErrUnreadable)
	}
	h := span(file, be.Uint64(footer[16:]), headerSize)
	if h == nil || string(h[:8]) != "cxsparse" || !vhdSum(h, 36) {
		return nil, fmt.Errorf("no header of a dynamic VHD: %w", ErrUnreadable)
	}
	virtual, block := be.Uint64(footer[48:]), uint64(be.Uint32(h[32:]))
	if block < sector || block&(block-1) != 0 {
		return nil, fmt.Errorf("blocks of %d bytes: %w", block, ErrUnreadable)
	}
	disk, err := zeros(space, virtual)
	if err != nil {
		return nil, err
	}
	table := span(file, be.Uint64(h[16:]), (virtual+block-1)/block*4)
	if table == nil {
		return nil, fmt.Errorf("the block table ends beyond the file: %w", ErrUnreadable)
	}
	ahead := (block/sector + 8*sector - 1) / (8 * sector) * sector // of the block's data: one bit a sector, whole sectors
	for i := uint64(0); i*block < virtual; i++ {
		at := uint64(be.Uint32(table[4*i:]))
		if at == 0xffffffff {
			continue
		}
		into := disk[i*block : min((i+1)*block, virtual)]
		b := span(file, at*sector, ahead+uint64(len(into)))
		if b == nil {
			return nil, fmt.Errorf("block %d ends beyond the file: %w", i, ErrUnreadable)
		}
		for s := 0; s*sector < len(into); s++ {
			if b[s/8]&(0x80>>(s%8)) != 0 {
				copy(into[s*sector:min((s+1)*sector, len(into))], b[int(ahead)+s*sector:])
			}
		}
	}
	return disk, nil
}

// The GUIDs of a VHDX that lead to the disk, in the order of the file.
var (
	vhdxTable      = []byte{0x66, 0x77, 0xc2, 0x2d, 0x23, 0xf6, 0x00, 0x42, 0x9d, 0x64, 0x11, 0x5e, 0x9b, 0xfd, 0x4a, 0x08}
	vhdxMetadata   = []byte{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
	vhdxParameters = []byte{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}
	vhdxSize       = []byte{0x24, 0x42, 0xa5, 0x2f, 0x1b, 0xcd, 0x76, 0x48, 0xb2, 0x11, 0x5d, 0xbe, 0xd8, 0x3b, 0xf4, 0xb8}
	vhdxSector     = []byte{0x1d, 0xbf, 0x41, 0x81, 0x6f, 0xa9, 0x09, 0x47, 0xba, 0x47, 0xf2, 0x33, 0xa8, 0xfa, 0xab, 0x5f}
)

// vhdxSum says whether a structure begins with its signature and has its CRC-32C in the four bytes behind.
func vhdxSum(b []byte, sign string) bool {
	if b == nil || string(b[:4]) != sign {
		return false
	}
	t := crc32.MakeTable(crc32.Castagnoli)
	return crc32.Update(crc32.Update(crc32.Update(0, t, b[:4]), t, make([]byte, 4)), t, b[8:]) == binary.LittleEndian.Uint32(b[4:])
}

// vhdxHeader is the valid header with the higher sequence number.
func vhdxHeader(file []byte) (newest []byte) {
	le := binary.LittleEndian
	for _, at := range []uint64{64 << 10, 128 << 10} {
		if h := span(file, at, 4096); vhdxSum(h, "head") && (newest == nil || le.Uint64(h[8:]) > le.Uint64(newest[8:])) {
			newest = h
		}
	}
	return newest
}

// vhdxEntry is where a table of entries of 32 bytes says that a thing lies.
func vhdxEntry(entries []byte, n uint64, id []byte) []byte {
	for i := range n {
		if e := span(entries, 32*i, 32); e != nil && bytes.Equal(e[:16], id) {
			return e[16:]
		}
	}
	return nil
}

// vhdxRegions are the block table and the metadata region.
func vhdxRegions(file []byte) (table, metadata []byte) {
	le := binary.LittleEndian
	for _, at := range []uint64{192 << 10, 256 << 10} {
		r := span(file, at, 64<<10)
		if !vhdxSum(r, "regi") {
			continue
		}
		region := func(id []byte) []byte {
			e := vhdxEntry(r[16:], uint64(le.Uint32(r[8:])), id)
			if e == nil {
				return nil
			}
			return span(file, le.Uint64(e), uint64(le.Uint32(e[8:])))
		}
		return region(vhdxTable), region(vhdxMetadata)
	}
	return nil, nil
}

func readVHDX(file, space []byte) ([]byte, error) {
	const mib = 1 << 20
	le := binary.LittleEndian
	h := vhdxHeader(file)
	if h == nil || !bytes.Equal(h[48:64], make([]byte, 16)) {
		return nil, fmt.Errorf("no header, or one with a log: %w", ErrUnreadable)
	}
	table, m := vhdxRegions(file)
	if table == nil || m == nil || string(m[:8]) != "metadata" {
		return nil, fmt.Errorf("no regions: %w", ErrUnreadable)
	}
	item := func(id []byte, n uint64) []byte {
		e := vhdxEntry(m[32:], uint64(le.Uint16(m[10:])), id)
		if e == nil {
			return nil
		}
		return span(m, uint64(le.Uint32(e)), n)
	}
	parameters, size, sector := item(vhdxParameters, 8), item(vhdxSize, 8), item(vhdxSector, 4)
	if parameters == nil || size == nil || sector == nil || le.Uint32(parameters[4:])&2 != 0 {
		return nil, fmt.Errorf("no metadata, or those of a child: %w", ErrUnreadable)
	}
	virtual, block := le.Uint64(size), uint64(le.Uint32(parameters))
	if block < mib || block&(block-1) != 0 {
		return nil, fmt.Errorf("blocks of %d bytes: %w", block, ErrUnreadable)
	}
	disk, err := zeros(space, virtual)
	if err != nil {
		return nil, err
	}
	ratio := 1 << 23 * uint64(le.Uint32(sector)) / block // behind so many entries comes one of a sector bitmap
	for i := uint64(0); i*block < virtual; i++ {
		e := span(table, (i+i/ratio)*8, 8)
		if e == nil {
			return nil, fmt.Errorf("entry %d lies beyond the block table: %w", i, ErrUnreadable)
		}
		into := disk[i*block : min((i+1)*block, virtual)]
		switch state := e[0] & 7; state {
		case 0, 1, 2, 3:
		case 6:
			b := span(file, le.Uint64(e)>>20<<20, uint64(len(into)))
			if b == nil {
				return nil, fmt.Errorf("block %d ends beyond the file: %w", i, ErrUnreadable)
			}
			copy(into, b)
		default:
			return nil, fmt.Errorf("block %d has state %d: %w", i, state, ErrUnreadable)
		}
	}
	return disk, nil
}
