// Package checksum holds the one checksum of this project, CRC-64/NVME, its
// arithmetic, and the checksum table: per disk, what the target will hold.
//
// It is a leaf: of this module it imports journal/extent only, and it alone
// imports minio/crc64nvme. The table's format, what a crash leaves of it and
// how it is redone are in resync/README.md.
package checksum

import (
	"bytes"

	"github.com/minio/crc64nvme"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Sum is a CRC-64/NVME (reflected, initial value and final xor all ones), the
// checksum that Azure Storage computes and verifies as x-ms-content-crc64.
// It guards against accidents, not against malice.
type Sum uint64

// ZeroBlock is the checksum of a block of zeros.
const ZeroBlock Sum = 0x6482d367eb22b64e

var zeroPage [extent.BlockSize]byte

// Of returns the checksum of p; 0 for no bytes.
func Of(p []byte) Sum { return Sum(crc64nvme.Checksum(p)) }

// Update returns the checksum of the bytes s is of, followed by p.
func Update(s Sum, p []byte) Sum { return Sum(crc64nvme.Update(uint64(s), p)) }

// Block returns the checksum of p padded with zeros to a block. It panics if p
// is longer than a block.
func Block(p []byte) Sum {
	missing := extent.BlockSize - len(p)
	if missing == 0 {
		return Of(p)
	}
	return Update(Of(p), zeroPage[:missing])
}

// Blocks appends the checksum of every 4 KiB of p to dst; the last is padded
// with zeros.
func Blocks(dst []Sum, p []byte) []Sum {
	for len(p) > extent.BlockSize {
		dst = append(dst, Of(p[:extent.BlockSize]))
		p = p[extent.BlockSize:]
	}
	if len(p) > 0 {
		dst = append(dst, Block(p))
	}
	return dst
}

// IsZero says whether every byte of p is zero.
func IsZero(p []byte) bool {
	for len(p) > extent.BlockSize {
		if !bytes.Equal(p[:extent.BlockSize], zeroPage[:]) {
			return false
		}
		p = p[extent.BlockSize:]
	}
	return bytes.Equal(p, zeroPage[:len(p)])
}
