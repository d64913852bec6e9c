package segment

import (
	"fmt"
	"runtime"
	"sync"

	"github.com/klauspost/compress/zstd"
)

// Level is how hard a writer compresses, in the words of the configuration.
type Level string

// The levels. Off stores every frame as it is.
const (
	Off     Level = "off"
	Fastest Level = "fastest"
	Default Level = "default"
	Better  Level = "better"
	Best    Level = "best"
)

// Check returns ErrLevel for a word that is no level.
func (l Level) Check() error {
	if _, ok := encoders[l]; !ok && l != Off {
		return fmt.Errorf("%w: %q", ErrLevel, string(l))
	}
	return nil
}

// sharedEncoder is one zstd encoder for all writers of a level. At concurrency 1 EncodeAll serves one frame at a time and the
// others wait: a capture is not to take a second core from the guests, and the tables (tens of MiB at "best") exist once.
type sharedEncoder struct {
	level zstd.EncoderLevel
	once  sync.Once
	enc   *zstd.Encoder
	err   error
}

var encoders = map[Level]*sharedEncoder{
	Fastest: {level: zstd.SpeedFastest},
	Default: {level: zstd.SpeedDefault},
	Better:  {level: zstd.SpeedBetterCompression},
	Best:    {level: zstd.SpeedBestCompression},
}

func (s *sharedEncoder) open() (*zstd.Encoder, error) {
	s.once.Do(func() {
		s.enc, s.err = zstd.NewWriter(nil, zstd.WithEncoderLevel(s.level), zstd.WithEncoderConcurrency(1),
			zstd.WithWindowSize(MaxPayload), zstd.WithEncoderCRC(false), zstd.WithLowerEncoderMem(true))
	})
	return s.enc, s.err
}

// compress returns the compressed form of p in the memory of buf, or false if that saves less than a 32nd: then the reader
// is better served with the bytes themselves.
func compress(enc *zstd.Encoder, buf, p []byte) ([]byte, bool) {
	out := enc.EncodeAll(p, buf[:0])
	return out, len(out) <= len(p)-len(p)/32
}

var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(min(4, runtime.GOMAXPROCS(0))), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecoderMaxWindow(MaxPayload), zstd.WithDecodeAllCapLimit(true))
})

// decompress fills p exactly, or fails. It never allocates by what the compressed bytes claim.
func decompress(p, stored []byte) error {
	dec, err := decoder()
	if err != nil {
		return err
	}
	out, err := dec.DecodeAll(stored, p[:0:len(p)])
	if err != nil {
		return err
	}
	if len(out) != len(p) {
		return fmt.Errorf("%d bytes, expected %d", len(out), len(p))
	}
	return nil
}

// buffers holds memory for whole frames with their headers. Frames are short-lived and most are full; without the pool every
// capture would leave two of them to the collector per 4 MiB.
var buffers = sync.Pool{New: func() any { return new([frameBuffer]byte) }}

const (
	frameBuffer = MaxPayload + maxFrameHeader
	// smallBuffer and less is not worth the pool: a frame of a few blocks must not hold 4 MiB until it is released.
	smallBuffer = 256 << 10
)

// getBuffer returns at least n bytes, at most frameBuffer.
func getBuffer(n int) []byte {
	if n <= smallBuffer {
		return make([]byte, n)
	}
	return buffers.Get().(*[frameBuffer]byte)[:]
}

// putBuffer takes back what getBuffer returned, which nobody may use any more.
func putBuffer(b []byte) {
	if len(b) == frameBuffer {
		buffers.Put((*[frameBuffer]byte)(b))
	}
}
