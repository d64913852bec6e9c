// Package fold finds the newest version of every block among the segments of
// one disk: what an apply writes to the replica, and what a restore reads over a
// snapshot.
package fold

import (
	"iter"
	"slices"
	"sort"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// Range is a half-open range of 4 KiB blocks of the virtual disk.
type Range = extent.Range[extent.DiskBlock]

// Piece is a run of blocks whose newest version is in a segment; 32 bytes each
// are what an index costs.
type Piece struct {
	Start, End extent.DiskBlock
	Segment    int32 // as its layer numbers it, or Zeros
	Frame      int32
	Off        int64 // bytes into the frame's payload
}

// Zeros is the Segment of a piece that reads as zeros: it is in no frame.
const Zeros = -1

// ID is the frame that holds the piece.
func (p Piece) ID() FrameID { return FrameID{p.Segment, p.Frame} }

// from is the rest of the piece from block b on.
func (p Piece) from(b extent.DiskBlock) Piece {
	if p.Segment != Zeros {
		p.Off += int64(b-p.Start) * extent.BlockSize
	}
	p.Start = b
	return p
}

// to is the piece up to block b.
func (p Piece) to(b extent.DiskBlock) Piece {
	p.End = b
	return p
}

// Fold is a disk as pieces over a base: sorted, disjoint; blocks in no piece are
// the base's below Limit and zeros from there on.
type Fold struct {
	Pieces []Piece
	Limit  extent.DiskBlock
}

// Layer is one epoch of the disk.
type Layer struct {
	Segment int32
	Size    extent.DiskBlock // of the disk at that epoch
	All     iter.Seq[segment.Extent]
}

// Layers yields segments, given the oldest first, from the newest to the oldest.
func Layers(segments []*segment.Reader) iter.Seq[Layer] {
	return func(yield func(Layer) bool) {
		for i, r := range slices.Backward(segments) {
			if !yield(Layer{int32(i), Blocks(r.Header().VirtualSize), r.All()}) {
				return
			}
		}
	}
}

// Blocks is how many blocks n bytes take.
func Blocks(n int64) extent.DiskBlock {
	return extent.DiskBlock((n + extent.BlockSize - 1) / extent.BlockSize)
}

// Over folds the layers of a disk of size blocks. It goes from the newest to the
// oldest: what is covered already is newer. A disk that was smaller once has lost
// what lay beyond, so the limit only falls: what older layers have beyond it reads
// as zeros.
func Over(size extent.DiskBlock, newestFirst iter.Seq[Layer]) Fold {
	f := Fold{Limit: size}
	for l := range newestFirst {
		f.Limit = min(f.Limit, l.Size)
		f.Pieces = mergeUnder(f.Pieces, piecesOf(l, f.Limit))
	}
	return f
}

func piecesOf(l Layer, limit extent.DiskBlock) []Piece {
	var pieces []Piece
	for e := range l.All {
		if e.Range.Start >= limit {
			break
		}
		p := Piece{Start: e.Range.Start, End: min(e.Range.End, limit), Segment: l.Segment, Frame: int32(e.Frame), Off: int64(e.Offset)}
		if e.Zero {
			p.Segment, p.Frame, p.Off = Zeros, 0, 0
		}
		pieces = append(pieces, p)
	}
	return pieces
}

// mergeUnder adds of older what newer does not cover; both are sorted and
// disjoint, and so is the result.
func mergeUnder(newer, older []Piece) []Piece {
	if len(newer) == 0 {
		return older
	}
	merged := make([]Piece, 0, len(newer)+len(older))
	next := 0
	for _, p := range older {
		for next < len(newer) && newer[next].End <= p.Start {
			merged = append(merged, newer[next])
			next++
		}
		for next < len(newer) && newer[next].Start < p.End && p.Start < p.End {
			if n := newer[next]; p.Start < n.Start {
				merged = append(merged, p.to(n.Start))
			}
			if p = p.from(max(p.Start, newer[next].End)); p.Start < p.End {
				merged = append(merged, newer[next])
				next++
			}
		}
		if p.Start < p.End {
			merged = append(merged, p)
		}
	}
	return slices.Clip(append(merged, newer[next:]...))
}

// Within yields the pieces of r, cut to it, in order.
func (f Fold) Within(r Range) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		i := sort.Search(len(f.Pieces), func(i int) bool { return f.Pieces[i].End > r.Start })
		for ; i < len(f.Pieces) && f.Pieces[i].Start < r.End; i++ {
			p := f.Pieces[i]
			if p.Start < r.Start {
				p = p.from(r.Start)
			}
			if !yield(p.to(min(p.End, r.End))) {
				return
			}
		}
	}
}

// Gaps yields the runs of r that are the base's.
func (f Fold) Gaps(r Range) iter.Seq[Range] {
	r.End = min(r.End, f.Limit)
	return func(yield func(Range) bool) {
		at := r.Start
		for p := range f.Within(r) {
			if at < p.Start && !yield(Range{Start: at, End: p.Start}) {
				return
			}
			at = p.End
		}
		if at < r.End {
			yield(Range{Start: at, End: r.End})
		}
	}
}
