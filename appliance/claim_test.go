package appliance

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// bare is a directory of a file system without extended attributes.
func bare(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("ramfs", dir, "ramfs", 0, ""); err != nil {
		t.Skip("needs root and ramfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func TestMarksWithAndWithoutAttributes(t *testing.T) {
	for name, dir := range map[string]string{"attributes": t.TempDir(), "files": bare(t)} {
		t.Run(name, func(t *testing.T) {
			if got, err := readMark(dir, markStoreID); got != "" || err != nil {
				t.Errorf("no mark: %q %v", got, err)
			}
			for _, value := range []string{"first", "second"} {
				if err := writeMark(dir, markStoreID, value); err != nil {
					t.Fatal(err)
				}
				if got, err := readMark(dir, markStoreID); got != value || err != nil {
					t.Errorf("%q %v, want %q", got, err, value)
				}
			}
			_, err := os.Stat(filepath.Join(dir, markDir))
			if (name == "files") != (err == nil) {
				t.Errorf("directory of marks: %v", err)
			}
		})
	}
	if _, err := readMark(filepath.Join(t.TempDir(), "none"), markStoreID); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if err := writeMark(filepath.Join(t.TempDir(), "none"), markStoreID, "x"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func claimed(t *testing.T, dir string) *store {
	t.Helper()
	s := newStore(&Appliance{log: discard}, config.Store{Name: "main", Source: dir})
	if err := s.claim(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

func TestClaim(t *testing.T) {
	dir := t.TempDir()
	first := claimed(t, dir)
	again := newStore(&Appliance{log: discard}, first.conf)
	if err := again.claim(); !errors.Is(err, &control.Error{Code: "store-in-use"}) {
		t.Errorf("a second claim: %v", err)
	}
	if err := errors.Join(first.remember(session(t, &memory.Store{})), first.close()); err != nil {
		t.Fatal(err)
	}
	if next := claimed(t, dir); next.id != first.id || next.id == "" {
		t.Errorf("id %q, was %q", next.id, first.id)
	}
}

// session opens the journal as the next start does.
func session(t *testing.T, db *memory.Store) *journal.Journal {
	t.Helper()
	j, err := journal.Open(db, journal.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestReverted(t *testing.T) {
	s, db := claimed(t, t.TempDir()), &memory.Store{}
	check := func(what string, j *journal.Journal, want bool) {
		t.Helper()
		if got, err := s.reverted(j); got != want || err != nil {
			t.Errorf("%s: %v %v, want %v", what, got, err, want)
		}
	}
	serve := func(j *journal.Journal, mark, publish bool) {
		t.Helper()
		_, current, _ := j.Session()
		var err error
		if mark {
			err = s.publish(current)
		}
		if publish {
			err = errors.Join(err, j.PublishSession())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	first := session(t, db)
	check("first start", first, false)
	serve(first, true, true)
	second := session(t, db)
	check("after a whole start", second, false)
	serve(second, false, false)
	third := session(t, db)
	check("after a start that died before its mark", third, false)
	serve(third, true, false)
	fourth := session(t, db)
	check("after a start that died before it knew of its mark", fourth, false)
	serve(fourth, true, true)
	old := db.Crash()
	serve(session(t, db), true, true)
	check("state put back", session(t, old), true)
	if err := s.publish("an older session"); err != nil {
		t.Fatal(err)
	}
	check("store put back", session(t, db), true)
	check("empty state directory", session(t, &memory.Store{}), false)
}

func TestExchanged(t *testing.T) {
	dir, j := t.TempDir(), session(t, &memory.Store{})
	s := claimed(t, dir)
	for _, want := range []bool{false, false} {
		if got, err := s.exchanged(j); got != want || err != nil {
			t.Errorf("%v %v", got, err)
		}
		if err := s.remember(j); err != nil {
			t.Fatal(err)
		}
	}
	other := claimed(t, t.TempDir())
	if got, err := other.exchanged(j); got || !errors.Is(err, &control.Error{Code: "source-empty"}) {
		t.Errorf("an empty directory under the name: %v %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(other.conf.Source, "os.img"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := other.exchanged(j); !got || err != nil {
		t.Errorf("another directory under the name: %v %v", got, err)
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	f, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockState(dir); !errors.Is(err, &control.Error{Code: "state-in-use"}) {
		t.Errorf("%v", err)
	}
	inherited, err := unix.Dup(int(f.Fd())) // as by a child that has not run its program yet
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(inherited)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = lockState(dir); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if _, err := lockState(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
