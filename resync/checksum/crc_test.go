package checksum

import (
	"bytes"
	"fmt"
	"hash/crc64"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// The check value of the catalogue of CRCs, which Azure's own documentation of
// CRC-64/NVME agrees with.
func TestOfIsCRC64NVME(t *testing.T) {
	if got := Of([]byte("123456789")); got != 0xae8b14860a799888 {
		t.Errorf("Of(123456789) = %016x, expected ae8b14860a799888", uint64(got))
	}
	table := crc64.MakeTable(poly)
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 300 {
		p := randomBytes(r, n*7)
		if got, want := Of(p), Sum(crc64.Checksum(p, table)); got != want {
			t.Fatalf("%d bytes: %016x, hash/crc64 says %016x", n*7, uint64(got), uint64(want))
		}
	}
}

func randomBytes(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	return p
}

func TestZeroBlockIsTheSumOfZeros(t *testing.T) {
	if got := Of(make([]byte, extent.BlockSize)); got != ZeroBlock {
		t.Errorf("sum of a zero block is %016x, the constant says %016x", uint64(got), uint64(ZeroBlock))
	}
}

func TestBlockPadsWithZeros(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{0, 1, 511, 512, 4095, 4096} {
		p := randomBytes(r, n)
		padded := append(bytes.Clone(p), make([]byte, extent.BlockSize-n)...)
		if Block(p) != Of(padded) {
			t.Errorf("%d bytes: padding does not match", n)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a block of 4097 bytes did not panic")
		}
	}()
	Block(make([]byte, extent.BlockSize+1))
}

func TestBlocksIsOnePerBlock(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for _, n := range []int{0, 1, 4096, 4097, 3 * 4096, 3*4096 + 5} {
		p := randomBytes(r, n)
		sums := Blocks([]Sum{7}, p)
		if len(sums) != 1+(n+4095)/4096 || sums[0] != 7 {
			t.Fatalf("%d bytes: %d sums", n, len(sums))
		}
		padded := append(bytes.Clone(p), make([]byte, (4096-n%4096)%4096)...)
		if CombineBlocks(sums[1:]) != Of(padded) {
			t.Errorf("%d bytes: combined blocks are not the whole", n)
		}
	}
}

func TestCombineIsConcatenation(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		a, b := randomBytes(r, r.IntN(3000)), randomBytes(r, r.IntN(9000))
		if got, want := Combine(Of(a), Of(b), int64(len(b))), Of(append(a, b...)); got != want {
			t.Fatalf("%d+%d bytes: %016x, expected %016x", len(a), len(b), uint64(got), uint64(want))
		}
	}
}

func TestZerosIsTheSumOfThatMany(t *testing.T) {
	for _, n := range []int64{0, 1, 255, 256, 4096, 1 << 20} {
		if got, want := Zeros(n), Of(make([]byte, n)); got != want {
			t.Errorf("Zeros(%d) = %016x, expected %016x", n, uint64(got), uint64(want))
		}
	}
	const tib = 1 << 40
	if got, want := Zeros(4*tib), Combine(Zeros(3*tib+5), Zeros(tib-5), tib-5); got != want {
		t.Errorf("4 TiB: %016x, in two parts %016x", uint64(got), uint64(want))
	}
}

func TestUnshiftUndoesShift(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 100 {
		s, n := Sum(r.Uint64()), int64(r.Uint64N(1<<50))
		if got := unshift(shift(s, n), n); got != s {
			t.Fatalf("by %d: %016x, expected %016x", n, uint64(got), uint64(s))
		}
		if next(s) != shift(s, extent.BlockSize) {
			t.Fatalf("next(%016x) is no shift by a block", uint64(s))
		}
	}
}

func TestIsZeroSeesEveryByte(t *testing.T) {
	for _, n := range []int{0, 1, 100, 4096, 4097, 10000} {
		p := make([]byte, n)
		if !IsZero(p) {
			t.Fatalf("%d zeros are not zero", n)
		}
		for i := range p {
			p[i] = 1
			if IsZero(p) {
				t.Fatalf("byte %d of %d went unseen", i, n)
			}
			p[i] = 0
		}
	}
}

func BenchmarkOfBlock(b *testing.B) {
	p := make([]byte, extent.BlockSize)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		Of(p)
	}
}

func BenchmarkIsZero1MiB(b *testing.B) {
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	for b.Loop() {
		IsZero(p)
	}
}

func BenchmarkCombineBlocks(b *testing.B) {
	sums := make([]Sum, 1<<16)
	for i := range sums {
		sums[i] = Sum(i) * 0x9e3779b97f4a7c15
	}
	for b.Loop() {
		CombineBlocks(sums)
	}
	b.ReportMetric(float64(b.N)*float64(len(sums))/b.Elapsed().Seconds()/1e6, "Mblocks/s")
}

func BenchmarkCombine(b *testing.B) {
	for _, n := range []int64{4096, 1 << 20, 1<<40 - 4096} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				Combine(1<<63+12345, 99, n)
			}
		})
	}
}
