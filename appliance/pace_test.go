package appliance

import (
	"errors"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
)

// passes is a tracker that wants its own passes back.
type passes struct {
	begun, ended int
	fail         error
}

func (p *passes) Begin(extent.Change) (extent.Pass, error) { p.begun++; return p.begun, p.fail }

func (p *passes) End(_ extent.Change, pass extent.Pass, _ error) {
	if pass == extent.Pass(p.begun) {
		p.ended++
	}
}

func TestTimedTrackerHandsPassesThrough(t *testing.T) {
	inner, pace := &passes{}, resync.NewPace(time.Nanosecond, 1<<20)
	tr := timed{inner, pace}
	for _, active := range []bool{false, true} {
		if active {
			defer pace.Begin()()
		}
		p, err := tr.Begin(extent.Change{Len: 1})
		if err != nil {
			t.Fatal(err)
		}
		tr.End(extent.Change{Len: 1}, p, nil)
	}
	if inner.begun != 2 || inner.ended != 2 {
		t.Errorf("%+v", inner)
	}
	if err := pace.Yield(t.Context(), 1); err != nil || pace.Rate() == 0 {
		t.Errorf("the guest's write was not seen: rate %d, %v", pace.Rate(), err)
	}
	inner.fail = errors.New("no")
	if _, err := tr.Begin(extent.Change{}); !errors.Is(err, inner.fail) {
		t.Errorf("%v", err)
	}
}
