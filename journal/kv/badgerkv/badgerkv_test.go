package badgerkv

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/kvtest"
)

// childEnv makes the test binary a writer that acknowledges each commit on its
// standard output until it is killed.
const childEnv = "BADGERKV_CHILD_DIR"

// padding, bytes, makes each commit touch other pages of the log, and many of them a log of its own.
const padding = 64 << 10

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

func child(dir string) {
	s, err := Open(dir, nil)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for i := 0; ; i++ {
		var b kv.Batch
		b.Put([]byte("last"), []byte(strconv.Itoa(i)))
		b.Put([]byte("padding"), bytes.Repeat([]byte{1}, padding))
		b.Put(fmt.Appendf(nil, "n/%08d", i), nil)
		if i >= 10 {
			b.Delete(fmt.Appendf(nil, "n/%08d", i-10))
		}
		if err := s.Apply(&b); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i) // the ledger: acknowledged outside this process
	}
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	kvtest.Run(t, kvtest.Maker{
		Open: func(t *testing.T) kv.Store { return open(t, t.TempDir()) },
		Reopen: func(t *testing.T, s kv.Store) kv.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.(*Store).dir)
		},
	})
}

// A killed process leaves every acknowledged batch, and of the one in flight all or nothing.
func TestKilledStoreHasWhatWasAcknowledged(t *testing.T) {
	dir := t.TempDir()
	last := -1
	for round := range 5 {
		acked := killChildAfter(t, dir, 20+37*round)
		s := open(t, dir)
		v, err := s.Get([]byte("last"))
		if err != nil {
			t.Fatal(err)
		}
		found, _ := strconv.Atoi(string(v))
		if found != acked && found != acked+1 {
			t.Errorf("acknowledged %d, found %d", acked, found)
		}
		if _, err := s.Get(fmt.Appendf(nil, "n/%08d", found)); err != nil {
			t.Errorf("batch %d is half there: %v", found, err)
		}
		n := 0
		err = s.Scan([]byte("n/"), func(_, _ []byte) error { n++; return nil })
		if err != nil || last < 0 && n != min(10, found+1) {
			t.Errorf("%d numbered keys after %d, %v", n, found, err)
		}
		last = found
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// killChildAfter kills a writer after it has acknowledged number n and returns the last one it got to say.
func killChildAfter(t *testing.T, dir string, n int) int {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := -1
	for lines := bufio.NewScanner(out); lines.Scan(); {
		i, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatalf("child: %s", lines.Text())
		}
		if acked = i; i == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) {
		t.Fatalf("child ended by itself: %v", err)
	}
	return acked
}

// After a failed commit nothing is acknowledged before the database was opened anew.
func TestFailedCommitReopens(t *testing.T) {
	s := open(t, t.TempDir())
	defer s.Close()
	old := s.mu.db
	s.mu.broken = errors.New("a commit failed")
	var b kv.Batch
	b.Put([]byte("a"), []byte("1"))
	if err := s.Apply(&b); err != nil {
		t.Fatal(err)
	}
	if s.mu.db == old || s.mu.broken != nil {
		t.Error("the database was not opened anew")
	}
	if v, err := s.Get([]byte("a")); err != nil || string(v) != "1" {
		t.Errorf("%q, %v", v, err)
	}
}

func TestStoreThatCannotReopenSaysSo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	s := open(t, dir)
	if err := s.mu.db.Close(); err != nil {
		t.Fatal(err)
	}
	s.mu.db, s.mu.broken = nil, errors.New("a commit failed")
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var b kv.Batch
	b.Put([]byte("a"), nil)
	if err := s.Apply(&b); err == nil {
		t.Error("apply works")
	}
	if _, err := s.Get([]byte("a")); err == nil || errors.Is(err, kv.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestSecondOpenIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	defer s.Close()
	if _, err := Open(dir, nil); err == nil {
		t.Error("two stores in one directory")
	}
}

// The whole activity log of four disks, written and deleted over and over, stays small.
func TestI10_StateIsSmall(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	var before runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for round := range 6 {
		for part := range 8 {
			var b kv.Batch
			for i := range kv.MaxOps {
				key := fmt.Appendf(nil, "act/00000000-0000-0000-0000-%012d/%04d", part, i)
				if round%2 == 0 {
					b.Put(key, nil)
				} else {
					b.Delete(key)
				}
			}
			if err := s.Apply(&b); err != nil {
				t.Fatal(err)
			}
		}
	}
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	if heap := int64(after.HeapAlloc) - int64(before.HeapAlloc); heap > 64<<20 {
		t.Errorf("heap grew by %d MiB", heap>>20)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	var size int64
	err := filepath.WalkDir(dir, func(_ string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		st, err := e.Info()
		size += st.Size()
		return err
	})
	if err != nil || size > 64<<20 {
		t.Errorf("state directory has %d MiB, %v", size>>20, err)
	}
	t.Logf("heap %d MiB, on disk %d KiB", (int64(after.HeapAlloc)-int64(before.HeapAlloc))>>20, size>>10)
}

func TestBadgerLogsToSlog(t *testing.T) {
	var out strings.Builder
	l := logger{slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})), newSaid(time.Now)}
	l.Infof("info %d\n", 1)
	l.Debugf("debug")
	l.Warningf("warning")
	l.Errorf("error")
	for _, part := range []string{`level=DEBUG msg="badger: info 1"`, "level=WARN", "level=ERROR"} {
		if !strings.Contains(out.String(), part) {
			t.Errorf("no %s in %s", part, out.String())
		}
	}
}

// Badger ends the process (y.Check) when it cannot list its directory or open the file of its discard statistics. Here
// that is an error.
func TestI9_WhatBadgerWouldEndTheProcessOver(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, discardFile), 0o700); err != nil {
		t.Fatal(err)
	}
	if s, err := Open(dir, nil); err == nil || !strings.Contains(err.Error(), discardFile) {
		t.Errorf("%v, %v", s, err)
	}
	if err := os.Remove(filepath.Join(dir, discardFile)); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if err := put(s, []byte("k"), []byte("v")); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := rehearse(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
