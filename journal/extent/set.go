package extent

import (
	"slices"
	"sort"
)

// Set is a set of blocks kept as sorted, disjoint ranges that do not touch.
// The zero value is the empty set.
//
// Add and Remove change the set in place; every other method leaves its
// operands alone and returns a set of its own. An assignment shares the memory
// of the original, as with a slice: go on with one of the two only, or Clone.
// Not safe for concurrent change.
type Set[B Block] struct{ ranges []Range[B] }

// Of returns the set of the blocks of all ranges, given in any order.
func Of[B Block](ranges ...Range[B]) Set[B] {
	sorted := slices.Clone(ranges)
	slices.SortFunc(sorted, func(a, b Range[B]) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return 0
	})
	var s Set[B]
	for _, r := range sorted {
		s.Add(r)
	}
	return s
}

// Clone returns a copy that shares nothing.
func (s Set[B]) Clone() Set[B] { return Set[B]{slices.Clone(s.ranges)} }

// Ranges returns the ranges in order. The slice belongs to the set: read only,
// valid until the next Add or Remove.
func (s Set[B]) Ranges() []Range[B] { return s.ranges }

// Empty says whether the set holds no block.
func (s Set[B]) Empty() bool { return len(s.ranges) == 0 }

// Blocks returns the number of blocks.
func (s Set[B]) Blocks() int64 {
	var n int64
	for _, r := range s.ranges {
		n += r.Len()
	}
	return n
}

// after returns the index of the first range that ends at b or later.
func (s Set[B]) after(b B) int {
	return sort.Search(len(s.ranges), func(i int) bool { return s.ranges[i].End >= b })
}

// Add puts the blocks of r into the set. Adding in increasing order is
// amortised O(1).
func (s *Set[B]) Add(r Range[B]) {
	if r.Empty() {
		return
	}
	n := len(s.ranges)
	if n == 0 || s.ranges[n-1].End < r.Start {
		s.ranges = append(s.ranges, r)
		return
	}
	lo := s.after(r.Start)
	hi := lo
	for ; hi < n && s.ranges[hi].Start <= r.End; hi++ {
		r.Start = min(r.Start, s.ranges[hi].Start)
		r.End = max(r.End, s.ranges[hi].End)
	}
	s.ranges = slices.Replace(s.ranges, lo, hi, r)
}

// Remove takes the blocks of r out of the set.
func (s *Set[B]) Remove(r Range[B]) {
	if r.Empty() {
		return
	}
	lo := s.after(r.Start + 1)
	hi := lo
	var rest [2]Range[B]
	kept := rest[:0]
	for ; hi < len(s.ranges) && s.ranges[hi].Start < r.End; hi++ {
		old := s.ranges[hi]
		if old.Start < r.Start {
			kept = append(kept, Range[B]{old.Start, r.Start})
		}
		if r.End < old.End {
			kept = append(kept, Range[B]{r.End, old.End})
		}
	}
	s.ranges = slices.Replace(s.ranges, lo, hi, kept...)
}

// Union returns the blocks in either.
func (s Set[B]) Union(o Set[B]) Set[B] {
	var u Set[B]
	a, b := s.ranges, o.ranges
	for len(a) > 0 || len(b) > 0 {
		if len(b) == 0 || len(a) > 0 && a[0].Start <= b[0].Start {
			u.Add(a[0])
			a = a[1:]
		} else {
			u.Add(b[0])
			b = b[1:]
		}
	}
	return u
}

// Intersect returns the blocks in both.
func (s Set[B]) Intersect(o Set[B]) Set[B] {
	var both Set[B]
	a, b := s.ranges, o.ranges
	for len(a) > 0 && len(b) > 0 {
		both.Add(a[0].Intersect(b[0]))
		if a[0].End < b[0].End {
			a = a[1:]
		} else {
			b = b[1:]
		}
	}
	return both
}

// Subtract returns the blocks of s that are not in o.
func (s Set[B]) Subtract(o Set[B]) Set[B] {
	var rest Set[B]
	b := o.ranges
	for _, r := range s.ranges {
		for len(b) > 0 && b[0].End <= r.Start {
			b = b[1:]
		}
		for i := 0; i < len(b) && b[i].Start < r.End; i++ {
			rest.Add(Range[B]{r.Start, b[i].Start})
			r.Start = b[i].End
		}
		rest.Add(r)
	}
	return rest
}

// Contains says whether every block of r is in the set; true for an empty r.
func (s Set[B]) Contains(r Range[B]) bool {
	if r.Empty() {
		return true
	}
	i := s.after(r.Start + 1)
	return i < len(s.ranges) && s.ranges[i].Start <= r.Start && r.End <= s.ranges[i].End
}

// Overlaps says whether any block of r is in the set.
func (s Set[B]) Overlaps(r Range[B]) bool {
	if r.Empty() {
		return false
	}
	i := s.after(r.Start + 1)
	return i < len(s.ranges) && s.ranges[i].Start < r.End
}
