package fold

import (
	"container/list"
	"sync"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// FrameID is a frame of one of the segments.
type FrameID struct{ Segment, Frame int32 }

// Frames caches what is read of segments, decompressed and verified; the least
// recently used go first. Two readers of one frame fetch it once.
type Frames struct {
	segments []*segment.Reader
	capacity int64 // bytes

	mu struct {
		sync.Mutex // never held over I/O
		entries    map[FrameID]*list.Element
		recent     *list.List // of *cachedFrame, newest in front
		bytes      int64
	}
}

type cachedFrame struct {
	id    FrameID
	ready chan struct{} // closed when content or err is set
	Content
	err error
}

// Content is the payload of a frame and the checksum of each of its blocks.
type Content struct {
	Payload []byte
	Sums    []checksum.Sum
}

// NewFrames makes a cache of capacity bytes of payload. A frame larger than that
// is served all the same.
func NewFrames(segments []*segment.Reader, capacity int64) *Frames {
	c := &Frames{segments: segments, capacity: capacity}
	c.mu.entries = map[FrameID]*list.Element{}
	c.mu.recent = list.New()
	return c
}

// Get returns the verified content of a frame; nobody changes it.
func (c *Frames) Get(id FrameID) (Content, error) {
	f, mine := c.entry(id)
	if mine {
		f.Content, f.err = c.load(id)
		close(f.ready)
		c.settle(f)
	}
	<-f.ready
	return f.Content, f.err
}

func (c *Frames) entry(id FrameID) (f *cachedFrame, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := c.mu.entries[id]; ok {
		c.mu.recent.MoveToFront(e)
		return e.Value.(*cachedFrame), false
	}
	f = &cachedFrame{id: id, ready: make(chan struct{})}
	c.mu.entries[id] = c.mu.recent.PushFront(f)
	return f, true
}

// load copies the payload, so that a small frame does not hold a large buffer.
func (c *Frames) load(id FrameID) (Content, error) {
	frame, err := c.segments[id.Segment].Frame(int(id.Frame))
	if err != nil {
		return Content{}, err
	}
	defer frame.Release()
	return Content{append([]byte(nil), frame.Payload...), frame.Sums}, nil
}

// settle counts a loaded frame and makes room; a failed one is forgotten, so
// that the next read tries again.
func (c *Frames) settle(f *cachedFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.err != nil {
		c.dropLocked(f)
		return
	}
	c.mu.bytes += int64(len(f.Payload))
	for e := c.mu.recent.Back(); e != nil && c.mu.bytes > c.capacity; {
		old := e.Value.(*cachedFrame)
		e = e.Prev()
		if old != f && old.settled() {
			c.mu.bytes -= int64(len(old.Payload))
			c.dropLocked(old)
		}
	}
}

func (c *Frames) dropLocked(f *cachedFrame) {
	if e, ok := c.mu.entries[f.id]; ok && e.Value == f {
		c.mu.recent.Remove(e)
		delete(c.mu.entries, f.id)
	}
}

func (f *cachedFrame) settled() bool {
	select {
	case <-f.ready:
		return true
	default:
		return false
	}
}
