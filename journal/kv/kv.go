// Package kv states what the journal needs from its store: a small ordered map
// with atomic, durable batches. badgerkv is the real one, memory a model with
// crashes and faults; kvtest is the suite both pass.
package kv

import "errors"

var (
	// ErrNotFound: there is no such key.
	ErrNotFound = errors.New("kv: key not found")
	// ErrTooLarge: a batch exceeds MaxOps or MaxBytes; nothing was applied.
	ErrTooLarge = errors.New("kv: batch too large")
	// ErrClosed: the store is closed.
	ErrClosed = errors.New("kv: store is closed")
	// ErrKey: a key is empty or longer than MaxKey; nothing was applied.
	ErrKey = errors.New("kv: bad key")
)

// Limits of one batch and one key. Every Store takes batches up to them.
const (
	MaxOps   = 4096      // operations of a batch
	MaxBytes = 512 << 10 // keys and values of a batch, bytes
	MaxKey   = 1024      // bytes of a key
)

// Store is an ordered map of byte strings. All methods may be called
// concurrently. No method keeps the slices it is given, nor hands out memory
// it will change.
type Store interface {
	// Get returns the value of key, ErrNotFound if there is none. May be repeated.
	Get(key []byte) ([]byte, error)
	// Scan calls fn for every key that starts with prefix, in key order, over
	// one consistent state; an empty prefix means all. An error of fn ends the
	// scan and is returned as it is. fn must not call the store. May be repeated.
	Scan(prefix []byte, fn func(key, value []byte) error) error
	// Apply applies the whole batch atomically; when it returns nil the batch is
	// on stable storage. Of several operations on one key the last one counts.
	// After an error other than ErrTooLarge, ErrKey and ErrClosed the outcome is
	// unknown: all of the batch or nothing of it is there, now or after the next
	// open. Batches are idempotent, so repeating one settles it. An empty batch
	// is a success. It cannot be cancelled.
	Apply(b *Batch) error
	// Close releases the store. What Apply acknowledged stays. A second Close
	// does nothing.
	Close() error
}

// Op is one operation of a batch.
type Op struct {
	Key, Value []byte
	Delete     bool // of a key that may be absent
}

// Batch is a list of operations. The zero value is empty and ready.
type Batch struct {
	ops   []Op
	bytes int
}

// Put sets key to value. The batch keeps both slices.
func (b *Batch) Put(key, value []byte) { b.add(Op{Key: key, Value: value}) }

// Delete removes key. The batch keeps the slice.
func (b *Batch) Delete(key []byte) { b.add(Op{Key: key, Delete: true}) }

func (b *Batch) add(op Op) {
	b.ops = append(b.ops, op)
	b.bytes += len(op.Key) + len(op.Value)
}

// Ops returns the operations in order. The caller must not change them.
func (b *Batch) Ops() []Op { return b.ops }

// Len returns the number of operations.
func (b *Batch) Len() int { return len(b.ops) }

// Full says whether an operation of n more bytes would exceed the limits.
func (b *Batch) Full(n int) bool { return len(b.ops) >= MaxOps || b.bytes+n > MaxBytes }

// Check returns ErrTooLarge or ErrKey if no Store would take the batch.
func (b *Batch) Check() error {
	if len(b.ops) > MaxOps || b.bytes > MaxBytes {
		return ErrTooLarge
	}
	for _, op := range b.ops {
		if len(op.Key) == 0 || len(op.Key) > MaxKey {
			return ErrKey
		}
	}
	return nil
}
