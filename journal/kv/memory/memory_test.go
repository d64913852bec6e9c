package memory

import (
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/kvtest"
)

func TestConformance(t *testing.T) {
	kvtest.Run(t, kvtest.Maker{
		Open: func(*testing.T) kv.Store { return &Store{} },
		Reopen: func(t *testing.T, s kv.Store) kv.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return s.(*Store).Crash()
		},
	})
}

func TestFaultsHaveBothOutcomes(t *testing.T) {
	for fault, there := range map[Fault]bool{Lost: false, Landed: true} {
		s := &Store{Before: func(n int, _ *kv.Batch) Fault {
			if n == 2 {
				return fault
			}
			return None
		}}
		var b kv.Batch
		b.Put([]byte("a"), nil)
		if err := s.Apply(&kv.Batch{}); err != nil {
			t.Fatal(err)
		}
		if err := s.Apply(&b); !errors.Is(err, ErrInjected) {
			t.Fatalf("fault %d: %v", fault, err)
		}
		if _, err := s.Get([]byte("a")); (err == nil) != there {
			t.Errorf("fault %d: get: %v", fault, err)
		}
		if s.Applies() != 2 {
			t.Errorf("%d applies", s.Applies())
		}
	}
}

func TestCrashCopiesShareNothing(t *testing.T) {
	s := &Store{}
	var b kv.Batch
	b.Put([]byte("a"), []byte("1"))
	_ = s.Apply(&b)
	c := s.Crash()
	var d kv.Batch
	d.Delete([]byte("a"))
	_ = s.Apply(&d)
	if v, err := c.Get([]byte("a")); err != nil || string(v) != "1" {
		t.Fatalf("%q, %v", v, err)
	}
}
