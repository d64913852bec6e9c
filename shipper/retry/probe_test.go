package retry

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// endpoint is away from a time on and back at another; asked while it is away it
// refuses at once or hangs.
type endpoint struct {
	away, back time.Time
	hangs      bool
	asked      atomic.Int64
}

func (e *endpoint) ask(ctx context.Context) bool {
	e.asked.Add(1)
	now := time.Now()
	if now.Before(e.away) || !now.Before(e.back) {
		return true
	}
	if e.hangs {
		<-ctx.Done()
	}
	return false
}

func TestProbeEndsTheWait(t *testing.T) {
	for name, hangs := range map[string]bool{"refusing": false, "hanging": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := &endpoint{away: time.Now(), back: time.Now().Add(37 * time.Second), hangs: hangs}
				if !NewProbe(e.ask, 0, 0).Await(t.Context(), true) {
					t.Fatal("no answer")
				}
				if late := time.Since(e.back); late < 0 || late > DefaultProbeInterval {
					t.Errorf("noticed %v after it was back", late)
				}
			})
		})
	}
}

// An endpoint that answers all the time has not returned: whoever it refuses keeps
// the schedule.
func TestProbeWantsToSeeItAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := time.Now().Add(1000 * time.Hour)
		e := &endpoint{away: never, back: never}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if NewProbe(e.ask, 0, 0).Await(ctx, false) {
			t.Error("it was never away")
		}
		e = &endpoint{away: time.Now().Add(time.Minute), back: time.Now().Add(2 * time.Minute)}
		if !NewProbe(e.ask, 0, 0).Await(t.Context(), false) || time.Now().Before(e.back) {
			t.Error("it went away and came back")
		}
	})
}

// A hundred who wait cost as many questions as one, and nobody costs none.
func TestProbeAsksOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := &endpoint{away: time.Now(), back: time.Now().Add(time.Minute)}
		p := NewProbe(e.ask, 0, 0)
		done := make(chan bool)
		for range 100 {
			go func() { done <- p.Await(t.Context(), true) }()
		}
		for range 100 {
			if !<-done {
				t.Fatal("one was not woken")
			}
		}
		if n := e.asked.Load(); n > 31 {
			t.Errorf("asked %d times in a minute", n)
		}
		synctest.Wait()
		before := e.asked.Load()
		Sleep(t.Context(), time.Hour)
		if n := e.asked.Load(); n != before {
			t.Errorf("asked %d times while nobody waited", n-before)
		}
	})
}
