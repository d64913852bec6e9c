package retry

import (
	"context"
	"errors"
	"math"
	"testing"
	"testing/synctest"
	"time"
)

func limited(p *Pacer) bool { return !math.IsInf(p.Rate(), 1) }

const put = 4 << 20

// service answers puts up to capacity bytes a second and throttles beyond.
type service struct {
	capacity float64
	second   int64
	used     float64
	refused  int
	accepted float64
}

func (s *service) take(n float64) bool {
	if now := time.Now().Unix(); now != s.second {
		s.second, s.used = now, 0
	}
	if s.used+n > s.capacity {
		s.refused++
		return false
	}
	s.used += n
	s.accepted += n
	return true
}

// run sends puts through the pacer, each taking latency, for a while.
func (s *service) run(t *testing.T, p *Pacer, length, latency time.Duration) {
	t.Helper()
	for end := time.Now().Add(length); time.Now().Before(end); {
		if err := p.Wait(t.Context(), put); err != nil {
			t.Fatal(err)
		}
		Sleep(t.Context(), latency)
		if !s.take(put) {
			p.Throttled(0)
		}
	}
}

func TestPacerUnlimitedAtFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, begin := NewPacer(), time.Now()
		for range 10000 {
			if err := p.Wait(t.Context(), put); err != nil {
				t.Fatal(err)
			}
		}
		if time.Since(begin) != 0 {
			t.Fatalf("waited %v without ever being throttled", time.Since(begin))
		}
	})
}

// TestPacerSettles: for two simulated days against a service of 16 MiB/s that a
// client without a pacer would overrun forty times, nearly nothing is refused
// and most of the capacity is used.
func TestPacerSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, s := NewPacer(), &service{capacity: 16 << 20}
		const length = 48 * time.Hour
		s.run(t, p, length, 6*time.Millisecond)
		sent := s.accepted / put
		if used := s.accepted / (s.capacity * length.Seconds()); used < 0.7 {
			t.Errorf("%.0f %% of the capacity used", 100*used)
		}
		if rate := float64(s.refused) / sent; rate > 0.01 {
			t.Errorf("%.2f %% of the puts refused", 100*rate)
		}
		t.Logf("%.1f %% used, %d of %.0f refused", 100*s.accepted/(s.capacity*length.Seconds()), s.refused, sent)
	})
}

// TestPacerOneCutPerInterval: the refusals of one burst count once.
func TestPacerOneCutPerInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		for range 16 {
			if err := p.Wait(t.Context(), put); err != nil {
				t.Fatal(err)
			}
		}
		for range 16 {
			p.Throttled(0)
		}
		first := p.Rate()
		if want := BackOff * 16 * put; math.Abs(first-want) > 1 {
			t.Fatalf("rate %.0f after a burst of %d bytes in a second, want %.0f", first, 16*put, want)
		}
		Sleep(t.Context(), BackOffInterval)
		grown := p.Rate()
		p.Throttled(0)
		if p.Rate() >= BackOff*grown+1 {
			t.Fatalf("rate %.0f, not cut again from %.0f after the interval", p.Rate(), grown)
		}
	})
}

func TestPacerGrowsSlowlyAndForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		for range 16 {
			if err := p.Wait(t.Context(), put); err != nil {
				t.Fatal(err)
			}
		}
		p.Throttled(0)
		peak, last := float64(16*put), p.Rate()
		for range 20 {
			Sleep(t.Context(), time.Second)
			rate := p.Rate()
			if rate <= last || rate > last+growthGap*(peak-last)+growthAbove*last {
				t.Fatalf("from %.0f to %.0f in a second, peak %.0f", last, rate, peak)
			}
			last = rate
		}
		if last < 0.9*peak || last > peak {
			t.Fatalf("rate %.2f of the peak after 20 s", last/peak)
		}
		Sleep(t.Context(), forget)
		if limited(p) {
			t.Fatal("still limited long after the last 503")
		}
	})
}

func TestPacerRateIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		p.mu.rate, p.mu.peak = 10<<20, 10<<20
		p.mu.lastCut, p.mu.grown = time.Now(), time.Now()
		begin := time.Now()
		for range 80 { // small requests, each counts as MinCost
			if err := p.Wait(t.Context(), 512); err != nil {
				t.Fatal(err)
			}
		}
		want := 80 * MinCost / float64(10<<20)
		if took := time.Since(begin).Seconds() + burst.Seconds(); math.Abs(took-want) > 0.05 {
			t.Fatalf("took %.2f s with the burst, want %.2f", took, want)
		}
	})
}

func TestPacerPausesForRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, begin := NewPacer(), time.Now()
		p.Throttled(7 * time.Second)
		if err := p.Wait(t.Context(), 1); err != nil || time.Since(begin) != 7*time.Second {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
		begin = time.Now()
		p.Throttled(time.Hour)
		if err := p.Wait(t.Context(), 1); err != nil || time.Since(begin) != MaxPause {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
	})
}

func TestPacerWaitEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPacer()
		p.Throttled(time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if err := p.Wait(ctx, 1); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
			t.Fatalf("%v after %v", err, time.Since(begin))
		}
	})
}
