// Package memory is a model of the journal's store: the same contract in
// memory, with faults at a chosen operation and crashes at any point. It is
// for tests.
package memory

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// ErrInjected is what a faulty operation returns.
var ErrInjected = errors.New("memory: injected fault")

// Fault says what happens to an Apply.
type Fault int

// Outcomes of an Apply.
const (
	None   Fault = iota // it works
	Lost                // an error, and nothing of the batch is there
	Landed              // an error, and the batch is there
)

// Store is a kv.Store. The zero value is empty and ready.
type Store struct {
	// Before, if set, is called by each Apply with its number, from 1, and the
	// batch, under no lock: it may block, to model a store that hangs.
	Before func(n int, b *kv.Batch) Fault

	mu struct { // no I/O
		sync.Mutex
		data    map[string][]byte
		applies int
		closed  bool
	}
}

var _ kv.Store = (*Store)(nil)

// Crash returns a store with what is on stable storage now: every batch whose
// Apply has returned nil, and any batch in flight whole or not at all. The old
// one goes on by itself.
func (s *Store) Crash() *Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := &Store{}
	c.mu.data = maps.Clone(s.mu.data)
	return c
}

// Applies returns the number of Apply calls so far.
func (s *Store) Applies() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.applies
}

// Get implements kv.Store.
func (s *Store) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, kv.ErrClosed
	}
	v, ok := s.mu.data[string(key)]
	if !ok {
		return nil, kv.ErrNotFound
	}
	return slices.Clone(v), nil
}

// Scan implements kv.Store.
func (s *Store) Scan(prefix []byte, fn func(key, value []byte) error) error {
	s.mu.Lock()
	data, closed := maps.Clone(s.mu.data), s.mu.closed
	s.mu.Unlock()
	if closed {
		return kv.ErrClosed
	}
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if !strings.HasPrefix(k, string(prefix)) {
			continue
		}
		if err := fn([]byte(k), slices.Clone(data[k])); err != nil {
			return err
		}
	}
	return nil
}

// Apply implements kv.Store.
func (s *Store) Apply(b *kv.Batch) error {
	if err := b.Check(); err != nil {
		return err
	}
	s.mu.Lock()
	s.mu.applies++
	n, closed := s.mu.applies, s.mu.closed
	s.mu.Unlock()
	if closed {
		return kv.ErrClosed
	}
	fault := None
	if s.Before != nil {
		fault = s.Before(n, b)
	}
	if fault != Lost {
		s.land(b)
	}
	if fault != None {
		return ErrInjected
	}
	return nil
}

func (s *Store) land(b *kv.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.data == nil {
		s.mu.data = make(map[string][]byte)
	}
	for _, op := range b.Ops() {
		if op.Delete {
			delete(s.mu.data, string(op.Key))
		} else {
			s.mu.data[string(op.Key)] = slices.Clone(op.Value)
		}
	}
}

// Close implements kv.Store.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.closed = true
	return nil
}
