package shipper

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// work is a stage whose step the test answers for.
type work struct {
	*stage
	vm     *VM
	begin  time.Time
	starts []time.Duration // of the steps, since begin
	err    error           // of the next step
	up     bool            // what the endpoint answers to a probe
	mu     sync.Mutex      // guards err and up where they change beside a wait
	hold   chan struct{}   // a step waits for it, or for its context; nil: it does not
}

func newWork() *work {
	w := &work{begin: time.Now()}
	w.vm = &VM{opts: withDefaults(Options{Log: slog.New(slog.DiscardHandler)}), rest: newRest(false)}
	w.vm.deps.Probe = retry.NewProbe(func(context.Context) bool { up, _ := w.answer(); return up }, 0, 0)
	w.vm.mu.changed = make(chan struct{})
	w.stage = w.vm.newStage("ship", func() time.Duration { return 30 * time.Second }, w.do)
	w.vm.connect, w.vm.capture, w.vm.apply, w.vm.initial, w.vm.prune = idleStage(w.vm), idleStage(w.vm), idleStage(w.vm), idleStage(w.vm), idleStage(w.vm)
	w.vm.ship = w.stage
	return w
}

func idleStage(v *VM) *stage { return v.newStage("idle", nil, nil) }

func (w *work) do(ctx context.Context) error {
	w.starts = append(w.starts, time.Since(w.begin))
	if w.hold != nil {
		select {
		case <-w.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	_, err := w.answer()
	return err
}

func (w *work) answer() (up bool, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.up, w.err
}

// returns makes the endpoint answer again.
func (w *work) returns() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up, w.err = true, nil
}

// during runs the stage while the test does f.
func (w *work) during(t *testing.T, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	synctest.Wait()
	f()
	cancel()
	<-done
}

func after(minutes ...int) []time.Duration {
	var all []time.Duration
	for _, m := range minutes {
		all = append(all, time.Duration(m)*time.Minute)
	}
	return all
}

func (w *work) started(t *testing.T, want []time.Duration) {
	t.Helper()
	if len(w.starts) != len(want) {
		t.Fatalf("steps at %v, want %v", w.starts, want)
	}
	for i := range want {
		if w.starts[i] != want[i] {
			t.Fatalf("steps at %v, want %v", w.starts, want)
		}
	}
}

var (
	refusedConnection = target.Refused("Get", "vm.json", errConnection{})
	busy              = target.Refused("PutPages", "log", target.ErrThrottled)
)

// errConnection is what a read of an endpoint that is away meets.
type errConnection struct{}

func (errConnection) Error() string            { return "connection refused" }
func (errConnection) RetryClass() retry.Class  { return retry.Recoverable }
func (errConnection) ErrorCode() string        { return "connection-refused" }
func (errConnection) ErrorAction() string      { return "" }
func sleepFor(t *testing.T, d time.Duration)   { t.Helper(); retry.Sleep(t.Context(), d) }
func operatorsError() error                    { return target.Refused("Get", "vm.json", target.ErrAuth) }
func (w *work) asTrouble(t *testing.T) Trouble { t.Helper(); return *w.trouble() }

// Two days of an outage, with the schedule of BEHAVIOUR as written.
func TestStageKeepsTheSchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.err = refusedConnection
		w.during(t, func() { sleepFor(t, 48*time.Hour-time.Second) })
		want := after(0, 1, 3, 7, 15, 25)
		for m := 55; m < 48*60; m += 30 {
			want = append(want, after(m)...)
		}
		w.started(t, want)
	})
}

// An endpoint that answers again ends the wait within seconds; one that answered all
// the time, and refuses, does not.
func TestStageGoesOnAsSoonAsTheEndpointAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.err = refusedConnection
		w.during(t, func() {
			sleepFor(t, 30*time.Minute)
			w.returns()
			sleepFor(t, 5*time.Second)
			if w.trouble() != nil || len(w.starts) != 7 {
				t.Errorf("5 s after its return: %v, steps at %v", w.trouble(), w.starts)
			}
		})
		w = newWork()
		w.err, w.up = busy, true
		w.during(t, func() { sleepFor(t, 24*time.Minute) })
		w.started(t, after(0, 1, 3, 7, 15))
	})
}

// What an operator must mend is not tried again by itself, but at once when asked.
func TestStageWaitsForAnOperator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.err = operatorsError()
		w.during(t, func() {
			sleepFor(t, 24*time.Hour)
			if tr := w.asTrouble(t); len(w.starts) != 1 || !tr.NextTry.IsZero() || tr.Pending {
				t.Errorf("%+v, steps at %v", tr, w.starts)
			}
			w.err = nil
			w.vm.Wake()
			synctest.Wait()
			if len(w.starts) != 2 || w.trouble() != nil {
				t.Errorf("%v, steps at %v", w.trouble(), w.starts)
			}
		})
	})
}

