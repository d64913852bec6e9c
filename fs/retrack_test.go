package fs

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// A running guest loses its tracker and gets one again, of the chosen images only;
// what it does in between is not told to the old one.
func TestRetrackOfAnOpenImage(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("disk.vhd"), os.O_RDWR|os.O_CREATE)
	other := open(t, m.path("other.vhd"), os.O_RDWR|os.O_CREATE)
	mustWrite(t, m.path("notes.txt"), []byte("no image"))
	r, r2 := m.vols.recorder(t, "disk.vhd"), m.vols.recorder(t, "other.vhd")
	write := func(f *os.File) {
		t.Helper()
		if _, err := f.WriteAt([]byte("x"), 0); err != nil {
			t.Fatal(err)
		}
	}
	told := func(want, want2 int) {
		t.Helper()
		write(f)
		write(other)
		if got, got2 := len(r.takeChanges()), len(r2.takeChanges()); got != want || got2 != want2 {
			t.Errorf("told %d and %d changes, want %d and %d", got, got2, want, want2)
		}
	}
	set := func(untracked bool) {
		m.vols.mu.Lock()
		m.vols.mu.untracked["disk.vhd"] = untracked
		m.vols.mu.Unlock()
		r.noDisk()
		m.vols.take()
		m.srv.Retrack(func(path string) bool { return strings.HasPrefix(path, "disk") })
		m.vols.wantEvents(t, "attach disk.vhd")
	}
	told(1, 1)
	set(true)
	told(0, 1)
	set(false)
	told(1, 1)
}

// While it changes, no write is lost between the two: each is told or comes before.
func TestRetrackWaitsForChangesUnderWay(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("disk.vhd"), os.O_RDWR|os.O_CREATE)
	stop, done := make(chan struct{}), sync.WaitGroup{}
	for i := range 4 {
		done.Go(func() {
			for n := byte(0); ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := f.WriteAt([]byte{n}, int64(i)*4096); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 200 {
		m.srv.Retrack(func(string) bool { return true })
	}
	close(stop)
	done.Wait() // the recorder finds a byte that changed outside of Begin and End
}

// Who asks for a tracker anew when the store is left to the next process does not wait until this one is gone.
func TestFrozenStoreAsksForNoTracker(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "disk.vhd"), []byte("image"))
	vols := newRecordingVolumes(t, dir)
	s, err := newStore(dir, vols, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.OnUnmount)
	n, err := s.find(s.root, "disk.vhd", &fuse.EntryOut{})
	if err != nil {
		t.Fatal(err)
	}
	vols.take()
	srv := &Server{store: s}
	srv.Freeze()
	done := make(chan bool)
	go func() {
		srv.Retrack(func(string) bool { return true })
		srv.Again(s.identity(n))
		done <- srv.Notice("disk.vhd", s.identity(n))
	}()
	select {
	case known := <-done:
		if !known {
			t.Error("a file that is open here is said not to be known")
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a process that goes when nobody waits any more")
	}
	vols.wantEvents(t)
}
