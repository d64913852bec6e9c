package restore

import (
	"iter"
	"slices"
	"sort"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

type diskRange = extent.Range[extent.DiskBlock]

// piece is a run of blocks whose newest version is in a segment; 32 bytes each
// are what an index costs.
type piece struct {
	start, end extent.DiskBlock
	seg        int32 // index into the plan's segments; zeros: -1
	frame      int32
	off        int64 // bytes into the frame's payload
}

const zeros = -1

// from is the rest of the piece from block b on.
func (p piece) from(b extent.DiskBlock) piece {
	if p.seg != zeros {
		p.off += int64(b-p.start) * extent.BlockSize
	}
	p.start = b
	return p
}

// to is the piece up to block b.
func (p piece) to(b extent.DiskBlock) piece {
	p.end = b
	return p
}

// fold is a disk as pieces over a base: sorted, disjoint; blocks in no piece are
// the base's below limit and zeros from there on.
type fold struct {
	pieces []piece
	limit  extent.DiskBlock
}

// layer is one epoch of the disk.
type layer struct {
	seg  int32
	size extent.DiskBlock // of the disk at that epoch
	all  iter.Seq[segment.Extent]
}

// foldLayers goes from the newest to the oldest: what is covered already is
// newer. A disk that was smaller once has lost what lay beyond, so limit only
// falls: what older layers have beyond it reads as zeros.
func foldLayers(size extent.DiskBlock, newestFirst iter.Seq[layer]) fold {
	f := fold{limit: size}
	for l := range newestFirst {
		f.limit = min(f.limit, l.size)
		f.pieces = mergeUnder(f.pieces, piecesOf(l, f.limit))
	}
	return f
}

func piecesOf(l layer, limit extent.DiskBlock) []piece {
	var pieces []piece
	for e := range l.all {
		if e.Range.Start >= limit {
			break
		}
		p := piece{start: e.Range.Start, end: min(e.Range.End, limit), seg: l.seg, frame: int32(e.Frame), off: int64(e.Offset)}
		if e.Zero {
			p.seg, p.frame, p.off = zeros, 0, 0
		}
		pieces = append(pieces, p)
	}
	return pieces
}

// mergeUnder adds of older what newer does not cover; both are sorted and
// disjoint, and so is the result.
func mergeUnder(newer, older []piece) []piece {
	if len(newer) == 0 {
		return older
	}
	merged := make([]piece, 0, len(newer)+len(older))
	next := 0
	for _, p := range older {
		for next < len(newer) && newer[next].end <= p.start {
			merged = append(merged, newer[next])
			next++
		}
		for next < len(newer) && newer[next].start < p.end && p.start < p.end {
			if n := newer[next]; p.start < n.start {
				merged = append(merged, p.to(n.start))
			}
			if p = p.from(max(p.start, newer[next].end)); p.start < p.end {
				merged = append(merged, newer[next])
				next++
			}
		}
		if p.start < p.end {
			merged = append(merged, p)
		}
	}
	return slices.Clip(append(merged, newer[next:]...))
}

// within yields the pieces of r, cut to it, in order.
func (f fold) within(r diskRange) iter.Seq[piece] {
	return func(yield func(piece) bool) {
		i := sort.Search(len(f.pieces), func(i int) bool { return f.pieces[i].end > r.Start })
		for ; i < len(f.pieces) && f.pieces[i].start < r.End; i++ {
			p := f.pieces[i]
			if p.start < r.Start {
				p = p.from(r.Start)
			}
			if !yield(p.to(min(p.end, r.End))) {
				return
			}
		}
	}
}

// gaps yields the runs of r that are the base's.
func (f fold) gaps(r diskRange) iter.Seq[diskRange] {
	r.End = min(r.End, f.limit)
	return func(yield func(diskRange) bool) {
		at := r.Start
		for p := range f.within(r) {
			if at < p.start && !yield(diskRange{Start: at, End: p.start}) {
				return
			}
			at = p.end
		}
		if at < r.End {
			yield(diskRange{Start: at, End: r.End})
		}
	}
}