// A rest ends the step under way and begins none; afterwards it goes on at once.
func TestStageRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.hold = make(chan struct{})
		w.during(t, func() {
			if err := w.vm.Rest(t.Context()); err != nil || !w.vm.Resting() {
				t.Fatal(err)
			}
			if n := len(w.vm.rest.mu.working); n != 0 {
				t.Errorf("%d steps under way", n)
			}
			sleepFor(t, 10*time.Hour)
			if len(w.starts) != 1 || w.trouble() != nil {
				t.Errorf("at rest: %v, steps at %v", w.trouble(), w.starts)
			}
			w.hold = nil
			w.vm.GoOn()
			synctest.Wait()
			if len(w.starts) != 2 {
				t.Errorf("after the rest: steps at %v", w.starts)
			}
		})
	})
}

// Neither a wait for a retry nor one for an operator keeps a stage from resting, and
// its trouble is looked for anew afterwards.
func TestStageRestsInTrouble(t *testing.T) {
	for name, err := range map[string]error{"an outage": refusedConnection, "an operator": operatorsError()} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWork()
				w.err = err
				w.during(t, func() {
					if err := w.vm.Rest(t.Context()); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
					if w.trouble() != nil {
						t.Errorf("it rests with %+v", w.trouble())
					}
					sleepFor(t, time.Hour)
					w.vm.GoOn()
					synctest.Wait()
					if len(w.starts) != 2 || w.trouble() == nil || w.trouble().Attempt != 1 {
						t.Errorf("%+v, steps at %v", w.trouble(), w.starts)
					}
				})
			})
		})
	}
}

// A stage that begins at rest does nothing, and its end comes through.
func TestStageBeginsAtRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.vm.rest = newRest(true)
		w.during(t, func() { sleepFor(t, time.Hour) })
		w.started(t, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.vm.rest.quiet(ctx); err != nil {
			t.Errorf("nothing is under way: %v", err)
		}
		w.vm.rest.mu.working[1] = func(error) {}
		if err := w.vm.rest.quiet(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("it waits for ever: %v", err)
		}
	})
}

func TestCyclesAreRemembered(t *testing.T) {
	v := &VM{}
	at := time.Unix(1e9, 0)
	for i := range uint64(maxCycles + 1) {
		v.noteSeal(i, at)
	}
	v.noteShipped(Cycle{Epoch: maxCycles, SealedAt: at, Closed: true, RecordedAfter: time.Minute, StoredBytes: 7})
	v.noteShipped(Cycle{Epoch: maxCycles - 1, SealedAt: at, StoredBytes: 5}) // open
	v.noteOpenLocked(maxCycles - 1)
	v.dropSeal(maxCycles - 2)
	n := len(v.mu.cycles)
	if n > maxCycles/2+1 || v.mu.sentBytes != 12 {
		t.Fatalf("%d cycles, %d bytes", n, v.mu.sentBytes)
	}
	newest, open, before := v.mu.cycles[n-1], v.mu.cycles[n-2], v.mu.cycles[n-3]
	if !newest.DurableAt.Equal(at.Add(time.Minute)) || !open.Open || !open.DurableAt.IsZero() || before.Epoch != maxCycles-3 {
		t.Errorf("%+v %+v %+v", newest, open, before)
	}
}

// New work does not end a wait: the schedule holds while epochs come in, and what an
// operator must mend is not tried because there is more of it. Capture looks at once.
func TestStageKeepsItsWaitWhileWorkComesIn(t *testing.T) {
	for name, x := range map[string]struct {
		err  error
		want []time.Duration
	}{"an outage": {refusedConnection, after(0, 1, 3, 7, 15)}, "an operator": {operatorsError(), after(0)}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWork()
				w.err = x.err
				w.during(t, func() {
					for range 48 {
						sleepFor(t, 30*time.Second-time.Millisecond)
						w.wake()
					}
				})
				w.started(t, x.want)
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		w := newWork()
		w.err, w.rests = refusedConnection, false
		w.during(t, func() { sleepFor(t, time.Second); w.wake(); synctest.Wait() })
		if len(w.starts) != 2 {
			t.Errorf("capture was woken: steps at %v", w.starts)
		}
	})
}

func TestGate(t *testing.T) {
	g := newGate()
	g.Lock()
	if g.TryLock() {
		t.Error("two are through")
	}
	g.Unlock()
	if !g.TryLock() {
		t.Error("it is shut")
	}
}
