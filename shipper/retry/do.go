package retry

import (
	"context"
	"errors"
	"time"
)

// Defaults of Policy.
const (
	DefaultBudget = 30 * time.Second // BEHAVIOUR §Retry: a request is repeated for up to 30 s
	DefaultFirst  = 500 * time.Millisecond
	DefaultMax    = 8 * time.Second
)

// Policy says how one request is repeated. The zero value is the one of
// BEHAVIOUR §Retry for requests that must not be repeated blindly.
type Policy struct {
	// Budget is how long after its start the request may be repeated; no attempt
	// begins later. Attempts themselves are bounded by ctx only.
	Budget time.Duration // 0: DefaultBudget
	First  time.Duration // wait before the first repetition, doubling; 0: DefaultFirst
	Max    time.Duration // longest wait between two; 0: DefaultMax

	// Idempotent: the request may be repeated although the last one may have
	// been, or may yet be, applied. Without it an error of unknown outcome
	// ends Do, unless Mend is set.
	Idempotent bool
	// Mend is called before each repetition with the error it answers: raise
	// the sequence number, look whether it was applied after all. Its own error
	// ends Do. ErrDone ends it with success.
	Mend func(ctx context.Context, err error) error

	Pacer  *Pacer                              // nil: none. Told about throttling and waited for
	Cost   int                                 // bytes the request moves, for Pacer
	Notice func(err error, wait time.Duration) // before each wait; may be nil
}

// ErrDone is what Policy.Mend returns when it found the request applied.
var ErrDone = errors.New("found applied")

// unsure and final are optional answers of an error, beside those of Describe.
type (
	unsure interface{ OutcomeUnknown() bool }
	final  interface{ SameAnswer() bool }
)

// Do runs op until it succeeds, its error says that repeating is of no use, or
// the budget is used up, and then returns op's last error. Repeated are
// Recoverable errors, except those that say they would get the same answer
// again. It waits First, 2×First, … Max between two attempts, or as long as the
// target asked for; a target that asks for more than is left ends it at once, so
// that the cycle's schedule takes over. When ctx ends during a wait, the error of
// the last attempt is returned: it says more than the context's.
func Do(ctx context.Context, p Policy, op func(ctx context.Context) error) error {
	p = p.withDefaults()
	deadline := time.Now().Add(p.Budget)
	for wait := p.First; ; wait = min(2*wait, p.Max) {
		err := p.attempt(ctx, op)
		if err == nil || !p.repeatable(err) || ctx.Err() != nil {
			return err
		}
		pause := max(wait, delayOf(err))
		if time.Now().Add(pause).After(deadline) {
			return err
		}
		if p.Notice != nil {
			p.Notice(err, pause)
		}
		if !Sleep(ctx, pause) {
			return err
		}
		if done, mendErr := p.mend(ctx, err); done {
			return mendErr
		}
	}
}

func (p Policy) withDefaults() Policy {
	if p.Budget == 0 {
		p.Budget = DefaultBudget
	}
	if p.First == 0 {
		p.First = DefaultFirst
	}
	if p.Max == 0 {
		p.Max = max(DefaultMax, p.First)
	}
	return p
}

func (p Policy) attempt(ctx context.Context, op func(ctx context.Context) error) error {
	if p.Pacer == nil {
		return op(ctx)
	}
	if err := p.Pacer.Wait(ctx, p.Cost); err != nil {
		return err
	}
	err := op(ctx)
	if _, code, _, _ := Describe(err); code == CodeThrottled {
		p.Pacer.Throttled(delayOf(err))
	}
	return err
}

func (p Policy) repeatable(err error) bool {
	if Classify(err) != Recoverable {
		return false
	}
	if f, ok := answer[final](err); ok && f.SameAnswer() {
		return false
	}
	u, ok := answer[unsure](err)
	return p.Idempotent || p.Mend != nil || !ok || !u.OutcomeUnknown()
}

func (p Policy) mend(ctx context.Context, cause error) (done bool, err error) {
	if p.Mend == nil {
		return false, nil
	}
	err = p.Mend(ctx, cause)
	if errors.Is(err, ErrDone) {
		return true, nil
	}
	return err != nil, err
}

func delayOf(err error) time.Duration {
	if d, ok := answer[Delayed](err); ok {
		return d.RetryDelay()
	}
	return 0
}

// Sleep waits for d, or shorter if ctx ends; true if it was d.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
