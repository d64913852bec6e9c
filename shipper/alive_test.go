package shipper

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
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

// A give-up waits for an upload that hangs with its target, for ever perhaps, as on NFS: that is no hang of ours, and
// the watchdog must not end the guests' disks for it.
func TestI9_GiveUpBehindAHangingTargetIsAlive(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		before := len(r.spool.Manifests())
		r.vm.requestGiveUp(r.spool.Manifests()[0].Epoch)
		r.quota = 1
		r.vm.spoolGate.Lock() // an upload that does not end
		done := make(chan error, 1)
		go func() { done <- r.vm.captureStep(context.Background()) }()
		<-time.After(DefaultStuckAfter + time.Minute)
		if err := r.vm.Alive(); err != nil {
			t.Error(err)
		}
		r.vm.spoolGate.Unlock()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if n := len(r.spool.Manifests()); n >= before {
			t.Errorf("%d epochs left of %d", n, before)
		}
	})
}

// Capture asks the target nothing, also of an idle VM; up to when its newest point held is the ship stage's to tell.
func TestI9_IdleCaptureDoesNotWaitForTheTarget(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		asked := 0
		r.target.SetHook(func(fake.Op) fake.Fault { asked++; return fake.Fault{} })
		for range 2 {
			r.clock.add(unchangedEvery)
			idle := r.clock.Now()
			r.must(r.run(r.vm.captureStep))
			if asked != 0 {
				t.Fatalf("%d requests by the capture of an idle VM", asked)
			}
			r.must(r.run(r.vm.shipStep))
			if got := r.doc().UnchangedUntil; got.Before(idle.Truncate(time.Second)) || got.After(r.clock.Now()) {
				t.Errorf("unchanged until %v, it was idle at %v", got, idle)
			}
			asked = 0
		}
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		if asked != 0 {
			t.Errorf("%d requests before the time", asked)
		}
	})
}
