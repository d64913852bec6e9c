package shipper

import (
	"errors"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// Our clock jumps, the target's does not. Points stay in order and stay, for ages
// by a wrong clock are wrong, and a clock that is right again goes on pruning only
// when the time has caught up.
func TestI5_ClockJumpsPruneNothing(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 30 * time.Hour, "back": -30 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := newRig(t, newImage("a.raw", 2*mib))
				theirs := &clock{now: r.clock.now}
				r.target = fake.New(fake.Options{Now: theirs.Now})
				cycle := func(value byte) {
					t.Helper()
					r.fill("a.raw", 0, 10*kib, value)
					r.must(r.cycle())
					r.clock.add(10 * time.Minute)
					theirs.add(r.clock.Now().Sub(theirs.Now()))
				}
				for i := range 6 {
					cycle(byte(i + 1))
				}
				r.clock.add(jump)
				r.fill("a.raw", 0, 10*kib, 100)
				r.must(r.cycle())
				if err := r.run(r.vm.pruneStep); !errors.Is(err, retention.ErrSkew) {
					t.Errorf("pruned by a clock that is wrong: %v", err)
				}
				r.clock.add(-jump)
				r.fill("a.raw", 0, 10*kib, 101)
				r.must(r.cycle())
				if err := r.run(r.vm.pruneStep); (jump > 0) != errors.Is(err, retention.ErrSkew) {
					t.Errorf("the clock is right again: %v", err)
				}
				records := r.finish()
				if len(records) < 8 {
					t.Errorf("%d points of 8", len(records))
				}
				for i := 1; i < len(records); i++ {
					if !records[i-1].Time.Before(records[i].Time) {
						t.Errorf("%s then %s", records[i-1].Time, records[i].Time)
					}
				}
			})
		})
	}
}
