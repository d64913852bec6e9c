// Package kvtest is the suite every kv.Store passes.
package kvtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Maker makes stores. Reopen closes the store and opens what it left.
type Maker struct {
	Open   func(t *testing.T) kv.Store
	Reopen func(t *testing.T, s kv.Store) kv.Store
}

// Run runs the suite.
func Run(t *testing.T, m Maker) {
	t.Run("GetOfWhatWasPut", m.getPut)
	t.Run("AbsentKeyIsErrNotFound", m.absent)
	t.Run("LastOperationOnAKeyCounts", m.lastWins)
	t.Run("ScanIsOrderedAndBounded", m.scan)
	t.Run("ScanReturnsTheFunctionsError", m.scanError)
	t.Run("KeepsNothingItWasGiven", m.aliasing)
	t.Run("LimitsAreRefusedBeforeAnything", m.limits)
	t.Run("LargestBatchIsTaken", m.largest)
	t.Run("ConcurrentApplies", m.concurrent)
	t.Run("ReopenedHasWhatWasAcknowledged", m.reopen)
	t.Run("ClosedIsErrClosed", m.closed)
}

func (m Maker) open(t *testing.T) kv.Store {
	s := m.Open(t)
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return s
}

func put(t *testing.T, s kv.Store, pairs ...string) {
	t.Helper()
	var b kv.Batch
	for i := 0; i < len(pairs); i += 2 {
		b.Put([]byte(pairs[i]), []byte(pairs[i+1]))
	}
	apply(t, s, &b)
}

func apply(t *testing.T, s kv.Store, b *kv.Batch) {
	t.Helper()
	if err := s.Apply(b); err != nil {
		t.Fatalf("apply: %v", err)
	}
}

func want(t *testing.T, s kv.Store, key, value string) {
	t.Helper()
	if v, err := s.Get([]byte(key)); err != nil || string(v) != value {
		t.Fatalf("get %q = %q, %v; want %q", key, v, err, value)
	}
}

func wantAbsent(t *testing.T, s kv.Store, key string) {
	t.Helper()
	if v, err := s.Get([]byte(key)); !errors.Is(err, kv.ErrNotFound) {
		t.Fatalf("get %q = %q, %v; want ErrNotFound", key, v, err)
	}
}

func keys(t *testing.T, s kv.Store, prefix string) []string {
	t.Helper()
	var out []string
	err := s.Scan([]byte(prefix), func(k, _ []byte) error {
		out = append(out, string(k))
		return nil
	})
	if err != nil {
		t.Fatalf("scan %q: %v", prefix, err)
	}
	return out
}

func (m Maker) getPut(t *testing.T) {
	s := m.open(t)
	put(t, s, "a", "1", "b", "", "\x00\xff", "binary\x00")
	want(t, s, "a", "1")
	want(t, s, "b", "")
	want(t, s, "\x00\xff", "binary\x00")
	put(t, s, "a", "2")
	want(t, s, "a", "2")
}

func (m Maker) absent(t *testing.T) {
	s := m.open(t)
	wantAbsent(t, s, "a")
	put(t, s, "a", "1")
	var b kv.Batch
	b.Delete([]byte("a"))
	b.Delete([]byte("never there"))
	apply(t, s, &b)
	apply(t, s, &b)
	wantAbsent(t, s, "a")
}

func (m Maker) lastWins(t *testing.T) {
	s := m.open(t)
	var b kv.Batch
	b.Put([]byte("a"), []byte("1"))
	b.Delete([]byte("a"))
	b.Delete([]byte("b"))
	b.Put([]byte("b"), []byte("2"))
	apply(t, s, &b)
	wantAbsent(t, s, "a")
	want(t, s, "b", "2")
}

func (m Maker) scan(t *testing.T) {
	s := m.open(t)
	put(t, s, "p/2", "", "p/10", "", "q", "", "p", "", "p/\xff", "", "o", "")
	for prefix, exp := range map[string][]string{
		"p/": {"p/10", "p/2", "p/\xff"},
		"":   {"o", "p", "p/10", "p/2", "p/\xff", "q"},
		"x":  nil,
	} {
		if got := keys(t, s, prefix); !slices.Equal(got, exp) {
			t.Errorf("scan %q = %q, want %q", prefix, got, exp)
		}
	}
}

func (m Maker) scanError(t *testing.T) {
	s := m.open(t)
	put(t, s, "a", "", "b", "")
	stop := errors.New("stop")
	n := 0
	err := s.Scan(nil, func(_, _ []byte) error {
		n++
		return stop
	})
	if err != stop || n != 1 {
		t.Fatalf("scan ended after %d with %v", n, err)
	}
}

