package shipper

import (
	"context"
	"errors"
	"sync"
)

// errResting ends a step of a stage that rests; its work is repeated afterwards, as
// after a crash.
var errResting = errors.New("the pipeline rests")

// rest keeps the stages that talk to the target from it. Capture does not rest: the
// spool takes what changes, within its quota.
type rest struct {
	mu struct {
		sync.Mutex // never held over I/O
		on         bool
		working    map[int]context.CancelCauseFunc // the steps under way
		next       int
		changed    chan struct{} // closed at the next change of on or working
	}
}

func newRest(on bool) *rest {
	r := &rest{}
	r.mu.on, r.mu.working, r.mu.changed = on, map[int]context.CancelCauseFunc{}, make(chan struct{})
	return r
}

// enter waits until nobody wants rest, and returns the context of a step, which
// ends when somebody does.
func (r *rest) enter(ctx context.Context) (work context.Context, leave func(), err error) {
	for {
		r.mu.Lock()
		if !r.mu.on {
			break
		}
		changed := r.mu.changed
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-changed:
		}
	}
	defer r.mu.Unlock()
	work, cancel := context.WithCancelCause(ctx)
	id := r.mu.next
	r.mu.next++
	r.mu.working[id] = cancel
	return work, func() { r.leave(id, cancel) }, nil
}

func (r *rest) leave(id int, cancel context.CancelCauseFunc) {
	cancel(nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.mu.working, id)
	r.changedLocked()
}

func (r *rest) changedLocked() {
	close(r.mu.changed)
	r.mu.changed = make(chan struct{})
}

// set begins or ends the rest; it does not wait.
func (r *rest) set(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.on == on {
		return
	}
	r.mu.on = on
	for _, cancel := range r.mu.working {
		if on {
			cancel(errResting)
		}
	}
	r.changedLocked()
}

func (r *rest) resting() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.on
}

// quiet returns when no step is under way.
func (r *rest) quiet(ctx context.Context) error {
	for {
		r.mu.Lock()
		working, changed := len(r.mu.working), r.mu.changed
		r.mu.Unlock()
		if working == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Rest stops shipping, apply, initial replication and pruning, and returns when
// nothing of it is under way; capture goes on. What a step was doing is repeated
// when the rest ends. It is not durable: Options.Resting is what a start begins with.
func (v *VM) Rest(ctx context.Context) error {
	v.rest.set(true)
	v.wakeAll() // whoever waits for a retry rests instead
	return v.rest.quiet(ctx)
}

// GoOn ends a rest.
func (v *VM) GoOn() {
	v.wakeAll()
	v.rest.set(false)
}

// Resting tells whether the pipeline rests.
func (v *VM) Resting() bool { return v.rest.resting() }
