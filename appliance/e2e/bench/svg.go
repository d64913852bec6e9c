package main

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// The picture, in its own units.
const (
	svgWidth, svgHeight                    = 860, 320
	svgLeft, svgRight, svgTop, svgBottom   = 70, 20, 40, 40
	svgFloor, svgCeiling                   = 1e-5, 10.0 // seconds, of the vertical axis
	svgBin                                 = 20 * time.Millisecond
	svgInk, svgFaint, svgLine, svgMarkLine = "#333333", "#dddddd", "#1f6fb2", "#c0392b"
)

// latencySVG draws the latency of writes over time, on a logarithmic axis: of every twenty milliseconds the longest. A write that
// waits is drawn from its sending to its answer.
func latencySVG(samples []sample, marks []mark, span time.Duration) []byte {
	x := func(at time.Duration) float64 {
		return svgLeft + float64(svgWidth-svgLeft-svgRight)*at.Seconds()/span.Seconds()
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="%s">`+"\n", svgWidth, svgHeight, svgInk)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", svgWidth, svgHeight)
	fmt.Fprintf(&b, `<text x="%d" y="18" font-size="14">Latency of a guest's 4 KiB writes, one after the other; the longest of every %v</text>`+"\n", svgLeft, svgBin)
	for s := svgFloor; s <= svgCeiling*1.01; s *= 10 {
		y := svgY(seconds(s))
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="%s"/><text x="%d" y="%.1f" text-anchor="end">%v</text>`+"\n", svgLeft, svgWidth-svgRight, y, y, svgFaint, svgLeft-6, y+4, seconds(s))
	}
	for at := time.Duration(0); at <= span; at += time.Second {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%.0f s</text>`+"\n", x(at), svgHeight-svgBottom+18, at.Seconds())
	}
	fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" points="`, svgLine)
	for _, s := range longest(samples) {
		fmt.Fprintf(&b, "%.1f,%.1f ", x(s.at), svgY(s.took))
		if s.took > svgBin {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(min(s.at+s.took, span)), svgY(s.took))
		}
	}
	b.WriteString(`"/>` + "\n")
	for _, m := range marks {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s" stroke-dasharray="4 3"/><text x="%.1f" y="%d" fill="%s">%s, longest write %v</text>`+"\n",
			x(m.at), x(m.at), svgTop-10, svgHeight-svgBottom, svgMarkLine, x(m.at)+5, svgTop, svgMarkLine, m.what, worstAfter(samples, m.at).Round(time.Millisecond))
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

// svgY is where a latency lies.
func svgY(took time.Duration) float64 {
	part := math.Log(min(max(took.Seconds(), svgFloor), svgCeiling)/svgFloor) / math.Log(svgCeiling/svgFloor)
	return svgHeight - svgBottom - part*(svgHeight-svgBottom-svgTop)
}

// longest keeps of the writes sent in one bin the one that took longest.
func longest(samples []sample) []sample {
	var all []sample
	for _, s := range samples {
		if n := len(all); n > 0 && all[n-1].at/svgBin == s.at/svgBin {
			if s.took > all[n-1].took {
				all[n-1] = s
			}
			continue
		}
		all = append(all, s)
	}
	return all
}
