package checksum

import (
	"math/bits"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// A checksum is a polynomial over GF(2) modulo poly, its highest bit the
// coefficient of x^0. Appending n bytes to a message multiplies its checksum by
// x^(8n) and adds (xor) that of the bytes; the all-ones initial value and final
// xor cancel out. Everything here follows from that.

// poly is the NVME polynomial, reflected, without x^64.
const poly = 0x9a6c9329ac4bc9b5

const one = uint64(1) << 63 // the polynomial 1

var (
	// powers[j][v] is x^(8·v·256^j): a product of at most eight of them shifts by
	// any length.
	powers = makePowers()
	// blockShift[j][v] is (v at byte j)·x^(8·4096): one block's shift by lookups.
	blockShift = makeBlockShift()
)

// timesX returns a·x.
func timesX(a uint64) uint64 { return a>>1 ^ poly&-(a&1) }

// overX returns a/x, the inverse of timesX: poly's x^0 coefficient is 1.
func overX(a uint64) uint64 {
	top := a >> 63
	return (a^poly&-top)<<1 | top
}

// multiply returns a·b.
func multiply(a, b uint64) (p uint64) {
	for a != 0 {
		n := bits.LeadingZeros64(a)
		for range n {
			b = timesX(b)
		}
		p ^= b
		a <<= n
		a &^= one
	}
	return p
}

func makePowers() *[8][256]uint64 {
	var t [8][256]uint64
	step := one >> 8 // x^8
	for j := range t {
		t[j][0] = one
		for v := 1; v < 256; v++ {
			t[j][v] = multiply(t[j][v-1], step)
		}
		step = multiply(t[j][255], step)
	}
	return &t
}

func makeBlockShift() *[8][256]uint64 {
	var t [8][256]uint64
	by := power(extent.BlockSize)
	for j := range t {
		for v := range t[j] {
			t[j][v] = multiply(uint64(v)<<(8*j), by)
		}
	}
	return &t
}

// power returns x^(8n).
func power(n int64) uint64 {
	p := one
	for j := 0; n > 0; j, n = j+1, n>>8 {
		if v := n & 255; v != 0 {
			p = multiply(p, powers[j][v])
		}
	}
	return p
}

// inversePower returns x^(-8n), by squaring.
func inversePower(n int64) uint64 {
	p, square := one, one
	for range 8 {
		square = overX(square)
	}
	for ; n > 0; n >>= 1 {
		if n&1 != 0 {
			p = multiply(p, square)
		}
		square = multiply(square, square)
	}
	return p
}

// Combine returns the checksum of a's bytes followed by b's, of which there are
// lenB.
func Combine(a, b Sum, lenB int64) Sum { return shift(a, lenB) ^ b }

// shift returns s·x^(8n): what s adds to a checksum n bytes before the end.
func shift(s Sum, n int64) Sum { return Sum(multiply(uint64(s), power(n))) }

// unshift undoes shift.
func unshift(s Sum, n int64) Sum { return Sum(multiply(uint64(s), inversePower(n))) }

// Zeros returns the checksum of n zero bytes.
func Zeros(n int64) Sum { return ^shift(^Sum(0), n) }

// next returns shift(s, extent.BlockSize).
func next(s Sum) Sum {
	t := blockShift
	return Sum(t[0][byte(s)] ^ t[1][byte(s>>8)] ^ t[2][byte(s>>16)] ^ t[3][byte(s>>24)] ^
		t[4][byte(s>>32)] ^ t[5][byte(s>>40)] ^ t[6][byte(s>>48)] ^ t[7][byte(s>>56)])
}

// CombineBlocks returns the checksum of the concatenation of whole blocks with
// the given checksums; 0 for none.
func CombineBlocks(sums []Sum) Sum {
	var s Sum
	for _, b := range sums {
		s = next(s) ^ b
	}
	return s
}
