package badgerkv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// small is a directory on a file system of its own.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("needs root and tmpfs: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// fill leaves no space and returns what gives it back.
func fill(t *testing.T, dir string) func() {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for size := 1 << 20; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func put(s *Store, key, value []byte) error {
	var b kv.Batch
	b.Put(key, value)
	return s.Apply(&b)
}

// I9: a full disk is an error, not the end of the process: Badger maps its files, and
// a page that cannot be had is a SIGBUS.
func TestI9_FullDiskIsAnError(t *testing.T) {
	dir := small(t, "160m")
	s, err := Open(filepath.Join(dir, "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(s, []byte("before"), []byte("1")); err != nil {
		t.Fatal(err)
	}
	free := fill(t, dir)
	for i := range 100 {
		if err := put(s, fmt.Appendf(nil, "full %d", i), bytes.Repeat([]byte{1}, 1000)); !errors.Is(err, ErrNoRoom) || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("put %d: %v", i, err)
		}
	}
	if v, err := s.Get([]byte("before")); err != nil || string(v) != "1" {
		t.Errorf("%q %v", v, err)
	}
	if _, err := Open(filepath.Join(dir, "other"), nil); !errors.Is(err, ErrNoRoom) {
		t.Errorf("open: %v", err)
	}
	free()
	if err := put(s, []byte("after"), []byte("2")); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// The log's space is taken when the store is opened: what happens to the disk between
// the look at its free space and the write harms nobody.
func TestLogsHaveTheirSpace(t *testing.T) {
	dir := filepath.Join(small(t, "160m"), "db")
	s, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	logs, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil || len(logs) == 0 {
		t.Fatalf("%v %v", logs, err)
	}
	for _, path := range logs {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Blocks*512 < 2*memtable {
			t.Errorf("%s has %d bytes of %d", path, st.Blocks*512, 2*memtable)
		}
	}
	if err := reserveFile(filepath.Join(dir, "none.mem")); err != nil {
		t.Error(err)
	}
}

// Closing on a full disk does not die either; the next open replays.
func TestCloseOnAFullDisk(t *testing.T) {
	dir := small(t, "160m")
	s, err := Open(filepath.Join(dir, "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := put(s, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	free := fill(t, dir)
	if err := s.Close(); !errors.Is(err, ErrNoRoom) {
		t.Errorf("%v", err)
	}
	free()
	if err := room(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A database whose disk has failed tries for ever to write its last table. Nobody may
// wait for it: readers get an error, and when the disk is back the store works again.
func TestI9_CloseThatDoesNotEnd(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.closeWait = time.Millisecond
	if err := put(s, []byte("k"), []byte("v")); err != nil {
		t.Fatal(err)
	}
	thaw := freeze(t, dir)
	s.mu.broken = errors.New("a commit failed")
	if err := put(s, []byte("k2"), []byte("v")); !errors.Is(err, ErrClosing) {
		t.Errorf("commit: %v", err)
	}
	if _, err := s.Get([]byte("k")); err == nil {
		t.Error("a database that is not open was read")
	}
	thaw()
	s.mu.Lock()
	s.mu.closing <- <-s.mu.closing // wait for its end
	s.mu.Unlock()
	s.closeWait = closeWait
	if err := put(s, []byte("k2"), []byte("v")); err != nil {
		t.Errorf("with the disk back: %v", err)
	}
	if v, err := s.Get([]byte("k")); err != nil || string(v) != "v" {
		t.Errorf("%q %v", v, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// freeze lets nobody make a file in dir until the function it returns is called.
func freeze(t *testing.T, dir string) func() {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	const immutable = 0x10 // FS_IMMUTABLE_FL
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|immutable)
	}
	if err != nil {
		t.Skip("needs a file system with the immutable flag: ", err)
	}
	thaw := func() { unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags) }
	t.Cleanup(func() { thaw(); f.Close() })
	return thaw
}
