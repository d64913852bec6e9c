// Package fold finds the newest version of every block among the segments of
// one disk: what an apply writes to the replica, and what a restore reads over a
// snapshot.
package fold

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// DefaultCacheBytes bounds the decompressed frames that a Fold keeps.
const DefaultCacheBytes = 64 << 20

// Piece is a run of blocks whose newest version is in one place.
type Piece struct {
	Range   extent.Range[extent.DiskBlock]
	Zero    bool
	Segment int // index of the segment, oldest first
	Frame   int // of the segment; meaningless for zeros
}

// Fold is the newest state that a chain of segments describes. Pieces are
// disjoint and ordered. It is safe for concurrent use.
type Fold struct {
	Pieces      []Piece
	VirtualSize int64 // bytes, after the newest segment
	Smallest    int64 // bytes: what lay beyond in the state before the oldest segment reads as zeros

	segments []*segment.Reader
	cache    frameCache
}

// New folds segments, oldest first; at least one. A block beyond the size that a
// later segment gives the disk is gone, also if the disk grows again.
func New(segments []*segment.Reader) *Fold {
	f := &Fold{segments: segments, Smallest: segments[0].Header().VirtualSize}
	f.cache.limit = DefaultCacheBytes
	var covered extent.Set[extent.DiskBlock]
	for i := len(segments) - 1; i >= 0; i-- {
		size := segments[i].Header().VirtualSize
		f.Smallest = min(f.Smallest, size)
		if i == len(segments)-1 {
			f.VirtualSize = size
		} else {
			// What this segment wrote beyond the size of any later one reads as zeros now.
			f.dropBeyond(&covered, i)
		}
		f.take(&covered, i)
	}
	slices.SortFunc(f.Pieces, func(a, b Piece) int { return cmp.Compare(a.Range.Start, b.Range.Start) })
	return f
}

// dropBeyond covers, as zeros, what the smallest later size cut off from segment i.
func (f *Fold) dropBeyond(covered *extent.Set[extent.DiskBlock], i int) {
	end := extent.Cover[extent.DiskBlock](0, f.segments[i+1].Header().VirtualSize).End
	was := extent.Cover[extent.DiskBlock](0, f.segments[i].Header().VirtualSize).End
	if end < was {
		f.add(covered, i+1, extent.Range[extent.DiskBlock]{Start: end, End: was}, true, 0)
	}
}

func (f *Fold) take(covered *extent.Set[extent.DiskBlock], i int) {
	for e := range f.segments[i].All() {
		f.add(covered, i, e.Range, e.Zero, e.Frame)
	}
}

// add takes the part of r that nothing newer covers.
func (f *Fold) add(covered *extent.Set[extent.DiskBlock], i int, r extent.Range[extent.DiskBlock], zero bool, frame int) {
	fresh := extent.Of(r).Subtract(*covered)
	for _, part := range fresh.Ranges() {
		f.Pieces = append(f.Pieces, Piece{Range: part, Zero: zero, Segment: i, Frame: frame})
	}
	covered.Add(r)
}

// Read copies the payload of a data piece into dst, which has its length, and its
// block checksums into sums.
func (f *Fold) Read(p Piece, dst []byte, sums []checksum.Sum) error {
	frame, err := f.cache.get(f.segments[p.Segment], frameKey{p.Segment, p.Frame})
	if err != nil {
		return fmt.Errorf("segment of epoch %d: %w", f.segments[p.Segment].Header().Epoch, err)
	}
	var at extent.DiskBlock // blocks of payload before the extent
	for _, e := range frame.Extents {
		if e.Range.Contains(p.Range.Start) {
			lo := at + p.Range.Start - e.Range.Start
			hi := lo + extent.DiskBlock(p.Range.Len())
			copy(dst, frame.Payload[int64(lo)*extent.BlockSize:int64(hi)*extent.BlockSize])
			copy(sums, frame.Sums[lo:hi])
			return nil
		}
		at += extent.DiskBlock(e.Range.Len())
	}
	return fmt.Errorf("segment of epoch %d: frame %d lacks block %d", f.segments[p.Segment].Header().Epoch, p.Frame, p.Range.Start)
}

type frameKey struct{ segment, frame int }

// frameCache keeps the newest decompressed frames up to a limit. The pieces of a
// segment come in the order of its frames, so one frame a segment would do.
type frameCache struct {
	limit int64
	mu    struct {
		sync.Mutex // held while a frame is read: the next piece needs the same one
		frames     map[frameKey]*segment.Frame
		order      []frameKey
		bytes      int64
	}
}

func (c *frameCache) get(r *segment.Reader, key frameKey) (*segment.Frame, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.mu.frames[key]; f != nil {
		return f, nil
	}
	f, err := r.Frame(key.frame)
	if err != nil {
		return nil, err
	}
	if c.mu.frames == nil {
		c.mu.frames = map[frameKey]*segment.Frame{}
	}
	c.mu.frames[key] = f
	c.mu.order = append(c.mu.order, key)
	c.mu.bytes += int64(len(f.Payload))
	for c.mu.bytes > c.limit && len(c.mu.order) > 1 {
		oldest := c.mu.order[0]
		c.mu.order = c.mu.order[1:]
		c.mu.bytes -= int64(len(c.mu.frames[oldest].Payload))
		delete(c.mu.frames, oldest)
	}
	return f, nil
}
