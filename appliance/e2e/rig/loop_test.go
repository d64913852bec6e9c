package rig

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func newLoop(t *testing.T) *Loop {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	for _, name := range []string{"losetup", "mkfs.ext4", "e2fsck"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	dir := t.TempDir()
	l := &Loop{File: filepath.Join(dir, "fs"), Dir: filepath.Join(dir, "mnt")}
	if err := l.Format(t.Context(), 64<<20); err != nil {
		t.Fatal(err)
	}
	if err := l.Mount(t.Context()); err != nil {
		t.Skipf("no loop devices here: %v", err)
	}
	t.Cleanup(func() {
		if err := l.Abandon(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// A cut keeps what was synced and loses what was not: without both, a test of power cuts tests nothing.
func TestLoopCut(t *testing.T) {
	l := newLoop(t)
	synced, lost := filepath.Join(l.Dir, "synced"), filepath.Join(l.Dir, "lost")
	write(t, synced, true)
	write(t, lost, false)
	if err := l.Cut(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(l.Dir, "late"), []byte("x"), 0o600); err == nil {
		t.Fatal("a file system without power takes a file")
	}
	if err := l.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := l.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Mount(t.Context(), "ro"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(synced); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(lost); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%v: nothing is ever lost", err)
	}
}

func write(t *testing.T, path string, sync bool) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString("text")
	if sync {
		err = errors.Join(err, f.Sync())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestLoopLifeCycle(t *testing.T) {
	l := newLoop(t)
	if !Mounted(l.Dir) {
		t.Fatal("not mounted")
	}
	f, err := os.Create(filepath.Join(l.Dir, "open"))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(l.Dir, 0); !errors.Is(err, unix.EBUSY) {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.Unmount(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Mount(t.Context()); err != nil {
		t.Fatal(err)
	}
	Detached(l.Dir)
	if Mounted(l.Dir) {
		t.Fatal("still mounted")
	}
	l.device = ""
}

func TestLoopOfNoFileSystem(t *testing.T) {
	l := newLoop(t)
	if err := l.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(l.File, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if l.Mount(t.Context()) == nil {
		t.Fatal("zeros are mounted")
	}
	if l.Check(t.Context()) == nil {
		t.Fatal("zeros are flawless")
	}
}