func (m Maker) aliasing(t *testing.T) {
	s := m.open(t)
	k, v := []byte("key"), []byte("value")
	var b kv.Batch
	b.Put(k, v)
	apply(t, s, &b)
	copy(k, "xxx")
	copy(v, "xxxxx")
	want(t, s, "key", "value")
	got, _ := s.Get([]byte("key"))
	copy(got, "yyyyy")
	want(t, s, "key", "value")
}

func (m Maker) limits(t *testing.T) {
	s := m.open(t)
	for name, c := range map[string]struct {
		batch func(b *kv.Batch)
		err   error
	}{
		"operations": {func(b *kv.Batch) {
			for i := range kv.MaxOps + 1 {
				b.Put(fmt.Appendf(nil, "%d", i), nil)
			}
		}, kv.ErrTooLarge},
		"bytes":     {func(b *kv.Batch) { b.Put([]byte("0"), make([]byte, kv.MaxBytes)) }, kv.ErrTooLarge},
		"empty key": {func(b *kv.Batch) { b.Put([]byte("0"), nil); b.Put(nil, nil) }, kv.ErrKey},
		"long key":  {func(b *kv.Batch) { b.Put([]byte("0"), nil); b.Delete(make([]byte, kv.MaxKey+1)) }, kv.ErrKey},
	} {
		var b kv.Batch
		c.batch(&b)
		if err := s.Apply(&b); !errors.Is(err, c.err) {
			t.Errorf("%s: %v, want %v", name, err, c.err)
		}
	}
	if got := keys(t, s, ""); got != nil {
		t.Errorf("a refused batch left %q", got)
	}
	apply(t, s, &kv.Batch{})
}

func (m Maker) largest(t *testing.T) {
	s := m.open(t)
	var b kv.Batch
	value := make([]byte, kv.MaxBytes/kv.MaxOps-8)
	for i := range kv.MaxOps {
		b.Put(fmt.Appendf(nil, "%08d", i), value)
	}
	apply(t, s, &b)
	long := strings.Repeat("k", kv.MaxKey)
	b = kv.Batch{}
	b.Put([]byte(long), make([]byte, kv.MaxBytes-kv.MaxKey))
	apply(t, s, &b)
	if n := len(keys(t, s, "")); n != kv.MaxOps+1 {
		t.Errorf("%d keys", n)
	}
}

func (m Maker) concurrent(t *testing.T) {
	s := m.open(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := range 25 {
				var b kv.Batch
				key := fmt.Appendf(nil, "%d/%d", w, i)
				b.Put(key, key)
				b.Put(fmt.Appendf(nil, "%d/last", w), key)
				if err := s.Apply(&b); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for w := range 4 {
		want(t, s, fmt.Sprintf("%d/last", w), fmt.Sprintf("%d/24", w))
	}
	if n := len(keys(t, s, "")); n != 104 {
		t.Errorf("%d keys", n)
	}
}

// reopen plays random batches against a map and reopens now and then.
func (m Maker) reopen(t *testing.T) {
	const seed = 7
	rnd := rand.New(rand.NewPCG(seed, 0))
	model := map[string]string{}
	s := m.Open(t)
	for round := range 4 {
		for range 30 {
			var b kv.Batch
			for range 1 + rnd.IntN(20) {
				k, v := fmt.Sprint(rnd.IntN(50)), fmt.Sprint(rnd.Int())
				if rnd.IntN(3) == 0 {
					b.Delete([]byte(k))
					delete(model, k)
				} else {
					b.Put([]byte(k), []byte(v))
					model[k] = v
				}
			}
			apply(t, s, &b)
		}
		s = m.Reopen(t, s)
		if got := keys(t, s, ""); len(got) != len(model) {
			t.Fatalf("seed %d, round %d: %d keys, want %d", seed, round, len(got), len(model))
		}
		for k, v := range model {
			want(t, s, k, v)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func (m Maker) closed(t *testing.T) {
	s := m.Open(t)
	put(t, s, "a", "1")
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var b kv.Batch
	b.Put([]byte("a"), nil)
	_, err := s.Get([]byte("a"))
	for _, err := range []error{err, s.Apply(&b), s.Scan(nil, func(_, _ []byte) error { return nil })} {
		if !errors.Is(err, kv.ErrClosed) {
			t.Errorf("after close: %v", err)
		}
	}
}
