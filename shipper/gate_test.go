package shipper

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestGateLetsVirtualTimePass(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, order := newGate(), make(chan string, 2)
		g.Lock()
		if g.TryLock() {
			t.Error("a locked gate was locked again")
		}
		go func() {
			g.Lock()
			defer g.Unlock()
			order <- "second"
		}()
		<-time.After(time.Minute) // would never end, did the other wait for a sync.Mutex
		order <- "first"
		g.Unlock()
		if a, b := <-order, <-order; a != "first" || b != "second" {
			t.Errorf("%s before %s", a, b)
		}
		if synctest.Wait(); !g.TryLock() {
			t.Error("an unlocked gate was not locked")
		}
	})
}
