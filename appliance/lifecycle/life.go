package lifecycle

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

// Documents keeps small JSON documents durably; Save is synced when it returns.
type Documents interface {
	Load(key string, v any) (bool, error)
	Save(key string, v any) error
	Remove(key string) error
}

// Record is what is durable about the life of a VM.
type Record struct {
	Version int       `json:"version"`
	State   State     `json:"state"`
	Since   time.Time `json:"since"`
	// Unprotected: by an operator. Its images are served untracked.
	Unprotected bool `json:"unprotected,omitempty"`
	// Leaving is what an unprotect has still to do; nil: nothing.
	Leaving *Leaving `json:"leaving,omitempty"`
	// ID and Generation are what this host's vm.json at the target named when the VM
	// was unprotected: what a later unprotect may delete there, and after which the
	// names of a later life begin. TakingOver is the generation that a takeover which
	// did not come to its end may have written; 0: there was none.
	ID         string `json:"id,omitempty"`
	Generation uint64 `json:"generation,omitempty"`
	TakingOver uint64 `json:"taking_over,omitempty"`
}

// Leaving is an unprotect under way: it is done again from the start after a crash.
type Leaving struct {
	Local bool `json:"local,omitempty"` // what is kept of it here
	Erase bool `json:"erase,omitempty"` // what the target holds
}

const recordVersion = 1

// Prefix precedes the name of a VM in the key of its record.
const Prefix = "appliance/vm/"

// Life is where one VM stands.
type Life struct {
	docs Documents
	vm   string
	now  func() time.Time

	saving sync.Mutex // orders writers of the record; held over the synced write
	mu     struct {
		sync.Mutex // never held over I/O
		rec        Record
		dirty      bool // memory is ahead of stable storage
	}
}

// Open reads the record of a VM. A VM without one is new: Disabled until its disks
// are seen.
func Open(docs Documents, vm string, now func() time.Time) (*Life, error) {
	l := &Life{docs: docs, vm: vm, now: now}
	rec := Record{Version: recordVersion, State: Disabled, Since: now()}
	if _, err := docs.Load(Prefix+vm, &rec); err != nil {
		return nil, fmt.Errorf("vm %s: its state: %w", vm, err)
	}
	if rec.Version > recordVersion {
		return nil, fmt.Errorf("vm %s: its state has version %d, this binary knows %d: install the newer one", vm, rec.Version, recordVersion)
	}
	l.mu.rec = rec
	return l, nil
}

// Record is a copy of what is known.
func (l *Life) Record() Record {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.rec
}

// State is where the VM stands, and since when.
func (l *Life) State() (State, time.Time) {
	r := l.Record()
	return r.State, r.Since
}

// See takes in what a look at the VM shows. A state that only commands lead out of
// stays what it is, and a move that no path of the table allows is an error: a
// defect, for the state is then what was seen all the same. It does no I/O; Flush
// makes it durable.
func (l *Life) See(s State) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.mu.rec.State
	if from == s || l.heldLocked() {
		return nil
	}
	l.mu.rec.State, l.mu.rec.Since, l.mu.dirty = s, l.now(), true
	if _, ok := Path(from, s); !ok {
		return fmt.Errorf("vm %s: seen as %s after %s, which no event leads to", l.vm, s, from)
	}
	return nil
}

// heldLocked: only a command ends it.
func (l *Life) heldLocked() bool { return l.mu.rec.State == Paused || l.mu.rec.Unprotected }

// Flush makes durable what was seen.
func (l *Life) Flush() error {
	l.saving.Lock()
	defer l.saving.Unlock()
	l.mu.Lock()
	rec, dirty := l.mu.rec, l.mu.dirty
	l.mu.Unlock()
	if !dirty {
		return nil
	}
	if err := l.docs.Save(Prefix+l.vm, rec); err != nil {
		return fmt.Errorf("vm %s: its state: %w", l.vm, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.dirty = l.mu.rec != rec
	return nil
}

// Do carries a command out: it is refused (*Refusal) or durable. to is the state
// after it, which the table must know; change, if not nil, alters the rest.
func (l *Life) Do(command Event, to State, change func(*Record)) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	rec := l.Record()
	if err := Permit(l.vm, rec.State, command); err != nil {
		return err
	}
	if !slices.Contains(Targets(rec.State, command), to) {
		return fmt.Errorf("vm %s: %s does not lead from %s to %s", l.vm, command, rec.State, to)
	}
	if rec.State != to {
		rec.State, rec.Since = to, l.now()
	}
	return l.saveLocked(rec, change)
}

// Amend alters the record without moving the VM.
func (l *Life) Amend(change func(*Record)) error {
	l.saving.Lock()
	defer l.saving.Unlock()
	return l.saveLocked(l.Record(), change)
}

// saveLocked makes rec durable, then known; the caller holds saving.
func (l *Life) saveLocked(rec Record, change func(*Record)) error {
	if change != nil {
		change(&rec)
	}
	if err := l.docs.Save(Prefix+l.vm, rec); err != nil {
		return fmt.Errorf("vm %s: its state: %w", l.vm, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.rec, l.mu.dirty = rec, false
	return nil
}
