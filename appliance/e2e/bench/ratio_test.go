package main

import (
	"math"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 100}, 3.5}} {
		before := append([]float64(nil), c.in...)
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
		for i := range before {
			if c.in[i] != before[i] {
				t.Errorf("median moved its input: %v", c.in)
			}
		}
	}
	if !math.IsNaN(median(nil)) {
		t.Error("the median of nothing is a number")
	}
}

// A median of ratios is not the ratio of medians: a round in which both sides were slow counts like any other.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	r := over([]float64{100, 10, 90}, []float64{100, 20, 100})
	if len(r) != 3 || r[0] != 1 || r[1] != 0.5 || r[2] != 0.9 {
		t.Fatalf("ratios %v", r)
	}
	if median(r) != 0.9 {
		t.Errorf("median %v", median(r))
	}
	if got := r.String(); got != "0.90 (0.50..1.00)" {
		t.Errorf("printed %q", got)
	}
}

func TestRatiosOfUnequalRounds(t *testing.T) {
	if r := over([]float64{1, 2, 3}, []float64{2}); len(r) != 1 || r[0] != 0.5 || r.String() != "0.50" {
		t.Errorf("a round without its other half counts: %v", r)
	}
	if r := over([]float64{1}, []float64{0}); len(r) != 0 || r.String() != "not measured" {
		t.Errorf("a quotient by nothing counts: %v", r)
	}
}

func TestBudget(t *testing.T) {
	for _, c := range []struct {
		b       budget
		v       float64
		verdict string
		text    string
	}{
		{atLeast(0.97), 0.97, "yes", "≥ 0.97"},
		{atLeast(0.97), 0.9699, "**no**", "≥ 0.97"},
		{atMost(1.2), 1.2, "yes", "≤ 1.2"},
		{atMost(1.2), 1.21, "**no**", "≤ 1.2"},
		{atMost(0), 0, "yes", "≤ 0"},
		{atMost(0), 0.1, "**no**", "≤ 0"},
		{budget{}, 7, "", ""},
		{atLeast(1), math.NaN(), "not measured", "≥ 1"},
		{atMost(1), math.NaN(), "not measured", "≤ 1"},
	} {
		if got := c.b.verdict(c.v); got != c.verdict || c.b.String() != c.text {
			t.Errorf("%+v of %v: %q %q", c.b, c.v, got, c.b)
		}
	}
}

func TestTableIsMarkdown(t *testing.T) {
	var out strings.Builder
	printTable(&out, []row{ratioRow("a|b", "c", ratios{1, 2, 3}, atLeast(2), "d")})
	want := "| what | against | measured | budget | met | figures |\n|---|---|---|---|---|---|\n| a\\|b | c | 2.00 (1.00..3.00) | ≥ 2 | yes | d |\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

func TestRate(t *testing.T) {
	if got := rate(3<<20, true) + " " + rate(1234.4, false); got != "3 MiB/s 1234/s" {
		t.Error(got)
	}
}

func TestMatrixRowsHoldEachBudget(t *testing.T) {
	f := figures{rawFile: {100, 100}, shimOff: {1, 1}, shimOn: {49, 50}, qemuFUSE: {40, 60}}
	pairs := figures{shimOff: {50, 50}, shimOn: {49, 50}}
	rows := matrixRows(matrixJobs()[0], f, pairs)
	if len(rows) != 3 {
		t.Fatalf("%d rows", len(rows))
	}
	for i, want := range []struct {
		median float64
		budget budget
	}{{0.99, atLeast(0.97)}, {(49.0/40 + 50.0/60) / 2, atLeast(1)}, {0.495, atLeast(0.8)}} {
		if math.Abs(rows[i].median-want.median) > 1e-9 || rows[i].budget != want.budget {
			t.Errorf("row %d: %+v", i, rows[i])
		}
	}
	if n := len(matrixRows(matrixJobs()[2], f, pairs)); n != 2 {
		t.Errorf("a row of small writes is held against the raw file too: %d", n)
	}
}

func TestTurnsAreBalanced(t *testing.T) {
	for n, times := range map[int]int{4: 1, 3: 2} { // how often each is in each place, and after each other one
		places, after := map[[2]int]int{}, map[[2]int]int{}
		for round := range n * times {
			order := turns(n, round)
			for i, v := range order {
				places[[2]int{i, v}]++
				if i > 0 {
					after[[2]int{order[i-1], v}]++
				}
			}
		}
		for what, counts := range map[string]map[[2]int]int{"places": places, "successions": after} {
			want := map[string]int{"places": n * n, "successions": n * (n - 1)}[what]
			if len(counts) != want {
				t.Errorf("%d of %d %s of %d", len(counts), want, what, n)
			}
			for pair, c := range counts {
				if c != times {
					t.Errorf("%s of %d: %v %d times, want %d", what, n, pair, c, times)
				}
			}
		}
	}
}
