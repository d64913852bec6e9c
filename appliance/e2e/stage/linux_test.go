package stage

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// The judge of file systems, on a store that is its own mount and its own export.
func TestLinuxIsJudged(t *testing.T) {
	tools(t, "losetup", "mkfs.ext4", "e2fsck", "sqlite3", "qemu-img")
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	g := stubbed(t, `[ "$1" = export ] && { mkdir -p $6; cp --sparse=always $D/source/linux/sql.raw $6/sql.raw; cp --sparse=always $D/source/linux/tree.vhd $6/tree.raw; }
[ "$1" = sync ] && echo '{"epoch":1,"point":"1-1"}'
exit 0`)
	g.rig.Mount = g.rig.Source
	x, err := newLinux(t.Context(), g.env, g.rig)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.start(t.Context()); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	if err := g.rig.Await(t.Context(), "some work", func() (bool, error) {
		return x.committed.Load() > 5 && x.rolled.Load() > 5 && x.written.Load() > 5, nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := x.stop(); err != nil {
		t.Fatal(err)
	}
	if err := x.sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	for what, more := range map[string]told{"a transaction": {committed: 1}, "a transaction with a rollback journal": {rolled: 1}, "a file": {written: 1}} {
		before := x.told()
		before.committed, before.rolled, before.written = before.committed+more.committed, before.rolled+more.rolled, before.written+more.written
		if err := x.check(t.Context(), "1-1", before); err == nil {
			t.Fatal(what + " is lost")
		}
	}
	wipe(t, filepath.Join(g.rig.Source, x.vm, "sql.raw"), 4096, 8<<20)
	if err := x.check(t.Context(), "1-1", told{}); err == nil {
		t.Fatal("a file system without its tables")
	}
}

func wipe(t *testing.T, path string, from, n int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt(make([]byte, n), from)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// A database that goes away ends the load with its error.
func TestDatabaseThatFails(t *testing.T) {
	tools(t, "sqlite3")
	x := &linux{env: &Env{}, sql: &rig.Loop{Dir: filepath.Join(t.TempDir(), "absent")}}
	if err := x.database(t.Context(), walFile, walMode, &x.committed); err == nil {
		t.Fatal("transactions without a database")
	}
	if x.committed.Load() != 0 {
		t.Fatal("committed")
	}
}

func TestTreeThatFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeTreeFile(dir, 1, []byte("x")); err == nil {
		t.Fatal("a tree below a file")
	}
	x := &linux{env: &Env{}, tree: &rig.Loop{Dir: dir}}
	done := make(chan error, 1)
	go func() { done <- x.files(t.Context()) }()
	select {
	case err := <-done:
		if err == nil {
			t.Fatal("no error")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it goes on")
	}
}
