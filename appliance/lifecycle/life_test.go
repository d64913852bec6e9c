package lifecycle

import (
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// docs is a store in memory that can fail.
type docs struct {
	m    map[string][]byte
	fail error
}

func (d *docs) Load(key string, v any) (bool, error) {
	raw, ok := d.m[key]
	if !ok {
		return false, d.fail
	}
	return true, errors.Join(d.fail, json.Unmarshal(raw, v))
}

func (d *docs) Save(key string, v any) error {
	if d.fail != nil {
		return d.fail
	}
	raw, err := json.Marshal(v)
	d.m[key] = raw
	return err
}

func (d *docs) Remove(key string) error { delete(d.m, key); return d.fail }

type world struct {
	t    *testing.T
	docs *docs
	at   time.Time
	life *Life
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, docs: &docs{m: map[string][]byte{}}, at: time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)}
	w.reopen()
	return w
}

func (w *world) reopen() {
	w.t.Helper()
	var err error
	if w.life, err = Open(w.docs, "web", func() time.Time { return w.at }); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) is(s State) {
	w.t.Helper()
	if got, _ := w.life.State(); got != s {
		w.t.Errorf("it is %s, want %s", got, s)
	}
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestLifeSurvivesARestart(t *testing.T) {
	w := newWorld(t)
	w.is(Disabled)
	w.must(w.life.See(Replicating))
	w.must(w.life.Flush())
	began := w.at
	w.at = w.at.Add(time.Hour)
	w.must(w.life.See(Replicating))
	w.reopen()
	if s, since := w.life.State(); s != Replicating || !since.Equal(began) {
		t.Errorf("%s since %v, want since %v", s, since, began)
	}
	w.must(w.life.Do(Pause, Paused, nil))
	w.reopen()
	w.is(Paused)
	w.must(w.life.See(Error)) // a command holds it
	w.is(Paused)
	w.must(w.life.Do(Resume, Replicating, nil))
	w.must(w.life.Do(Unprotect, Disabled, func(r *Record) { r.Unprotected = true }))
	w.reopen()
	w.must(w.life.See(Replicating))
	w.is(Disabled)
}

func TestLifeRefuses(t *testing.T) {
	w := newWorld(t)
	var r *Refusal
	if err := w.life.Do(Pause, Paused, nil); !errors.As(err, &r) || r.State != Disabled || r.VM != "web" {
		t.Errorf("pause of a disabled VM: %v", err)
	}
	w.must(w.life.See(Replicating))
	if err := w.life.Do(Pause, Disabled, nil); err == nil || errors.As(err, &r) && r.Command == Unprotect {
		t.Errorf("a command that leads elsewhere: %v", err)
	}
	w.is(Replicating)
}

// A command that could not be made durable has not happened.
func TestLifeNothingIsSaidThatIsNotDurable(t *testing.T) {
	w := newWorld(t)
	w.must(w.life.See(Replicating))
	w.docs.fail = errors.New("disk full")
	if err := w.life.Do(Pause, Paused, nil); !errors.Is(err, w.docs.fail) {
		t.Fatalf("pause: %v", err)
	}
	w.is(Replicating)
	if err := w.life.Flush(); !errors.Is(err, w.docs.fail) {
		t.Errorf("flush: %v", err)
	}
	w.docs.fail = nil
	w.must(w.life.Flush())
	w.reopen()
	w.is(Replicating)
}

func TestLifeOfANewerVersion(t *testing.T) {
	w := newWorld(t)
	w.must(w.docs.Save(Prefix+"web", Record{Version: recordVersion + 1}))
	if _, err := Open(w.docs, "web", time.Now); err == nil {
		t.Error("a newer record was read")
	}
}

func TestLifeAmends(t *testing.T) {
	w := newWorld(t)
	w.must(w.life.See(Replicating))
	w.must(w.life.Amend(func(r *Record) { r.Generation = 7 }))
	w.reopen()
	w.is(Replicating)
	if r := w.life.Record(); r.Generation != 7 {
		t.Errorf("%+v", r)
	}
}
