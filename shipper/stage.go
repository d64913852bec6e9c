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

// probeInterval is how often a waiting stage asks whether the target answers again.
const probeInterval = 5 * time.Second

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
	kick  chan struct{}

	mu struct {
		sync.Mutex // never held over I/O
		trouble    *Trouble
	}
}

func (v *VM) newStage(name string, every func() time.Duration, step func(context.Context) error) *stage {
	return &stage{vm: v, name: name, every: every, step: step, kick: make(chan struct{}, 1)}
}

// wake makes the stage run its step soon; it never blocks.
func (s *stage) wake() {
	s.mu.Lock()
	if s.mu.trouble != nil {
		t := *s.mu.trouble
		t.Pending = true
		s.mu.trouble = &t
	}
	s.mu.Unlock()
	select {
	case s.kick <- struct{}{}:
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
		err := s.step(ctx)
		if ctx.Err() != nil {
			return false
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
// target answering a cheap probe again. False when ctx ended.
func (s *stage) backOff(ctx context.Context, wait time.Duration) bool {
	var due <-chan time.Time
	var tick <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
		probe := time.NewTicker(probeInterval)
		defer probe.Stop()
		tick = probe.C
	}
	// Only an outage that was seen can end: a target that answers probes while
	// it refuses the work keeps the schedule.
	down := unreachable(s.trouble().Err)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-due:
			return true
		case <-s.kick:
			return true
		case <-tick:
			switch up := s.vm.answers(ctx); {
			case up && down:
				return true
			case !up:
				down = true
			}
		}
	}
}

// unreachable tells an error without any answer from one that the target gave.
func unreachable(err error) bool {
	var e *target.Error
	return errors.As(err, &e) && e.Status == 0 && e.Outcome == target.Unknown
}

// answers asks the target for something small; an answer of any kind ends a wait.
func (v *VM) answers(ctx context.Context) bool {
	if v.target == nil {
		return false // the schedule of the connect stage looks for it
	}
	ctx, cancel := context.WithTimeout(ctx, probeInterval)
	defer cancel()
	_, err := v.target.Get(ctx, catalog.VMDocName(v.opts.Name))
	return err == nil || errors.Is(err, target.ErrNotFound)
}
