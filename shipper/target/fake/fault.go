package fake

import (
	"errors"
	"time"
)

// Kind is what happens to an operation.
type Kind uint8

// Kinds of faults. Those of unknown outcome count for writes; a read that meets
// one fails and changes nothing, so its outcome is known.
const (
	None       Kind = iota
	Refuse          // fails before anything happened; outcome known
	Applied         // takes effect, the answer is lost
	NotApplied      // does not take effect, ever, but nobody knows
	Late            // unknown outcome; takes effect after Fault.After further operations, or at Land
	Throttle        // 503 with Fault.RetryAfter
	Hang            // nothing until ctx ends, then unknown outcome and not applied
	Corrupt         // a read returns damaged bytes without an error; a put is damaged on its way
	Truncate        // Get returns half without an error, ReadPages fills half and fails, List ends early with an error
)

// Fault is the answer of the hook: the zero value lets the operation pass.
type Fault struct {
	Kind       Kind
	After      int           // Late: operations until it lands; 0: only at Land
	RetryAfter time.Duration // Throttle
	Err        error         // instead of ErrInjected: a sentinel of package target, a syscall.Errno …
}

// ErrInjected is the cause of every fault that has no Err of its own.
var ErrInjected = errors.New("injected fault")

func (f Fault) cause() error {
	if f.Err != nil {
		return f.Err
	}
	return ErrInjected
}

// Op is one operation, as the hook sees it before it takes effect.
type Op struct {
	N        int    // its number since New, counted from 1
	Method   string // of target.Target
	Name     string // or the prefix of a List
	Snapshot string
	Off, Len int64 // of pages, in bytes; Len also the size of an object or blob
	Lease    string
	Sequence int64 // guard, or the number to set; -1: none
	Write    bool  // may change something
}

// Landing is a late operation that took effect, or was refused when it did.
type Landing struct {
	Op  Op
	Err error // of the conditions at that time; nil: applied
}

// late is a request on its way.
type late struct {
	op    Op
	due   int // operation number after which it lands; 0: never by itself
	apply effect
}

// effect changes a state, under the lock of whoever owns it. It keeps no
// reference to a particular Fake, so that it can land in a Clone as well.
type effect func(st *state, k Kind) error
