package journal

import (
	"sync/atomic"
	"testing"
	"time"
)

// An epoch's time is that of its seal, also where the number had to be reserved first and the disk took its time.
func TestI2_TimeOfASealIsAfterItsCommit(t *testing.T) {
	var now atomic.Int64
	r := newRig(t, Options{Now: func() time.Time { return time.Unix(now.Load(), 0) }, Hook: func(at string) {
		if at == AfterEpochReserve {
			now.Add(5)
		}
	}})
	s := r.sealed(SealRequest{})
	if got := s.Time.Unix(); got != 5 {
		t.Errorf("sealed at %d, its number was reserved at 5", got)
	}
}
