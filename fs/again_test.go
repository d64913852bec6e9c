package fs

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// mortalStore is a store without a mount, whose process ends within a request.
type mortalStore struct {
	*store
	t   *testing.T
	dir string
}

func newMortalStore(t *testing.T, names ...string) *mortalStore {
	m := &mortalStore{t: t, dir: t.TempDir()}
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(m.dir, name), []byte("old"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var err error
	if m.store, err = newStore(m.dir, nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if m.ledger, err = newLedger(); err != nil {
		t.Fatal(err)
	}
	m.kept = true
	t.Cleanup(m.OnUnmount)
	return m
}

// dies runs a request whose process ends at a point, and lets the next one find its note.
func (m *mortalStore) dies(point string, request func()) {
	m.t.Helper()
	died := true
	m.hook = func(at string, _ uint64) {
		if at == point {
			runtime.Goexit()
		}
	}
	done := make(chan struct{})
	go func() { defer close(done); request(); died = false }()
	<-done
	m.hook = nil
	if !died {
		m.t.Fatalf("the process does not end %s", point)
	}
	m.ledger.past = m.ledger.notes()
}

func (m *mortalStore) ok(code fuse.Status) {
	m.t.Helper()
	if !code.Ok() {
		m.t.Fatal(code)
	}
}

func (m *mortalStore) write(name, text string) {
	m.t.Helper()
	if err := os.WriteFile(filepath.Join(m.dir, name), []byte(text), 0o600); err != nil {
		m.t.Fatal(err)
	}
}

// is wants a file's content, and what is counted of its inode.
func (m *mortalStore) is(name, text string, lookups uint64, opens int) {
	m.t.Helper()
	if got, err := os.ReadFile(filepath.Join(m.dir, name)); err != nil || string(got) != text {
		m.t.Errorf("%s has %q, want %q: %v", name, got, text, err)
	}
	n := m.tree.get(m.inoAt(m.root, name))
	if n == nil {
		m.t.Fatalf("%s is not known", name)
	}
	if n.lookups != lookups || n.open.count != opens {
		m.t.Errorf("%s: %d lookups and %d opens, want %d and %d", name, n.lookups, n.open.count, lookups, opens)
	}
}

func header(node, unique uint64) fuse.InHeader { return fuse.InHeader{NodeId: node, Unique: unique} }

// What others wrote after a file was truncated stays, when the truncating open comes again.
func TestOpenTruncatesOnce(t *testing.T) {
	for _, point := range []string{PointDone, PointNoted} {
		m := newMortalStore(t, "a.raw")
		n, err := m.find(m.root, "a.raw", &fuse.EntryOut{})
		if err != nil {
			t.Fatal(err)
		}
		open := func(unique uint64) fuse.Status {
			return m.Open(nil, &fuse.OpenIn{InHeader: header(n.ino, unique), Flags: unix.O_RDWR | unix.O_TRUNC}, &fuse.OpenOut{})
		}
		m.dies(point, func() { open(2) })
		m.write("a.raw", "new")
		m.ok(open(2 | resent))
		m.is("a.raw", "new", 1, 1)
	}
}

// The same for a create of a file that is there, and of one that is not; it is counted once.
func TestCreateTruncatesOnce(t *testing.T) {
	for _, point := range []string{PointDone, PointNoted} {
		for _, name := range []string{"there.raw", "fresh.raw"} {
			m := newMortalStore(t, "there.raw")
			create := func(unique uint64) fuse.Status {
				return m.Create(nil, &fuse.CreateIn{InHeader: header(fuse.FUSE_ROOT_ID, unique), Flags: unix.O_RDWR | unix.O_CREAT | unix.O_TRUNC, Mode: 0o600}, name, &fuse.CreateOut{})
			}
			m.dies(point, func() { create(2) })
			m.write(name, "new")
			m.ok(create(2 | resent))
			m.is(name, "new", 1, 1)
		}
	}
}

// A lookup that comes again when its name means another file gives back what was counted of the one, and counts the other.
func TestLookupAgainAfterARename(t *testing.T) {
	m := newMortalStore(t, "a.raw", "b.raw")
	was := m.inoAt(m.root, "a.raw")
	lookup := func(unique uint64) fuse.Status {
		in := header(fuse.FUSE_ROOT_ID, unique)
		return m.Lookup(nil, &in, "a.raw", &fuse.EntryOut{})
	}
	m.dies(PointNoted, func() { lookup(2) })
	if err := os.Rename(filepath.Join(m.dir, "b.raw"), filepath.Join(m.dir, "a.raw")); err != nil {
		t.Fatal(err)
	}
	m.ok(lookup(2 | resent))
	m.is("a.raw", "old", 1, 0)
	if m.tree.get(was) != nil {
		t.Error("a file that the kernel was never told of is known")
	}
}

// A directory that was made is counted once.
func TestMkdirAgain(t *testing.T) {
	for _, point := range []string{PointDone, PointNoted} {
		m := newMortalStore(t)
		mkdir := func(unique uint64) fuse.Status {
			return m.Mkdir(nil, &fuse.MkdirIn{InHeader: header(fuse.FUSE_ROOT_ID, unique), Mode: 0o700}, "d", &fuse.EntryOut{})
		}
		m.dies(point, func() { mkdir(2) })
		m.ok(mkdir(2 | resent))
		if n := m.tree.get(m.inoAt(m.root, "d")); n == nil || n.lookups != 1 {
			t.Errorf("%s: %+v", point, n)
		}
	}
}
