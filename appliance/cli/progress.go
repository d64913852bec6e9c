package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// How often progress is shown: a terminal can be drawn over, a log cannot.
const (
	redrawEvery = 100 * time.Millisecond
	lineEvery   = 5 * time.Second
	barWidth    = 30
)

// meter shows the progress of one command.
type meter struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	current control.Progress
	// began and base are when the current stage was first seen and how far it was then: the rate counts from there.
	began time.Time
	base  int64
	shown time.Time
	drawn int
}

func newMeter(d Deps) *meter { return &meter{out: d.Stderr, terminal: d.Terminal, now: d.Now} }

// update takes the next state. A new stage or item is shown at once, the same one when its time has come, its end always.
func (m *meter) update(p control.Progress) {
	now := m.now()
	fresh := p.Stage != m.current.Stage || p.Item != m.current.Item
	if fresh {
		m.endLine()
		m.began, m.base = now, p.Done
	}
	ended := p.Total > 0 && p.Done >= p.Total && m.current.Done != p.Done
	m.current = p
	every := lineEvery
	if m.terminal {
		every = redrawEvery
	}
	if fresh || ended || now.Sub(m.shown) >= every {
		m.shown = now
		m.show(now)
	}
}

// close leaves the terminal on a line of its own.
func (m *meter) close() { m.endLine() }

func (m *meter) endLine() {
	if m.drawn > 0 {
		fmt.Fprintln(m.out)
		m.drawn = 0
	}
}

func (m *meter) show(now time.Time) {
	line := m.line(now)
	if !m.terminal {
		fmt.Fprintln(m.out, line)
		return
	}
	// Spaces over what a longer line left behind.
	fmt.Fprintf(m.out, "\r%s%s", line, strings.Repeat(" ", max(m.drawn-len(line), 0)))
	m.drawn = len(line)
}

func (m *meter) line(now time.Time) string {
	p := m.current
	parts := []string{p.Stage}
	if p.Item != "" {
		parts[0] += " " + p.Item
	}
	if p.Total > 0 {
		done := min(max(p.Done, 0), p.Total)
		if m.terminal {
			parts = append(parts, bar(done, p.Total))
		}
		parts = append(parts, fmt.Sprintf("%3d %%", percent(done, p.Total)), bytesText(done)+" of "+bytesText(p.Total))
	} else if p.Done > 0 {
		parts = append(parts, bytesText(p.Done))
	}
	return strings.Join(append(parts, m.pace(now)...), "  ")
}

// pace returns rate and time left, once there is something to compute them from.
func (m *meter) pace(now time.Time) []string {
	elapsed, moved := now.Sub(m.began), m.current.Done-m.base
	if elapsed < time.Second || moved <= 0 {
		return nil
	}
	rate := float64(moved) / elapsed.Seconds()
	out := []string{bytesText(int64(rate)) + "/s"}
	if left := m.current.Total - m.current.Done; left > 0 {
		out = append(out, age(time.Duration(float64(left)/rate*float64(time.Second)))+" left")
	}
	return out
}

func bar(done, total int64) string {
	n := int(float64(done) / float64(total) * barWidth)
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", barWidth-n) + "]"
}

// percent rounds down: 100 is said when all is done and not before.
func percent(done, total int64) int {
	if total <= 0 || done >= total {
		return 100
	}
	return int(float64(done) / float64(total) * 100)
}

// bytesText writes a size in binary units with three digits or so.
func bytesText(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %ciB", f, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[i])
}

// age writes a duration in at most two units.
func age(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", d/time.Minute, d%time.Minute/time.Second)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%d d %d h", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}
