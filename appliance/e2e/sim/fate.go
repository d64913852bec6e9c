package sim

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// fate is what strikes a history now. Steps arm it, time disarms it.
type fate struct {
	w         *world
	slowState atomic.Int32 // turns that an operation on the state disk takes at most
	slowImage atomic.Int32
	slowNet   atomic.Int32
	spared    atomic.Bool // the target works: somebody else talks to it

	mu struct { // no I/O under it
		sync.Mutex
		at      map[string]int // crash when the point was reached so many times more
		any     int            // crash at the so manieth point of any name; 0: not
		target  []armed
		store   armedStore
		full    bool // the state disk has no room
		failing int  // every so manieth operation of the state disk fails; 0: none
		trees   int
		holding holding
		strides int // of comparisons before it
		syncs   int // every so manieth sync of an image fails; 0: none
		synced  int
	}
}

// armed is a fault of the target.
type armed struct {
	kind   fake.Kind
	every  int // operations
	seen   int
	after  int // Late
	outage bool
}

// armedStore is a fault of the key-value store.
type armedStore struct {
	kind  memory.Fault
	every int
	seen  int
}

func newFate(w *world) *fate {
	f := &fate{w: w}
	f.mu.at = map[string]int{}
	f.calm()
	return f
}

// calm disarms everything; some slowness stays, or nothing would ever happen at the same time as another thing.
func (f *fate) calm() {
	f.slowState.Store(3)
	f.slowImage.Store(4)
	f.slowNet.Store(6)
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.mu.at)
	f.mu.any, f.mu.target, f.mu.store, f.mu.full, f.mu.failing, f.mu.syncs = 0, nil, armedStore{}, false, 0, 0
}

// with changes what is armed.
func (f *fate) with(change func(f *fate)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f)
}

// crashAt says whether the process dies at this failpoint.
func (f *fate) crashAt(point string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.any > 0 {
		f.mu.any--
		return f.mu.any == 0
	}
	n, ok := f.mu.at[point]
	if !ok {
		return false
	}
	if n > 1 {
		f.mu.at[point] = n - 1
		return false
	}
	delete(f.mu.at, point)
	return true
}

// strikeComparison says what strikes a comparison at its next stride.
func (f *fate) strikeComparison() holding {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.holding == holdNot {
		return holdNot
	}
	if f.mu.strides--; f.mu.strides > 0 {
		return holdNot
	}
	kind := f.mu.holding
	f.mu.holding = holdNot
	return kind
}

// targetFault is the target's hook.
func (f *fate) targetFault(op fake.Op) fake.Fault {
	if f.spared.Load() {
		return fake.Fault{}
	}
	f.w.happened("target: %s %s %s %d+%d", op.Method, op.Name, op.Snapshot, op.Off, op.Len)
	if n := f.w.slowness(f.slowNet.Load(), fmt.Sprint(op.Method, op.Name, op.Off)); n > 0 {
		f.w.turns.pause(n)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.mu.target {
		a := &f.mu.target[i]
		if a.seen++; a.seen%a.every == 0 {
			kind := a.kind
			if !op.Write && kind != fake.Refuse && kind != fake.Throttle {
				kind = fake.Refuse // a read has no unknown outcome
			}
			fault := fake.Fault{Kind: kind, After: a.after, RetryAfter: 2 * time.Second}
			if a.outage {
				fault.Err = syscall.ECONNREFUSED
			}
			f.w.struck("target: " + kindNames[kind])
			return fault
		}
	}
	return fake.Fault{}
}

var kindNames = map[fake.Kind]string{fake.Refuse: "refused", fake.Applied: "applied, answer lost", fake.NotApplied: "not applied, answer lost",
	fake.Late: "late", fake.Throttle: "throttled", fake.Corrupt: "corrupted", fake.Truncate: "cut short"}

// storeFault is what becomes of a commit of the journal.
func (f *fate) storeFault() memory.Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.mu.store
	if f.mu.full {
		f.w.struck("state disk full")
		return memory.Lost
	}
	if s.every == 0 {
		return memory.None
	}
	if s.seen++; s.seen%s.every != 0 {
		return memory.None
	}
	f.w.struck([]string{"", "journal commit lost", "journal commit landed, answer lost"}[s.kind])
	return s.kind
}

// growing are the operations of a file system that need room.
var growing = map[string]bool{"mkdir": true, "create": true, "write": true, "truncate": true}

// treeFault is what becomes of an operation on the state disk.
func (f *fate) treeFault(op, _ string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.full && growing[op] {
		f.w.struck("state disk full")
		return syscall.ENOSPC
	}
	if f.mu.failing == 0 {
		return nil
	}
	if f.mu.trees++; f.mu.trees%f.mu.failing != 0 {
		return nil
	}
	f.w.struck("state disk error")
	return syscall.EIO
}

// syncFault says whether a sync of an image fails.
func (f *fate) syncFault() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.syncs == 0 {
		return false
	}
	if f.mu.synced++; f.mu.synced%f.mu.syncs != 0 {
		return false
	}
	f.w.struck("image sync failed")
	return true
}
