package fold

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// flaky counts reads, and fails them while bad.
type flaky struct {
	io.ReaderAt
	mu struct {
		sync.Mutex // never held over I/O
		reads      int
		bad        error
	}
}

func (f *flaky) ReadAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	f.mu.reads++
	bad := f.mu.bad
	f.mu.Unlock()
	if bad != nil {
		return 0, bad
	}
	return f.ReaderAt.ReadAt(p, off)
}

func (f *flaky) set(err error) (reads int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.bad = err
	return f.mu.reads
}

// threeFrames is a segment of 12 MiB in frames of 4.
func threeFrames(t *testing.T) (*segment.Reader, *flaky) {
	var buf bytes.Buffer
	const size = 3 * segment.MaxPayload
	w, err := segment.NewWriter(&buf, segment.Header{VM: "vm", Disk: "d", Generation: 1, Epoch: 1, VirtualSize: size}, segment.Fastest)
	if err != nil {
		t.Fatal(err)
	}
	payload := bytes.Repeat([]byte{1, 2, 3, 4}, size/4)
	if err := w.Data(0, payload, checksum.Blocks(nil, payload)); err != nil {
		t.Fatal(err)
	}
	info, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	f := &flaky{ReaderAt: bytes.NewReader(buf.Bytes())}
	r, err := segment.Open(f, info.Size)
	if err != nil || r.Frames() != 3 {
		t.Fatal(r, err)
	}
	return r, f
}

func TestFramesAreFetchedOnceAndBounded(t *testing.T) {
	r, f := threeFrames(t)
	c := NewFrames([]*segment.Reader{r}, 2*segment.MaxPayload)
	before := f.set(nil)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if p, err := c.Get(FrameID{0, 0}); err != nil || len(p.Payload) != segment.MaxPayload || len(p.Sums) != segment.MaxPayload/extent.BlockSize {
				t.Error(len(p.Payload), err)
			}
		})
	}
	all.Wait()
	once := f.set(nil) - before
	for range 2 {
		for frame := range int32(3) {
			if _, err := c.Get(FrameID{0, frame}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// 0, then 1 and 2 evict 0, then 0, 1, 2 evict each other.
	if reads := f.set(nil) - before; reads != 6*once || once == 0 {
		t.Errorf("%d reads of %d each", reads, once)
	}
	if c.mu.bytes > c.capacity || c.mu.recent.Len() != len(c.mu.entries) {
		t.Errorf("%d bytes in %d entries, list of %d", c.mu.bytes, len(c.mu.entries), c.mu.recent.Len())
	}
}

func TestFailedFrameIsTriedAgain(t *testing.T) {
	r, f := threeFrames(t)
	c := NewFrames([]*segment.Reader{r}, segment.MaxPayload)
	f.set(io.ErrClosedPipe)
	if _, err := c.Get(FrameID{0, 1}); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}
	f.set(nil)
	if _, err := c.Get(FrameID{0, 1}); err != nil {
		t.Error(err)
	}
}

func TestLargeFrameThatDoesNotFitIsServed(t *testing.T) {
	r, _ := threeFrames(t)
	c := NewFrames([]*segment.Reader{r}, extent.BlockSize)
	for frame := range int32(3) {
		if _, err := c.Get(FrameID{0, frame}); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.mu.entries) != 1 {
		t.Errorf("%d frames kept", len(c.mu.entries))
	}
}
