package restore

import (
	"container/list"
	"sync"

	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// frameID is a frame of one of the plan's segments.
type frameID struct{ seg, frame int32 }

// frameCache keeps decompressed payloads, the least recently used go first. Two
// readers of one frame fetch it once.
type frameCache struct {
	segments []*segment.Reader
	capacity int64 // bytes

	mu struct {
		sync.Mutex // never held over I/O
		entries    map[frameID]*list.Element
		recent     *list.List // of *cachedFrame, newest in front
		bytes      int64
	}
}

type cachedFrame struct {
	id      frameID
	ready   chan struct{} // closed when payload or err is set
	payload []byte
	err     error
}

func newFrameCache(segments []*segment.Reader, capacity int64) *frameCache {
	c := &frameCache{segments: segments, capacity: capacity}
	c.mu.entries = map[frameID]*list.Element{}
	c.mu.recent = list.New()
	return c
}

// get returns the verified payload of a frame; nobody changes it.
func (c *frameCache) get(id frameID) ([]byte, error) {
	f, mine := c.entry(id)
	if mine {
		f.payload, f.err = c.load(id)
		close(f.ready)
		c.settle(f)
	}
	<-f.ready
	return f.payload, f.err
}

func (c *frameCache) entry(id frameID) (f *cachedFrame, mine bool) {
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
func (c *frameCache) load(id frameID) ([]byte, error) {
	frame, err := c.segments[id.seg].Frame(int(id.frame))
	if err != nil {
		return nil, err
	}
	defer frame.Release()
	return append([]byte(nil), frame.Payload...), nil
}

// settle counts a loaded frame and makes room; a failed one is forgotten, so
// that the next read tries again.
func (c *frameCache) settle(f *cachedFrame) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.err != nil {
		c.dropLocked(f)
		return
	}
	c.mu.bytes += int64(len(f.payload))
	for e := c.mu.recent.Back(); e != nil && c.mu.bytes > c.capacity; {
		old := e.Value.(*cachedFrame)
		e = e.Prev()
		if old != f && old.settled() {
			c.mu.bytes -= int64(len(old.payload))
			c.dropLocked(old)
		}
	}
}

func (c *frameCache) dropLocked(f *cachedFrame) {
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
