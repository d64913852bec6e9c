package appliance

import (
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func oneImage() map[string][]byte { return map[string][]byte{"web/os.img": make([]byte, 64*mib)} }

// Forty minutes without the target: the log of an epoch is tried as the schedule says
// and not otherwise, health goes from Normal to Warning and back, no write fails,
// and it replicates again within five seconds of the target's return.
func TestFortyMinutesOfOutage(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		b.pass("web/os.img", 5*time.Minute)
		var probes []time.Time
		began := time.Now()
		b.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Name == probeName {
				probes = append(probes, time.Now())
			}
			return fake.Fault{Kind: fake.Refuse, Err: syscall.ECONNREFUSED}
		})
		b.pass("web/os.img", 40*time.Minute)
		v := b.vm("web")
		if v.Health != control.HealthWarning || !hasReason(health.Retrying)(v) || v.State != string(lifecycle.Replicating) || v.SpooledBytes == 0 {
			t.Errorf("in the outage: %s %s %+v", v.State, v.Health, v.Reasons)
		}
		b.keptTheSchedule(began)
		if n := len(probes); n < 1100 || n > 1300 {
			t.Errorf("%d probes in 40 minutes", n)
		}
		before := b.vm("web").LastPoint.Epoch
		b.up()
		b.within(5*time.Second, "web", "a new point", func(v control.VM) bool { return v.LastPoint.Epoch > before })
		b.within(5*time.Second, "web", "no trouble", func(v control.VM) bool { return !hasReason(health.Retrying)(v) })
		b.pass("web/os.img", time.Minute)
		if v := b.vm("web"); !hasReason(health.CyclesMissed)(v) || !hasReason(health.CycleLatency)(v) {
			t.Errorf("nobody says what the outage cost: %+v", v.Reasons)
		}
		b.pass("web/os.img", time.Hour)
		b.within(time.Second, "web", "Normal", replicating)
	})
}

// keptTheSchedule: the ship stage repeats its request for up to 30 s, then waits 1,
// 2, 4, 8 and 10 minutes.
func (b *bubble) keptTheSchedule(began time.Time) {
	b.t.Helper()
	failed := b.log.of("stage failed", "ship")
	waits := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute}
	if len(failed) != len(waits)+1 {
		b.t.Fatalf("%d cycles failed, want %d: %v", len(failed), len(waits)+1, failed)
	}
	last := began
	for i, f := range failed {
		wait := time.Duration(0)
		if i > 0 {
			wait = waits[i-1]
		} else {
			last = f.Time.Add(-retry.DefaultBudget)
		}
		if took := f.Time.Sub(last) - wait; took < 20*time.Second || took > retry.DefaultBudget {
			b.t.Errorf("cycle %d failed %v after the one before, the wait was %v", i+1, f.Time.Sub(last), wait)
		}
		last = f.Time
	}
}

// hasAction tells whether an action names a command.
func hasAction(r control.Reason, command string) bool { return strings.Contains(r.Action, command) }

