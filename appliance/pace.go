package appliance

import (
	"context"
	"time"

	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
)

// timed is a tracker that tells how long its guest's writes take, while a comparison
// reads the same store: that is what the comparison yields to.
type timed struct {
	fs.Tracker
	pace *resync.Pace
}

// timedPass is a pass and when it was asked for.
type timedPass struct {
	extent.Pass
	begun time.Time
}

// Begin implements fs.Tracker.
func (t timed) Begin(c extent.Change) (extent.Pass, error) {
	if !t.pace.Active() {
		return t.Tracker.Begin(c)
	}
	begun := time.Now()
	p, err := t.Tracker.Begin(c)
	return timedPass{p, begun}, err
}

// End implements fs.Tracker.
func (t timed) End(c extent.Change, p extent.Pass, err error) {
	if tp, ok := p.(timedPass); ok {
		t.pace.Observe(time.Since(tp.begun))
		p = tp.Pass
	}
	t.Tracker.End(c, p, err)
}

// yield is what every comparison of the store asks before it reads.
func (s *store) yield(ctx context.Context, n int) error { return s.pace.Yield(ctx, n) }
