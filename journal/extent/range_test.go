package extent

import (
	"math"
	"slices"
	"testing"
)

type rng = Range[FileBlock]

func TestCoverRoundsOutward(t *testing.T) {
	for _, c := range []struct {
		off, n int64
		want   rng
	}{
		{0, 0, rng{0, 0}},
		{5000, 0, rng{1, 1}},
		{5000, -1, rng{1, 1}},
		{0, 1, rng{0, 1}},
		{4095, 1, rng{0, 1}},
		{4095, 2, rng{0, 2}},
		{4096, 4096, rng{1, 2}},
		{4096, 4097, rng{1, 3}},
		{math.MaxInt64 - 1, 1, rng{math.MaxInt64 / 4096, math.MaxInt64/4096 + 1}},
		{0, math.MaxInt64, rng{0, math.MaxInt64/4096 + 1}},
	} {
		if got := Cover[FileBlock](c.off, c.n); got != c.want {
			t.Errorf("Cover(%d, %d) = %v, expected %v", c.off, c.n, got, c.want)
		}
	}
}

func TestRangeArithmetic(t *testing.T) {
	a, b := rng{2, 6}, rng{4, 9}
	if got := a.Intersect(b); got != (rng{4, 6}) {
		t.Errorf("intersection is %v", got)
	}
	if !a.Overlaps(b) || a.Overlaps(rng{6, 9}) || a.Overlaps(rng{3, 3}) {
		t.Error("overlap is wrong")
	}
	if got := (rng{6, 2}); !got.Empty() || got.Len() != 0 || got.Bytes() != 0 {
		t.Errorf("%v is not empty", got)
	}
	if !a.Contains(2) || !a.Contains(5) || a.Contains(6) || a.Contains(1) {
		t.Error("the range is not half-open")
	}
	if a.Bytes() != 16384 || a.Offset() != 8192 || a.String() != "[2,6)" {
		t.Errorf("bytes %d, offset %d, string %s", a.Bytes(), a.Offset(), a)
	}
}

func TestSplitCutsAtMultiples(t *testing.T) {
	got := slices.Collect(rng{3, 17}.Split(5))
	want := []rng{{3, 5}, {5, 10}, {10, 15}, {15, 17}}
	if !slices.Equal(got, want) {
		t.Errorf("pieces %v, expected %v", got, want)
	}
	for range (rng{4, 4}).Split(5) {
		t.Error("an empty range has a piece")
	}
	for range (rng{0, 50}).Split(5) {
		break
	}
}

func TestChangeNamesItsBlocks(t *testing.T) {
	if got := (Change{Write, 4000, 200}).Blocks(); got != (rng{0, 2}) {
		t.Errorf("a write touches %v", got)
	}
	if got := (Change{Truncate, 8192, 0}).Blocks(); !got.Empty() || got.Start != 2 {
		t.Errorf("a truncate touches %v", got)
	}
	names := []string{Write.String(), Discard.String(), Zero.String(), Truncate.String(), Kind(9).String()}
	if !slices.Equal(names, []string{"write", "discard", "zero", "truncate", "unknown"}) {
		t.Errorf("kinds are called %v", names)
	}
}
