package preflight

import (
	"encoding/binary"
	"io"
	"slices"
)

// boot is how a machine would boot from a disk: a hint, no more.
type boot string

const (
	bootNone boot = ""
	bootUEFI boot = ", boots by UEFI: a generation 2 VM"
	bootBIOS boot = ", boots by BIOS: a generation 1 VM"
)

// Of the GUID partition table (UEFI 2.10, chapter 5) and the MBR.
const (
	sector       = 512
	sector4K     = 4096
	mbrSignature = 0xaa55
	mbrEntries   = 446
	mbrActive    = 0x80
	gptMagic     = "EFI PART"
	gptMost      = 128 // entries that are looked at
)

// espType is the type of an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as it lies on disk.
var espType = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// bootOf reads the partition tables of a virtual disk. sectorSize is the size in bytes that a GPT was written for, 0 without
// one. What it cannot read it does not guess at.
func bootOf(r io.ReaderAt) (b boot, sectorSize int64) {
	head := make([]byte, 2*sector4K)
	n, _ := r.ReadAt(head, 0) // how far it came is all that counts
	if n < 2*sector {
		return bootNone, 0
	}
	if binary.LittleEndian.Uint16(head[510:]) != mbrSignature {
		return bootNone, 0
	}
	for _, size := range []int64{sector, sector4K} {
		if string(head[size:size+int64(len(gptMagic))]) == gptMagic {
			return bootOfGPT(r, head[size:], size), size
		}
	}
	for i := range 4 {
		if head[mbrEntries+16*i] == mbrActive {
			return bootBIOS, 0
		}
	}
	return bootNone, 0
}

func bootOfGPT(r io.ReaderAt, header []byte, size int64) boot {
	first := int64(binary.LittleEndian.Uint64(header[72:]))
	count, each := binary.LittleEndian.Uint32(header[80:]), int64(binary.LittleEndian.Uint32(header[84:]))
	if each < 128 || each > 4096 || first < 2 || first > 1<<40 {
		return bootNone
	}
	entry := make([]byte, len(espType))
	for i := range int64(min(count, gptMost)) {
		if _, err := r.ReadAt(entry, first*size+i*each); err != nil {
			return bootNone
		}
		if slices.Equal(entry, espType) {
			return bootUEFI
		}
	}
	return bootNone
}
