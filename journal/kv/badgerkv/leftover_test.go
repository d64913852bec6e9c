package badgerkv

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A kill in the middle of making or removing a log leaves a file that has its name and not yet, or no longer, its content.
// The store opens, and has what was acknowledged (seen once in TestKilledStoreHasWhatWasAcknowledged, on a busy machine).
func TestI4_LogsHalfMadeAndHalfRemoved(t *testing.T) {
	states := map[string][]byte{
		"empty": {}, "a byte": {0}, "part of a header": make([]byte, 12), "a header": make([]byte, 20), "grown": make([]byte, 2*memtable),
		"a header of random numbers": append(make([]byte, 8), bytes.Repeat([]byte{0xa5}, 12)...),
	}
	for name, content := range states {
		for _, file := range []string{"00000.mem", "00100.mem", "000000.vlog", "000100.vlog"} {
			t.Run(name+" "+file, func(t *testing.T) {
				dir := t.TempDir()
				acked := killChildAfter(t, dir, 12) // its log is to be replayed
				if _, err := os.Stat(filepath.Join(dir, file)); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("%s is there already: %v", file, err)
				}
				if err := os.WriteFile(filepath.Join(dir, file), content, 0o600); err != nil {
					t.Fatal(err)
				}
				for range 2 {
					s := open(t, dir)
					// The last one: ten later the child removes it itself, and the kill may come so late.
					if _, err := s.Get(fmt.Appendf(nil, "n/%08d", acked)); err != nil {
						t.Errorf("what was acknowledged is gone: %v", err)
					}
					if err := put(s, []byte("after"), []byte("it")); err != nil {
						t.Error(err)
					}
					if err := s.Close(); err != nil {
						t.Fatal(err)
					}
				}
			})
		}
	}
}

// All that a running store has is left alone, also a log that it has just made.
func TestEmptyLogsOfARunningStoreStay(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	made := filepath.Join(dir, "00100.mem")
	if err := os.WriteFile(made, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := removeEmptyLogs(dir); !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(made); err != nil {
		t.Error(err)
	}
	if err := os.Remove(made); err != nil {
		t.Fatal(err)
	}
}

func TestEmptyLogsThatCannotGo(t *testing.T) {
	if err := removeEmptyLogs(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "00001.mem"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Skip("needs root: ", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if err := removeEmptyLogs(dir); !errors.Is(err, syscall.EROFS) || !strings.Contains(err.Error(), "00001.mem") {
		t.Errorf("%v", err)
	}
}
