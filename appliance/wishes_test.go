package appliance

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"
)

// savedDocuments are what is durable.
type savedDocuments map[string][]byte

func (d savedDocuments) Load(key string, v any) (bool, error) {
	b, found := d[key]
	if !found {
		return false, nil
	}
	return true, json.Unmarshal(b, v)
}

func (d savedDocuments) Save(key string, v any) (err error) {
	d[key], err = json.Marshal(v)
	return err
}

func (d savedDocuments) Remove(key string) error {
	delete(d, key)
	return nil
}

// What a cancelled comparison found is repaired, and the next one cannot find it again: it must know of it.
func TestI4_CancelledComparisonLeavesWhatItFound(t *testing.T) {
	docs := savedDocuments{}
	open := func() *wishes {
		w, err := openWishes(docs, "vm")
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := open()
	must(w.update(func(l *wishList) { l.want("a.raw", "asked"); l.want("b.raw", "asked") }))
	found := deepWish{Reason: "asked", Snapshot: "s", At: 7, Found: 3}
	must(w.keep("a.raw", found))
	must(w.cancel())
	must(w.keep("b.raw", deepWish{Snapshot: "t", Found: 1})) // ran while it was cancelled
	w = open()                                               // a restart
	if l := w.get(); len(l.Deep) != 0 || l.Held != heldCancelled {
		t.Errorf("after the cancel %+v", l)
	}
	must(w.update(func(l *wishList) { l.want("a.raw", "again"); l.want("b.raw", "again"); l.want("c.raw", "again") }))
	l := w.get()
	found.Reason = "again"
	if l.Deep["a.raw"] != found || l.Deep["b.raw"].Found != 1 || l.Deep["c.raw"] != (deepWish{Reason: "again"}) || len(l.Left) != 0 {
		t.Errorf("wanted again: %+v", l)
	}
	must(w.compared("a.raw", time.Now()))
	must(w.update(func(l *wishList) { l.want("a.raw", "third") }))
	if got := w.get().Deep["a.raw"]; got != (deepWish{Reason: "third"}) {
		t.Errorf("after a whole comparison: %+v", got)
	}
}

// A turn that moves the pipeline does not begin the next at once; whoever asks does.
func TestTurnsOfComparisonsHaveAPauseBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &resyncer{kick: make(chan struct{}, 1)}
		moved := make(chan struct{})
		rested := func() time.Duration {
			begin := time.Now()
			if !r.rest(t.Context(), moved) {
				t.Error("the context has not ended")
			}
			return time.Since(begin)
		}
		if d := rested(); d != comparePause+compareRetry {
			t.Errorf("nothing happened for %v", d)
		}
		close(moved)
		if d := rested(); d != comparePause {
			t.Errorf("moved: %v", d)
		}
		r.wake()
		if d := rested(); d != 0 {
			t.Errorf("asked: %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if r.rest(ctx, moved) {
			t.Error("goes on after the end")
		}
	})
}
