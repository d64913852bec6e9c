package fold

import (
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// version is what a block of the model holds: which layer, and where in it.
type version struct {
	seg, frame int32
	off        int64
	base       bool
}

func TestFoldEqualsTheModel(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 7))
		const most = 60
		model := make([]version, most) // newest version by block
		for b := range model {
			model[b] = version{base: true, seg: Zeros}
		}
		var layers []Layer
		size := most
		for i := range rng.IntN(6) {
			size = 1 + rng.IntN(most)
			extents := randomExtents(rng)
			for b := size; b < most; b++ {
				model[b] = version{seg: Zeros}
			}
			for _, e := range extents {
				for b := e.Range.Start; b < min(e.Range.End, extent.DiskBlock(size)); b++ {
					model[b] = version{seg: int32(i), frame: int32(e.Frame), off: int64(e.Offset) + int64(b-e.Range.Start)*extent.BlockSize}
					if e.Zero {
						model[b] = version{seg: Zeros}
					}
				}
			}
			layers = append(layers, Layer{int32(i), extent.DiskBlock(size), slices.Values(extents)})
		}
		slices.Reverse(layers)
		f := Over(extent.DiskBlock(size), slices.Values(layers))
		compareFold(t, seed, f, model, size)
	}
}

func randomExtents(rng *rand.Rand) (extents []segment.Extent) {
	at := extent.DiskBlock(rng.IntN(8))
	for at < 60 {
		end := at + 1 + extent.DiskBlock(rng.IntN(9))
		extents = append(extents, segment.Extent{Range: Range{Start: at, End: end}, Zero: rng.IntN(4) == 0,
			Frame: rng.IntN(3), Offset: rng.IntN(5) * extent.BlockSize})
		at = end + extent.DiskBlock(rng.IntN(6))
	}
	return extents
}

func compareFold(t *testing.T, seed uint64, f Fold, model []version, size int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 8))
	for range 10 {
		from := rng.IntN(size)
		r := Range{Start: extent.DiskBlock(from), End: extent.DiskBlock(from + 1 + rng.IntN(size-from))}
		got := make([]version, size)
		for i := range got {
			got[i] = version{seg: Zeros}
		}
		for p := range f.Within(r) {
			if p.Start < r.Start || p.End > r.End || p.Start >= p.End {
				t.Fatalf("seed %d: piece %+v outside %v", seed, p, r)
			}
			for b := p.Start; b < p.End; b++ {
				got[b] = version{seg: p.Segment, frame: p.Frame, off: p.from(b).Off}
			}
		}
		for gap := range f.Gaps(r) {
			for b := gap.Start; b < gap.End; b++ {
				got[b] = version{base: true, seg: Zeros}
			}
		}
		if i := r.Start; !slices.Equal(got[i:r.End], model[i:r.End]) {
			t.Fatalf("seed %d, %v:\ngot  %v\nwant %v", seed, r, got[i:r.End], model[i:r.End])
		}
	}
}

func TestFoldStopsWhenAsked(t *testing.T) {
	f := Fold{Limit: 10, Pieces: []Piece{{Start: 1, End: 2}, {Start: 4, End: 5}}}
	if n := count(f.Within(Range{Start: 0, End: 10})); n != 1 {
		t.Errorf("within went on: %d", n)
	}
	if n := count(f.Gaps(Range{Start: 0, End: 10})); n != 1 {
		t.Errorf("gaps went on: %d", n)
	}
}

// count takes one value and breaks.
func count[T any](seq iter.Seq[T]) (n int) {
	for range seq {
		n++
		break
	}
	return n
}
