package retry

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestNextTwoDays walks the schedule of BEHAVIOUR §Retry through two simulated
// days of an outage: when each attempt of a cycle starts.
func TestNextTwoDays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		var starts []time.Duration
		for attempt := 1; time.Since(begin) < 48*time.Hour; attempt++ {
			if !Sleep(t.Context(), Next(attempt)) {
				t.Fatal("the wait was cut short")
			}
			starts = append(starts, time.Since(begin))
		}
		minutes := func(n int) time.Duration { return time.Duration(n) * time.Minute }
		want := []time.Duration{minutes(1), minutes(3), minutes(7), minutes(15), minutes(25)}
		for at := minutes(55); at < 48*time.Hour+Steady; at += Steady {
			want = append(want, at)
		}
		if len(starts) != len(want) {
			t.Fatalf("%d attempts in two days, want %d", len(starts), len(want))
		}
		for i := range want {
			if starts[i] != want[i] {
				t.Fatalf("attempt %d after %v, want %v", i+1, starts[i], want[i])
			}
		}
	})
}

func TestNextEdges(t *testing.T) {
	for attempt, want := range map[int]time.Duration{-1: time.Minute, 0: time.Minute, 5: 10 * time.Minute, 6: Steady, 1 << 40: Steady} {
		if got := Next(attempt); got != want {
			t.Errorf("Next(%d) = %v, want %v", attempt, got, want)
		}
	}
}
