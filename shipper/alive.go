package shipper

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

// DefaultStuckAfter is how long a capture may go without a sign of life before Alive says so. One sign is due for every
// chunk that is read, so that this is a bug or a disk that hangs, never a large epoch.
const DefaultStuckAfter = 10 * time.Minute

// ErrStuck is wrapped by what Alive says of a loop that no longer turns.
var ErrStuck = errors.New("stuck")

// turn is one turn of a loop at a time, and when it last got on. The zero value is a loop at rest.
type turn struct{ sign atomic.Int64 } // nanoseconds of Unix time; 0: at rest

// begin starts a turn; the returned function ends it.
func (t *turn) begin(now time.Time) (end func()) {
	t.sign.Store(now.UnixNano())
	return func() { t.sign.Store(0) }
}

// beat says that a turn under way gets on.
func (t *turn) beat(now time.Time) { t.sign.Store(now.UnixNano()) }

// pause says that a turn under way waits for something that its own loop cannot speed
// up, until its next sign.
func (t *turn) pause() { t.sign.Store(0) }

// silence is how long a turn under way has not got on, 0 at rest.
func (t *turn) silence(now time.Time) time.Duration {
	sign := t.sign.Load()
	if sign == 0 {
		return 0
	}
	return now.Sub(time.Unix(0, sign))
}

// Alive is for a watchdog: an error says that the loop that seals and captures hangs. The stages behind it wait for the
// target whenever they like, and their requests end by themselves: an outage is no error here (I9).
func (v *VM) Alive() error {
	if silent := v.sealing.silence(time.Now()); silent > DefaultStuckAfter {
		return fmt.Errorf("vm %s: capture: %w for %v", v.opts.Name, ErrStuck, silent.Round(time.Second))
	}
	return nil
}
