package shipper

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A capture that gets on may take for ever; one that does not is stuck; between two there is no time limit.
func TestAliveTellsAStuckCaptureFromALongOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := &VM{opts: Options{Name: "web01"}}
		pass := func(d time.Duration, stuck bool) {
			t.Helper()
			<-time.After(d)
			if err := v.Alive(); errors.Is(err, ErrStuck) != stuck {
				t.Errorf("%v later: %v, want stuck %v", d, err, stuck)
			}
		}
		pass(24*time.Hour, false)
		end := v.sealing.begin(time.Now())
		for range 100 {
			pass(DefaultStuckAfter, false)
			v.sealing.beat(time.Now())
		}
		pass(DefaultStuckAfter+time.Second, true)
		end()
		pass(24*time.Hour, false)
	})
}
