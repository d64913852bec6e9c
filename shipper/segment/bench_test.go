package segment

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// guestLike is 16 MiB of which a third is noise, a third text-like, a third sparse structures.
func guestLike() []byte {
	rng := rand.New(rand.NewPCG(9, 9))
	p := make([]byte, 16<<20)
	for at := 0; at < len(p); at += 64 << 10 {
		q := p[at : at+64<<10]
		switch rng.IntN(3) {
		case 0:
			for i := range q {
				q[i] = byte(rng.Uint32())
			}
		case 1:
			for i := range q {
				q[i] = "the quick brown fox jumps over the lazy dog\n"[(i*7+rng.IntN(3))%44]
			}
		default:
			for i := 0; i < len(q); i += 32 + rng.IntN(64) {
				q[i] = byte(i)
			}
		}
	}
	return p
}

func BenchmarkWrite(b *testing.B) {
	p := guestLike()
	sums := checksum.Blocks(nil, p)
	h := testHeader(int64(len(sums)))
	for _, level := range levels {
		b.Run(string(level), func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			var info Info
			for b.Loop() {
				w, err := NewWriter(io.Discard, h, level)
				if err != nil {
					b.Fatal(err)
				}
				// 1 MiB at a time, as a capture reads.
				for at := 0; at < len(sums); at += 256 {
					if err := w.Data(extent.DiskBlock(at), p[at*block:(at+256)*block], sums[at:at+256]); err != nil {
						b.Fatal(err)
					}
				}
				if info, err = w.Close(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(info.Size)/float64(len(p)), "ratio")
		})
	}
}

// BenchmarkZstdAlone is what Write is measured against: the same frames through the same encoder, and nothing else.
func BenchmarkZstdAlone(b *testing.B) {
	p := guestLike()
	for _, level := range levels[1:] {
		b.Run(string(level), func(b *testing.B) {
			enc, err := encoders[level].open()
			if err != nil {
				b.Fatal(err)
			}
			out := make([]byte, 0, frameBuffer)
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				for at := 0; at < len(p); at += MaxPayload {
					out = enc.EncodeAll(p[at:at+MaxPayload], out[:0])
				}
			}
		})
	}
}

func BenchmarkRead(b *testing.B) {
	p := guestLike()
	for _, level := range []Level{Off, Fastest} {
		var buf bytes.Buffer
		w := newWriter(b, &buf, testHeader(int64(len(p)/block)), level)
		put(b, w, 0, p)
		done(b, w, &buf)
		b.Run(string(level), func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				if err := openAndVerify(buf.Bytes()); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
