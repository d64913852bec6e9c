package journal

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// The format ladder. Rungs are never reused; README.md says what each guarantees.
const (
	formatFirst   = 1 // the keys below
	formatCurrent = formatFirst
)

// Keys of the store, as README.md lists them. They never change.
const (
	keyVersion = "meta/version"
	keySession = "meta/session"
	keyClean   = "meta/clean"
	preVM      = "vm/"
	preEpoch   = "epoch/"
	preDisk    = "disk/"
	preClean   = "clean/"
	preActive  = "act/"
	preSet     = "set/"
	preSuspect = "sus/"
	preDoc     = "doc/"
)

type sessionRecord struct {
	ID        string    `json:"id"`
	Previous  string    `json:"previous"`
	Published bool      `json:"published"`
	Boot      string    `json:"boot"`
	Started   time.Time `json:"started"`
}

type cleanRecord struct {
	Session string    `json:"session"`
	Time    time.Time `json:"time"`
}

type vmRecord struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
}

// epochRecord: no number above Reserved was ever handed out. A clean stop
// lowers Reserved to the last one used.
type epochRecord struct {
	Reserved uint64 `json:"reserved"`
}

type diskRecord struct {
	Name     string    `json:"name"`
	Session  string    `json:"session"`
	Attached time.Time `json:"attached"`
	Boot     string    `json:"boot"`
	Identity Identity  `json:"identity"`
}

type suspectRecord struct {
	Reason   string      `json:"reason"`
	Since    time.Time   `json:"since"`
	Total    int64       `json:"total"`    // bytes suspect when it began
	Compared int64       `json:"compared"` // bytes
	Ranges   [][2]region `json:"ranges"`   // still to be compared, half-open
}

func activeKey(disk string, r region) []byte { return numberedKey(preActive, disk, int64(r)) }

func numberedKey(prefix, disk string, n int64) []byte {
	k := make([]byte, 0, len(prefix)+len(disk)+5)
	k = append(append(append(k, prefix...), disk...), '/')
	return binary.BigEndian.AppendUint32(k, uint32(n))
}

// keyNumber returns the number a key made by numberedKey ends in, given the
// length of what precedes it.
func keyNumber(key []byte, prefix int) (int64, error) {
	if len(key) != prefix+4 {
		return 0, fmt.Errorf("%w: key %q has no number", ErrFormat, key)
	}
	return int64(binary.BigEndian.Uint32(key[prefix:])), nil
}

// splitNumbered parses a whole key made by numberedKey.
func splitNumbered(key []byte, prefix string) (disk string, n int64, err error) {
	rest := key[len(prefix):]
	if len(rest) < 6 || rest[len(rest)-5] != '/' {
		return "", 0, fmt.Errorf("%w: key %q", ErrFormat, key)
	}
	return string(rest[:len(rest)-5]), int64(binary.BigEndian.Uint32(rest[len(rest)-4:])), nil
}

func diskKey(vm, disk string) string { return preDisk + vm + "/" + disk }

func splitDiskKey(key string) (vm, disk string, ok bool) {
	return strings.Cut(strings.TrimPrefix(key, preDisk), "/")
}

// getJSON reads a record; false if there is none.
func getJSON(s kv.Store, key string, v any) (bool, error) {
	raw, err := s.Get([]byte(key))
	if isNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("%w: %s: %w", ErrFormat, key, err)
	}
	return true, nil
}

// putJSON adds a record to a batch.
func putJSON(b *kv.Batch, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	b.Put([]byte(key), raw)
	return nil
}

// chunks applies any number of operations in batches the store takes. Each
// batch is atomic, the whole is not.
type chunks struct {
	store kv.Store
	batch kv.Batch
}

func (c *chunks) put(key, value []byte) error {
	if err := c.room(len(key) + len(value)); err != nil {
		return err
	}
	c.batch.Put(key, value)
	return nil
}

func (c *chunks) delete(key []byte) error {
	if err := c.room(len(key)); err != nil {
		return err
	}
	c.batch.Delete(key)
	return nil
}

func (c *chunks) room(n int) error {
	if c.batch.Full(n) {
		return c.flush()
	}
	return nil
}

func (c *chunks) flush() error {
	b := c.batch
	c.batch = kv.Batch{}
	if b.Len() == 0 {
		return nil
	}
	return c.store.Apply(&b)
}

// deletePrefix removes every key with the prefix, in batches.
func deletePrefix(s kv.Store, prefix string) error {
	var keys [][]byte
	err := s.Scan([]byte(prefix), func(k, _ []byte) error {
		keys = append(keys, append([]byte(nil), k...))
		return nil
	})
	c := chunks{store: s}
	for _, k := range keys {
		if err == nil {
			err = c.delete(k)
		}
	}
	if err == nil {
		err = c.flush()
	}
	if err != nil {
		return fmt.Errorf("delete %s…: %w", prefix, err)
	}
	return nil
}
