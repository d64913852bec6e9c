package sim

import (
	"fmt"
	"testing"
)

// A seed says what happens, and not the scheduler: two plays of it are the same for a long while. For ever they are not: a
// goroutine that a busy machine interrupts for 10 ms, a select with two ways open and the kernel's time for a file of saved
// blocks are beyond the simulation, and the best of some plays is what is held here.
func TestAReplayIsTheSameForAWhile(t *testing.T) {
	if testing.Short() {
		t.Skip("under the race detector goroutines run long enough to be interrupted, and plays differ by that: make test runs it whole")
	}
	const events, plays = 100, 6
	for _, seed := range []uint64{6, 10} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			_, _, last := traced(t, seed, Steps(seed), true)
			best := 0
			for range plays {
				_, _, next := traced(t, seed, Steps(seed), true)
				same := 0
				for same < min(len(last), len(next)) && last[same] == next[same] {
					same++
				}
				if best = max(best, same); best >= events {
					t.Logf("the same for %d of %d events", best, len(next))
					return
				}
				last = next
			}
			t.Errorf("of %d plays, no two were the same for more than %d events", plays+1, best)
		})
	}
}