// What an operator must mend is Critical at once, is not tried again, and the action
// that is printed mends it.
func TestOperatorsErrors(t *testing.T) {
	for name, x := range map[string]struct {
		err   error
		cause string
	}{
		"a wrong key":         {target.ErrAuth, "not-authorized"},
		"a missing container": {target.ErrNoContainer, "container-not-found"},
		"a taken lease":       {target.ErrLeased, "lease-taken"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "", oneImage(), func(b *bubble) {
				b.within(time.Minute, "web", "replicating", replicating)
				var asked atomic.Int64 // several stages ask
				b.target.SetHook(func(op fake.Op) fake.Fault {
					if op.Name != probeName {
						asked.Add(1)
					}
					return fake.Fault{Kind: fake.Refuse, Err: x.err}
				})
				b.write("web/os.img", 0, 4096)
				v := b.within(31*time.Second, "web", "Critical", func(v control.VM) bool { return v.Health == control.HealthCritical })
				r := v.Reasons[0]
				if r.Code != health.CannotSend || r.Cause != x.cause || v.State != string(lifecycle.Error) || !hasAction(r, "vhdrelay resume web") {
					t.Errorf("%s %+v", v.State, r)
				}
				// The prune and apply stages have their own intervals: after they were refused too, nobody asks.
				b.within(10*time.Minute, "web", "rest", func(control.VM) bool { before := asked.Load(); b.idle(5 * time.Minute); return asked.Load() == before })
				asked.Store(0)
				b.idle(12 * time.Minute) // longer than the waits of the schedule so far
				if n := asked.Load(); n > 0 {
					t.Errorf("tried %d times again", n)
				}
				b.up()
				if _, err := b.a.Resume(b.t.Context(), "web"); err != nil {
					t.Fatal(err)
				}
				b.within(5*time.Second, "web", "replicating", func(v control.VM) bool {
					return v.State == string(lifecycle.Replicating) && !hasReason(health.CannotSend)(v)
				})
				b.within(2*time.Hour, "web", "Normal", replicating)
			})
		})
	}
}

func (b *bubble) idle(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// The fourth of them lies in the image: its footer.
func TestBrokenFooter(t *testing.T) {
	good := vhd(make([]byte, mib))
	torn := slices.Clone(good)
	torn[len(torn)-100] ^= 1
	inBubble(t, "", map[string][]byte{"web/os.vhd": torn}, func(b *bubble) {
		v := b.within(time.Second, "web", "Critical", func(v control.VM) bool { return v.Health == control.HealthCritical })
		if r := v.Reasons[0]; r.Code != health.BadImage || v.State != string(lifecycle.Error) || !hasAction(r, "web") {
			t.Errorf("%s %+v", v.State, v.Reasons)
		}
		b.idle(2 * time.Hour)
		b.put("web/os.vhd", good)
		if v := b.vm("web"); v.State != string(lifecycle.Error) {
			t.Errorf("nobody asked, and it is %s", v.State)
		}
		if _, err := b.a.Resume(b.t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		b.within(time.Minute, "web", "replicating", replicating)
	})
}

// sync retries at once, whatever the schedule says.
func TestSyncRetriesAtOnce(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		b.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Name == probeName { // a target that answers probes, and refuses the work
				return fake.Fault{}
			}
			return fake.Fault{Kind: fake.Throttle}
		})
		b.pass("web/os.img", 5*time.Minute)
		b.up()
		began := time.Now()
		res, err := b.a.Sync(b.t.Context(), "web", true, nil)
		if err != nil || res.Point == "" || time.Since(began) > 10*time.Second {
			t.Errorf("%+v %v after %v", res, err, time.Since(began))
		}
		s, err := b.a.Status(b.t.Context(), "")
		b.must(err)
		if s.Pacer == nil || !s.Pacer.Limited || s.Pacer.Throttled == 0 || s.Pacer.BytesPerSecond == 0 || s.Pacer.LastThrottled.IsZero() {
			t.Errorf("the pacer is not to be seen: %+v", s.Pacer)
		}
	})
}

// A restart finds the endpoint away before it ever had a target: that wait ends too.
func TestFirstConnectionIsProbed(t *testing.T) {
	inBubble(t, "", nil, func(b *bubble) {
		b.down(syscall.ECONNREFUSED)
		b.put("web/os.img", make([]byte, mib))
		b.attach("web/os.img")
		v := b.within(time.Minute, "web", "retrying", hasReason(health.Retrying))
		if v.State != string(lifecycle.Ready) {
			t.Errorf("it is %s", v.State)
		}
		b.idle(30 * time.Minute)
		b.up()
		b.within(5*time.Second, "web", "a connection", func(v control.VM) bool { return v.Generation == 1 && !hasReason(health.Retrying)(v) })
	})
}
