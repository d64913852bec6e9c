package resync

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// readFor reads 1 MiB strides for a while, guests writing at a latency that the rate
// decides, and returns the bytes a second of its last second.
func readFor(t *testing.T, p *Pace, d time.Duration, latency func(rate int64) time.Duration) float64 {
	t.Helper()
	begun, last := time.Now(), 0
	for time.Since(begun) < d {
		if l := latency(p.Rate()); l > 0 {
			p.Observe(l)
		}
		if err := p.Yield(t.Context(), 1<<20); err != nil {
			t.Fatal(err)
		}
		<-time.After(time.Millisecond) // the read: at most 1 GiB/s
		if time.Since(begun) > d-time.Second {
			last += 1 << 20
		}
	}
	return float64(last)
}

func TestPaceLeavesIdleGuestsOutOfAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPace(0, 0)
		if got := readFor(t, p, 3*time.Second, func(int64) time.Duration { return 0 }); got < 900<<20 || p.Rate() != 0 {
			t.Errorf("%.0f bytes a second, rate %d", got, p.Rate())
		}
		if got := readFor(t, p, 3*time.Second, func(int64) time.Duration { return time.Millisecond }); got < 900<<20 {
			t.Errorf("fast guests slow it to %.0f bytes a second", got)
		}
	})
}

// The guests' latency grows with what the comparison reads: the controller holds it
// near its target, and goes back to full speed when they stop.
func TestI9_PaceHoldsTheGuestsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPace(5*time.Millisecond, 1<<20)
		plant := func(rate int64) time.Duration { // 5 ms at 40 MiB/s
			if rate == 0 {
				rate = 1 << 30
			}
			return time.Duration(float64(rate) / (8 << 20) * float64(time.Millisecond))
		}
		got := readFor(t, p, 30*time.Second, plant)
		if got < 20<<20 || got > 60<<20 {
			t.Errorf("%.0f bytes a second, 40 MiB would be right", got)
		}
		if got := readFor(t, p, 5*time.Second, func(int64) time.Duration { return 0 }); got < 900<<20 {
			t.Errorf("%.0f bytes a second after the guests stopped", got)
		}
	})
}

// A comparison gets its floor whatever the guests suffer from: it must end.
func TestPaceHasAFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPace(time.Millisecond, 4<<20)
		got := readFor(t, p, 20*time.Second, func(int64) time.Duration { return time.Second })
		if got < 3<<20 || got > 6<<20 {
			t.Errorf("%.0f bytes a second", got)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		p.Observe(time.Second)
		_ = p.Yield(ctx, 1<<30) // takes its turn, at once or not
		if err := p.Yield(ctx, 1<<30); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestPaceKnowsWhetherAnybodyAsks(t *testing.T) {
	p := NewPace(0, 0)
	end := p.Begin()
	if !p.Active() {
		t.Error("a comparison runs")
	}
	end()
	if p.Active() {
		t.Error("none runs")
	}
}
