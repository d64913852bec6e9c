package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestLatencyIsDrawn(t *testing.T) {
	samples := []sample{{0, ms}, {5 * ms, 3 * ms}, {25 * ms, 2 * ms}, {50 * ms, 700 * ms}, {760 * ms, ms}}
	marks := []mark{{60 * ms, "SIGKILL"}}
	svg := string(latencySVG(samples, marks, time.Second))
	for in := xml.NewDecoder(strings.NewReader(svg)); ; {
		if _, err := in.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
	}
	_, points, _ := strings.Cut(svg, `points="`)
	points, _, _ = strings.Cut(points, `"`)
	if n := len(strings.Fields(points)); n != 5 { // four bins, and the end of the write that waits
		t.Errorf("%d points: %s", n, points)
	}
	if !strings.Contains(svg, "SIGKILL, longest write 700ms") {
		t.Error(svg)
	}
}

func TestBinsKeepTheLongest(t *testing.T) {
	got := longest([]sample{{0, ms}, {5 * ms, 3 * ms}, {19 * ms, 2 * ms}, {20 * ms, ms}})
	if len(got) != 2 || got[0] != (sample{5 * ms, 3 * ms}) || got[1] != (sample{20 * ms, ms}) {
		t.Errorf("%v", got)
	}
}

func TestLatencyHasItsPlace(t *testing.T) {
	if svgY(0) != svgHeight-svgBottom || svgY(time.Hour) != svgTop || svgY(ms) <= svgY(10*ms) {
		t.Errorf("%v, %v, %v, %v", svgY(0), svgY(time.Hour), svgY(ms), svgY(10*ms))
	}
}

func TestWorstAfterAMark(t *testing.T) {
	samples := []sample{{0, 5 * time.Second}, {6 * time.Second, ms}, {6500 * ms, 9 * ms}, {7100 * ms, time.Second}}
	for at, want := range map[time.Duration]time.Duration{4 * time.Second: 5 * time.Second, 6 * time.Second: 9 * ms, 20 * time.Second: 0} {
		if got := worstAfter(samples, at); got != want {
			t.Errorf("%v: %v, want %v", at, got, want)
		}
	}
}

func TestPercentile(t *testing.T) {
	var v []float64
	for i := range 100 {
		v = append(v, float64(100-i))
	}
	if percentile(v, 0.5) != 50 || percentile(v, 0.99) != 99 || percentile(v, 1) != 100 || percentile(v[:1], 0.5) != 100 {
		t.Errorf("%v %v %v", percentile(v, 0.5), percentile(v, 0.99), percentile(v, 1))
	}
	if p := percentile(nil, 0.5); p == p {
		t.Errorf("%v of nothing", p)
	}
}
