package image

import (
	"bytes"
	"encoding/binary"
)

// Places and identifiers of [MS-VHDX] that tell the kind of a VHDX. GUIDs are in file order.
const (
	vhdxRegionTable   = 192 << 10
	vhdxMetadataTable = 64 << 10 // at most
	vhdxEntrySize     = 32
	vhdxMaxEntries    = 2047
)

var (
	guidMetadataRegion = []byte{0x06, 0xa2, 0x7c, 0x8b, 0x90, 0x47, 0x9a, 0x4b, 0xb8, 0xfe, 0x57, 0x5f, 0x05, 0x0f, 0x88, 0x6e}
	guidFileParameters = []byte{0x37, 0x67, 0xa1, 0xca, 0x36, 0xfa, 0x43, 0x4d, 0xb3, 0xb6, 0x33, 0xf0, 0xaa, 0x44, 0xe7, 0x6b}
)

// vhdxKind says which kind of VHDX it is, for the error message only: the log is not replayed and nothing is checked.
// What cannot be read is VHDX.
func (p prober) vhdxKind() Format {
	region, err := p.read(vhdxRegionTable, 64<<10)
	if err != nil || !bytes.HasPrefix(region, []byte("regi")) {
		return VHDX
	}
	entry := findEntry(region[16:], int64(binary.LittleEndian.Uint32(region[8:])), guidMetadataRegion)
	if entry == nil {
		return VHDX
	}
	base := FileOffset(binary.LittleEndian.Uint64(entry[16:]))
	table, err := p.read(base, vhdxMetadataTable)
	if err != nil || !bytes.HasPrefix(table, []byte("metadata")) {
		return VHDX
	}
	item := findEntry(table[32:], int64(binary.LittleEndian.Uint16(table[10:])), guidFileParameters)
	if item == nil {
		return VHDX
	}
	parameters, err := p.read(base+FileOffset(binary.LittleEndian.Uint32(item[16:])), 8)
	if err != nil {
		return VHDX
	}
	switch flags := binary.LittleEndian.Uint32(parameters[4:]); {
	case flags&2 != 0:
		return VHDXDifferencing
	case flags&1 != 0:
		return VHDXFixed
	}
	return VHDXDynamic
}

// findEntry looks for the entry of n that begins with guid.
func findEntry(table []byte, n int64, guid []byte) []byte {
	for i := int64(0); i < min(n, vhdxMaxEntries) && (i+1)*vhdxEntrySize <= int64(len(table)); i++ {
		if e := table[i*vhdxEntrySize : (i+1)*vhdxEntrySize]; bytes.HasPrefix(e, guid) {
			return e
		}
	}
	return nil
}
