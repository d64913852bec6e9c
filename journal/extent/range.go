package extent

import (
	"fmt"
	"iter"
)

// Range is the half-open interval [Start, End) of blocks. A range whose End is
// not after its Start is empty, wherever it lies.
type Range[B Block] struct{ Start, End B }

// Cover returns the blocks that the bytes [off, off+n) touch, rounded outward.
// It is empty, at off's block, if n ≤ 0. off must not be negative.
func Cover[B Block](off, n int64) Range[B] {
	start := B(off / BlockSize)
	if n <= 0 {
		return Range[B]{start, start}
	}
	// Not (off+n+BlockSize-1)/BlockSize: that overflows near the largest offset.
	return Range[B]{start, B((off+n-1)/BlockSize + 1)}
}

// Len returns the number of blocks, 0 for an empty range.
func (r Range[B]) Len() int64 { return max(0, int64(r.End-r.Start)) }

// Empty says whether the range holds no block.
func (r Range[B]) Empty() bool { return r.End <= r.Start }

// Bytes returns the length in bytes.
func (r Range[B]) Bytes() int64 { return r.Len() * BlockSize }

// Offset returns the byte offset of the first block.
func (r Range[B]) Offset() int64 { return int64(r.Start) * BlockSize }

// Intersect returns the blocks in both; it may be empty.
func (r Range[B]) Intersect(o Range[B]) Range[B] {
	return Range[B]{max(r.Start, o.Start), min(r.End, o.End)}
}

// Overlaps says whether a block is in both.
func (r Range[B]) Overlaps(o Range[B]) bool { return !r.Intersect(o).Empty() }

// Contains says whether block b is in the range.
func (r Range[B]) Contains(b B) bool { return r.Start <= b && b < r.End }

// Split cuts the range at multiples of n blocks, in order: aligned pieces, the
// first and the last possibly shorter. n must be positive.
func (r Range[B]) Split(n int64) iter.Seq[Range[B]] {
	return func(yield func(Range[B]) bool) {
		for at := r.Start; at < r.End; {
			end := min(r.End, B((int64(at)/n+1)*n))
			if !yield(Range[B]{at, end}) {
				return
			}
			at = end
		}
	}
}

// String returns "[start,end)" in blocks.
func (r Range[B]) String() string { return fmt.Sprintf("[%d,%d)", int64(r.Start), int64(r.End)) }
