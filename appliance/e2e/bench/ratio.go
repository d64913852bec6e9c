package main

import (
	"fmt"
	"math"
	"slices"
)

// ratios are the quotients of one row, one a round.
type ratios []float64

// over divides round by round; rounds that one side does not have are left out.
func over(a, b []float64) ratios {
	var r ratios
	for i := range min(len(a), len(b)) {
		if b[i] > 0 {
			r = append(r, a[i]/b[i])
		}
	}
	return r
}

// median is the middle value, the mean of the two middle ones of an even number, NaN of none.
func median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}

// String is the median and, in brackets, what the rounds spread over.
func (r ratios) String() string {
	switch len(r) {
	case 0:
		return "not measured"
	case 1:
		return fmt.Sprintf("%.2f", r[0])
	}
	return fmt.Sprintf("%.2f (%.2f..%.2f)", median(r), slices.Min(r), slices.Max(r))
}

// budget is what a median is held against: at least or at most a limit; the zero value holds nothing.
type budget struct {
	limit float64
	most  bool
}

func atLeast(x float64) budget { return budget{limit: x} }
func atMost(x float64) budget  { return budget{limit: x, most: true} }

// met says whether v keeps the budget; what was not measured does not.
func (b budget) met(v float64) bool {
	switch {
	case b == budget{}:
		return true
	case b.most:
		return v <= b.limit
	}
	return v >= b.limit
}

func (b budget) String() string {
	switch {
	case b == budget{}:
		return ""
	case b.most:
		return fmt.Sprintf("≤ %v", b.limit)
	}
	return fmt.Sprintf("≥ %v", b.limit)
}

// verdict is the word of the last column.
func (b budget) verdict(v float64) string {
	switch {
	case b == budget{}:
		return ""
	case math.IsNaN(v):
		return "not measured"
	case b.met(v):
		return "yes"
	}
	return "**no**"
}
