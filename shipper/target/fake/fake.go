package fake

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Options of New.
type Options struct {
	Now func() time.Time // the service's clock; nil: time.Now
}

// Fake implements target.Target. Safe for concurrent use.
type Fake struct {
	now func() time.Time
	// mu guards everything; it is never held while the hook runs or an operation hangs.
	mu struct {
		sync.Mutex
		state    *state
		n        int // operations so far
		counts   map[string]int
		hook     func(Op) Fault
		failAt   int // absolute number, 0: none
		fault    Fault
		injected int
		late     []late
		landed   []Landing
		in, out  int64
	}
}

var _ target.Target = (*Fake)(nil)

// New returns an empty target.
func New(opts Options) *Fake {
	f := &Fake{now: opts.Now}
	if f.now == nil {
		f.now = time.Now
	}
	f.mu.state = newState(f.now)
	f.mu.counts = map[string]int{}
	return f
}

// String names the fake.
func (f *Fake) String() string { return "fake://target" }

// SetHook asks hook about every operation from now on, before it takes effect
// and without any lock held: it may call the Fake. nil removes it.
func (f *Fake) SetHook(hook func(Op) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.hook = hook
}

// FailAt gives the k-th operation from now on, counted from 1, the fault. It goes
// before the hook; k ≤ 0 removes it.
func (f *Fake) FailAt(k int, fault Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.failAt, f.mu.fault = 0, fault
	if k > 0 {
		f.mu.failAt = f.mu.n + k
	}
}

// Operations is the number of operations so far.
func (f *Fake) Operations() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.n
}

// Counts is the number of operations so far by method.
func (f *Fake) Counts() map[string]int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.mu.counts)
}

// Injected is the number of operations that met a fault so far.
func (f *Fake) Injected() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.injected
}

// Traffic is the payload so far in bytes: received by PutPages, Create and
// Replace, and sent by ReadPages and Get; faults and refusals included.
func (f *Fake) Traffic() (in, out int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.in, f.mu.out
}

// Pending is the number of late operations that have not landed.
func (f *Fake) Pending() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.mu.late)
}

// Land makes all pending late operations take effect now, in the order they were
// sent, and tells what became of each.
func (f *Fake) Land() []Landing {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := len(f.mu.landed)
	f.landLocked(func(late) bool { return true })
	return slices.Clone(f.mu.landed[before:])
}

// Landings are all late operations that have landed so far.
func (f *Fake) Landings() []Landing {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.mu.landed)
}

// Clone is an independent copy as of now, with the operations that are still
// under way, without hook and FailAt: what a second machine finds after the
// first has crashed.
func (f *Fake) Clone() *Fake {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &Fake{now: f.now}
	c.mu.state = f.mu.state.clone()
	c.mu.n = f.mu.n
	c.mu.counts = maps.Clone(f.mu.counts)
	c.mu.late = slices.Clone(f.mu.late)
	return c
}

// Rot flips a bit of what is stored at off of a page blob, a snapshot of it or a
// small object, without changing any ETag: damage nobody was told of. It reports
// whether there was something to damage.
func (f *Fake) Rot(name, snapshot string, off int64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.state.rot(name, snapshot, off)
}

// call is one operation: what the hook sees, what it does, and how to keep its
// input if it is to land after the caller has gone on.
type call struct {
	Op
	apply  effect
	detach func()
	in     int
	out    int
}

// do runs one operation through the faults. The returned Kind is Corrupt or
// Truncate when the caller has to damage what it read.
func (f *Fake) do(ctx context.Context, c call) (Kind, error) {
	if err := ctx.Err(); err != nil {
		return None, target.Refused(c.Method, c.Name, err)
	}
	fault := f.begin(&c)
	if fault.Kind == Hang {
		<-ctx.Done()
		return None, f.lost(c, ctx.Err())
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.landLocked(func(l late) bool { return l.due != 0 && l.due <= c.N })
	switch fault.Kind {
	case Refuse:
		return None, target.Refused(c.Method, c.Name, fault.cause())
	case Throttle:
		err := refused(c.Op, target.ErrThrottled)
		err.RetryAfter = fault.RetryAfter
		return None, err
	case NotApplied:
		return None, f.lost(c, fault.cause())
	case Late:
		f.postponeLocked(c, fault)
		return None, f.lost(c, fault.cause())
	case Applied:
		_ = c.apply(f.mu.state, None) // whatever the answer is, it does not arrive
		return None, f.lost(c, fault.cause())
	}
	if err := c.apply(f.mu.state, fault.Kind); err != nil {
		return None, refused(c.Op, err)
	}
	return fault.Kind, nil
}

// begin counts the operation and asks for its fault.
func (f *Fake) begin(c *call) Fault {
	f.mu.Lock()
	f.mu.n++
	c.N = f.mu.n
	f.mu.counts[c.Method]++
	f.mu.in += int64(c.in)
	f.mu.out += int64(c.out)
	hook, planned, fault := f.mu.hook, f.mu.failAt == c.N, f.mu.fault
	f.mu.Unlock()
	if !planned {
		fault = Fault{}
		if hook != nil {
			fault = hook(c.Op)
		}
	}
	if fault.Kind != None {
		f.mu.Lock()
		f.mu.injected++
		f.mu.Unlock()
	}
	return fault
}

func (f *Fake) lost(c call, cause error) error {
	if !c.Write {
		return target.Refused(c.Method, c.Name, cause)
	}
	return target.Lost(c.Method, c.Name, cause)
}

func (f *Fake) postponeLocked(c call, fault Fault) {
	if !c.Write {
		return
	}
	if c.detach != nil {
		c.detach()
	}
	l := late{op: c.Op, apply: c.apply}
	if fault.After > 0 {
		l.due = c.N + fault.After
	}
	f.mu.late = append(f.mu.late, l)
}

// landLocked applies the late operations that pass the filter.
func (f *Fake) landLocked(now func(late) bool) {
	f.mu.late = slices.DeleteFunc(f.mu.late, func(l late) bool {
		if !now(l) {
			return false
		}
		landing := Landing{Op: l.op}
		if err := l.apply(f.mu.state, None); err != nil {
			landing.Err = refused(l.op, err)
		}
		f.mu.landed = append(f.mu.landed, landing)
		return true
	})
}
