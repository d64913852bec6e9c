package shipper

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// The names of the stages that copy a new disk, as a Trouble has them.
const (
	StageNameConnect = "connect"
	StageNameInitial = "initial"
)

// Trouble is what keeps a stage from going on.
type Trouble struct {
	Stage   string
	Err     error
	Since   time.Time
	Attempt int       // failed cycles in a row
	NextTry time.Time // zero: an operator must act
	Pending bool      // somebody asked for another try, which has not ended yet
}

// stage is one loop of the pipeline: a step, what wakes it and what it does
// about failure. Stages are alike so that a slow one never stops the one before it.
type stage struct {
	vm    *VM
	name  string
	every func() time.Duration // nil: only when woken
	step  func(context.Context) error
	kick  chan struct{} // there is work
	asks  chan struct{} // somebody wants it tried
	rests bool          // it works at the target, so it stops while the pipeline rests

	mu struct {
		sync.Mutex // never held over I/O
		trouble    *Trouble
	}
}

func (v *VM) newStage(name string, every func() time.Duration, step func(context.Context) error) *stage {
	return &stage{vm: v, name: name, every: every, step: step, kick: make(chan struct{}, 1), asks: make(chan struct{}, 1), rests: true}
}

// wake says that there is work; it never blocks. A stage that waits after a failure
// keeps its schedule: new work does not make the target answer. Capture, whose
// troubles are local, looks at once.
func (s *stage) wake() {
	if !s.rests {
		s.ask()
		return
	}
	poke(s.kick)
}

// ask ends every wait of the stage, also one for a retry or for an operator: somebody
// looks, or the situation is a new one. It never blocks.
func (s *stage) ask() {
	s.asked()
	poke(s.kick)
	poke(s.asks)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (s *stage) trouble() *Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.trouble
}

// run repeats the step until ctx ends.
func (s *stage) run(ctx context.Context) {
	for s.until(ctx) && s.idle(ctx) {
	}
}

// until repeats the step until it succeeds; false when ctx ended first.
func (s *stage) until(ctx context.Context) bool {
	for {
		s.heard() // whoever asked is answered by this attempt
		begin := time.Now()
		err := s.attempt(ctx)
		if ctx.Err() != nil {
			return false
		}
		if errors.Is(err, errResting) {
			continue
		}
		if observe := s.vm.opts.Observer.Stage; observe != nil {
			observe(s.name, time.Since(begin), err)
		}
		if err == nil {
			s.recovered()
			return true
		}
		if !s.backOff(ctx, s.failed(err)) {
			return false
		}
	}
}

// attempt does the step once; a stage that rests waits first. What was wrong before
// a rest is looked for anew after it.
func (s *stage) attempt(ctx context.Context) error {
	if !s.rests {
		return s.step(ctx)
	}
	rested := s.vm.Resting()
	if rested {
		s.forgive()
	}
	work, leave, err := s.vm.rest.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if rested {
		s.heard()
	}
	err = s.step(work)
	if err != nil && errors.Is(context.Cause(work), errResting) {
		return errResting
	}
	return err
}

// heard forgets what woke the stage up to now: it is what the next step does.
func (s *stage) heard() {
	for _, c := range []chan struct{}{s.kick, s.asks} {
		select {
		case <-c:
		default:
		}
	}
}

// forgive forgets the trouble, if there is one.
func (s *stage) forgive() {
	s.mu.Lock()
	had := s.mu.trouble != nil
	s.mu.trouble = nil
	s.mu.Unlock()
	if had {
		s.vm.notify()
	}
}

// idle waits for the next turn.
func (s *stage) idle(ctx context.Context) bool {
	var tick <-chan time.Time
	if s.every != nil {
		t := time.NewTimer(s.every())
		defer t.Stop()
		tick = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-s.kick:
	case <-tick:
	}
	return true
}

func (s *stage) recovered() {
	s.mu.Lock()
	was := s.mu.trouble
	s.mu.trouble = nil
	s.mu.Unlock()
	if was != nil {
		s.vm.opts.Log.Info("stage recovered", "stage", s.name, "after", s.vm.opts.Now().Sub(was.Since).Round(time.Second))
	}
}

// failed notes the error and returns how long to wait, 0 for an operator.
func (s *stage) failed(err error) time.Duration {
	now := s.vm.opts.Now()
	s.mu.Lock()
	t := Trouble{Stage: s.name, Since: now}
	if s.mu.trouble != nil {
		t = *s.mu.trouble
	}
	t.Err, t.NextTry, t.Pending = err, time.Time{}, false
	t.Attempt++
	var wait time.Duration
	if retry.Classify(err) == retry.Recoverable {
		wait = retry.Next(t.Attempt)
		t.NextTry = now.Add(wait)
	}
	s.mu.trouble = &t
	s.mu.Unlock()
	class, code, cause, action := retry.Describe(err)
	s.vm.opts.Log.Warn("stage failed", "stage", s.name, "class", class.String(), "code", code, "cause", cause, "action", action, "attempt", t.Attempt, "retry_in", wait)
	s.vm.notify()
	return wait
}

// backOff waits for the next try: the schedule, somebody who asks for it, or the
// endpoint answering again. False when ctx ended. An operator's help is waited for
// without a schedule and without probing.
func (s *stage) backOff(ctx context.Context, wait time.Duration) bool {
	if wait == 0 {
		return s.woken(ctx, nil, nil)
	}
	due := time.NewTimer(wait)
	defer due.Stop()
	asking, stop := context.WithCancel(ctx)
	back := make(chan struct{})
	var prober sync.WaitGroup
	away := unreachable(s.trouble().Err)
	prober.Go(func() {
		if s.vm.deps.Probe.Await(asking, away) {
			close(back)
		}
	})
	defer prober.Wait()
	defer stop()
	return s.woken(ctx, due.C, back)
}

func (s *stage) woken(ctx context.Context, due <-chan time.Time, back <-chan struct{}) bool {
	select {
	case <-ctx.Done():
		return false
	case <-due:
	case <-s.asks:
	case <-back:
		s.asked() // nobody's patience is tried by an endpoint that is back
	}
	return true
}

// asked marks the trouble as being looked into.
func (s *stage) asked() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.trouble != nil {
		t := *s.mu.trouble
		t.Pending = true
		s.mu.trouble = &t
	}
}

// unreachable tells an error without any answer from one that the target gave.
func unreachable(err error) bool {
	var e *target.Error
	return errors.As(err, &e) && e.Status == 0 && (e.Outcome == target.Unknown || retry.Unanswered(e.Code))
}

// answers asks the target for something small; it answers if it knows or does not
// know it.
func (v *VM) answers(ctx context.Context) bool {
	t, err := v.deps.Open(ctx)
	if err == nil {
		_, err = t.Get(ctx, catalog.VMDocName(v.opts.Name))
	}
	return err == nil || errors.Is(err, target.ErrNotFound)
}
