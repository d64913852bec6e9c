package watch

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watched is a source with a watcher at work on it.
type watched struct {
	t      *testing.T
	dir    string
	events chan Event
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	s := &watched{t: t, dir: t.TempDir(), events: make(chan Event, 1<<16)}
	if err := os.Mkdir(filepath.Join(s.dir, "web"), 0o755); err != nil {
		t.Fatal(err)
	}
	w, err := Open(s.dir)
	if err != nil {
		t.Skip("needs root and fanotify: ", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, func(e Event) { s.events <- e }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return s
}

// sh runs a command in the source, as somebody else.
func (s *watched) sh(command string) {
	s.t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = s.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// until collects events up to the one that is asked for.
func (s *watched) until(kind Kind, path string) []Event {
	s.t.Helper()
	var seen []Event
	late := time.After(10 * time.Second)
	for {
		select {
		case e := <-s.events:
			seen = append(seen, e)
			if e.Kind == kind && e.Path == path {
				return seen
			}
		case <-late:
			s.t.Fatalf("no event %d of %s, but %v", kind, path, seen)
		}
	}
}

func has(events []Event, kind Kind, path string) bool {
	return slices.ContainsFunc(events, func(e Event) bool { return e.Kind == kind && e.Path == path && e.PID != os.Getpid() })
}

// What others do is told with its name, in old and new directories; what this process
// does is not.
func TestOthersAreTold(t *testing.T) {
	s := newWatched(t)
	for i := range 50 {
		if err := os.WriteFile(filepath.Join(s.dir, "web", fmt.Sprintf("own%d.img", i)), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(s.dir, "made"), 0o755); err != nil {
		t.Fatal(err)
	}
	s.sh("echo x >web/a.img")
	seen := s.until(Written, "web/a.img")
	if !has(seen, Appeared, "web/a.img") || !has(seen, Opened, "web/a.img") {
		t.Errorf("%v", seen)
	}
	s.sh("cat web/own1.img >/dev/null; echo y >made/b.img; mv web/own2.img made/c.img; rm web/own3.img")
	seen = s.until(Vanished, "web/own3.img")
	for _, want := range []Event{{Kind: Opened, Path: "web/own1.img"}, {Kind: Written, Path: "made/b.img"}, {Kind: Vanished, Path: "web/own2.img"}, {Kind: Appeared, Path: "made/c.img"}} {
		if !has(seen, want.Kind, want.Path) {
			t.Errorf("no %v in %v", want, seen)
		}
	}
	for _, e := range seen {
		if e.PID == os.Getpid() || has([]Event{e}, Written, "web/own1.img") {
			t.Errorf("told %v", e)
		}
	}
}

// A directory that somebody else brings in is watched, and what is in it is told as
// written; a renamed one is told under its new name.
func TestNewAndRenamedDirectories(t *testing.T) {
	s := newWatched(t)
	s.sh("mkdir -p db/deep && echo x >db/deep/d.img")
	s.until(Written, "db/deep/d.img")
	if err := os.Rename(filepath.Join(s.dir, "db"), filepath.Join(s.dir, "shop")); err != nil {
		t.Fatal(err)
	}
	s.sh("echo y >>shop/deep/d.img")
	s.until(Written, "shop/deep/d.img")
}

// An overflow of the queue is told, and the watch goes on.
func TestOverflow(t *testing.T) {
	raw, err := os.ReadFile("/proc/sys/fs/fanotify/max_queued_events")
	if err != nil {
		t.Skip("no fanotify: ", err)
	}
	var limit int
	if _, err := fmt.Sscan(string(raw), &limit); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	w, err := Open(dir)
	if err != nil {
		t.Skip("needs root and fanotify: ", err)
	}
	for i := range limit + 100 { // nobody reads: each name is an event of its own
		name := filepath.Join(dir, fmt.Sprint(i))
		if fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDONLY, 0o600); err != nil {
			t.Fatal(err)
		} else {
			unix.Close(fd)
		}
	}
	events := make(chan Event, 1<<16)
	done := make(chan error, 1)
	go func() { done <- w.Run(t.Context(), func(e Event) { events <- e }) }()
	s := &watched{t: t, dir: dir, events: events}
	s.until(Lost, "")
	s.sh("echo x >after.img")
	s.until(Written, "after.img")
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// What this process does itself does not crowd the others' events out while nobody is told: the kernel's queue would hold
// 16,384.
func TestOwnEventsDoNotOverflow(t *testing.T) {
	dir := t.TempDir()
	w, err := Open(dir)
	if err != nil {
		t.Skip("needs root and fanotify: ", err)
	}
	events, busy := make(chan Event, 1<<16), make(chan struct{})
	done := make(chan error, 1)
	go func() { done <- w.Run(t.Context(), func(e Event) { <-busy; events <- e }) }()
	s := &watched{t: t, dir: dir, events: events}
	s.sh("echo x >first.img")
	for i := range 40_000 {
		name := filepath.Join(dir, fmt.Sprint("ours", i))
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_RDONLY, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		if i%100 == 0 {
			runtime.Gosched()
		}
	}
	s.sh("echo x >last.img")
	close(busy)
	for _, e := range s.until(Written, "last.img") {
		if e.Kind == Lost {
			t.Error("events were lost")
		}
	}
	w.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestTooManyWaiting(t *testing.T) {
	q := newQueue(7, 10)
	for i := range 25 {
		q.put(rawEvent{pid: 8, name: fmt.Sprint(i)})
		q.put(rawEvent{pid: 7, name: "ours"})
	}
	q.put(rawEvent{pid: 7, mask: unix.FAN_ONDIR, name: "dir"})
	if e, ok := q.next(); !ok || e.mask != unix.FAN_Q_OVERFLOW {
		t.Errorf("%+v, %v", e, ok)
	}
	n := 0
	for e := (rawEvent{}); e.name != "dir"; n++ {
		e, _ = q.next()
		if e.name == "ours" {
			t.Error("what we did to a file waits")
		}
	}
	if n > 10 {
		t.Errorf("%d waited", n)
	}
	q.put(rawEvent{pid: 8, name: "before the end"})
	q.end()
	if e, ok := q.next(); !ok || e.name != "before the end" {
		t.Errorf("%+v, %v", e, ok)
	}
	if _, ok := q.next(); ok {
		t.Error("something comes after the end")
	}
}

func TestWrites(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.img")
	read := func(flags int) bool {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return Writes(os.Getpid(), path)
	}
	if !read(os.O_RDWR|os.O_CREATE) || !read(os.O_WRONLY) || read(os.O_RDONLY) {
		t.Error("flags")
	}
	if Writes(os.Getpid(), path) || Writes(1<<30, path) {
		t.Error("nobody has it open")
	}
}

func TestOpenNeedsADirectory(t *testing.T) {
	if w, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		w.Close()
		t.Error("watches nothing")
	}
}

// golden is one event as kernel 6.18 wrote it, for a name in a directory of ext4.
func golden() []byte {
	p := []byte{
		64, 0, 0, 0, 3, 0, 24, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x39, 0x30, 0, 0, // metadata
		2, 0, 40, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 0, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, // header, fsid, handle
	}
	return append(p, append([]byte("a.img\x00"), make([]byte, 6)...)...)
}

func TestParse(t *testing.T) {
	two := append(golden(), golden()...)
	e, rest, err := parse(two)
	if err != nil || len(rest) != 64 || e.pid != 12345 || e.mask != unix.FAN_OPEN || e.name != "a.img" || e.dir != handleKey(1, []byte{9, 0, 0, 0, 7, 0, 0, 0}) {
		t.Errorf("%+v, %d left, %v", e, len(rest), err)
	}
	for i := range golden() {
		if _, _, err := parse(golden()[:i]); !errors.Is(err, errFormat) {
			t.Errorf("cut at %d: %v", i, err)
		}
	}
	for _, at := range []int{0, 4, 6, 26, 36} {
		p := golden()
		p[at] = 0xff
		if _, _, err := parse(p); !errors.Is(err, errFormat) {
			t.Errorf("byte %d: %v", at, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(golden())
	f.Fuzz(func(t *testing.T, p []byte) {
		for rest := p; len(rest) > 0; {
			before := len(rest)
			var err error
			if _, rest, err = parse(rest); err != nil {
				return
			}
			if len(rest) >= before {
				t.Fatal("no progress")
			}
		}
	})
}

func TestWritable(t *testing.T) {
	for text, want := range map[string]bool{"pos:\t0\nflags:\t0100002\nmnt_id:\t3\n": true, "flags:\t0100001\n": true, "flags:\t0100000\n": false, "flags: x\n": false, "": false} {
		if got := writable(text); got != want {
			t.Errorf("%s: %v", strings.TrimSpace(text), got)
		}
	}
}
