package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

func open(t testing.TB, name string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(name, flags, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// zeroRange says whether the tests' file system has fallocate's ZERO_RANGE; tmpfs has not.
func zeroRange(t testing.TB) bool {
	t.Helper()
	f := open(t, filepath.Join(t.TempDir(), "probe"), os.O_RDWR|os.O_CREATE)
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 0, 4096)
	if err != nil && err != unix.EOPNOTSUPP {
		t.Fatal(err)
	}
	return err == nil
}

func needZeroRange(t testing.TB) {
	t.Helper()
	if !zeroRange(t) {
		t.Skip("the file system below the temporary directory has no ZERO_RANGE")
	}
}

// TestRefusedZeroRangeChangesNothing: on a file system that has no such mode the file does not grow either.
func TestRefusedZeroRangeChangesNothing(t *testing.T) {
	needFUSE(t)
	src := t.TempDir()
	if err := unix.Mount("none", src, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(src, 0) })
	m := newStoreAt(t, src)
	for _, name := range []string{"disk.raw", "note"} {
		f := open(t, m.path(name), os.O_RDWR|os.O_CREATE)
		if _, err := f.WriteAt([]byte("data"), 0); err != nil {
			t.Fatal(err)
		}
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_ZERO_RANGE, 2, 4096)
		if err == nil {
			t.Skip("tmpfs has ZERO_RANGE here")
		}
		wantErrno(t, name, err, unix.EOPNOTSUPP)
		if got, err := os.ReadFile(m.path(name)); err != nil || string(got) != "data" {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

// TestI1_EveryChangeLiesBetweenBeginAndEnd: the verbs that change bytes, each with the change it must announce.
func TestI1_EveryChangeLiesBetweenBeginAndEnd(t *testing.T) {
	needZeroRange(t)
	m := newTestStore(t)
	f := open(t, m.path("disk.vhd"), os.O_RDWR|os.O_CREATE)
	r := m.vols.recorder(t, "disk.vhd")
	fd := int(f.Fd())
	steps := []struct {
		name string
		do   func() error
		want []extent.Change
	}{
		{"write", func() error { _, err := f.WriteAt(make([]byte, 5000), 10); return err }, []extent.Change{{Kind: extent.Write, Off: 10, Len: 5000}}},
		{"truncate", func() error { return f.Truncate(9000) }, []extent.Change{{Kind: extent.Truncate, Off: 9000}}},
		{"truncate by path", func() error { return os.Truncate(f.Name(), 100000) }, []extent.Change{{Kind: extent.Truncate, Off: 100000}}},
		{"punch", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4096, 4096)
		}, []extent.Change{{Kind: extent.Discard, Off: 4096, Len: 4096}}},
		{"punch to infinity", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 99000, 1<<40)
		}, []extent.Change{{Kind: extent.Discard, Off: 99000, Len: 1000}}},
		{"punch behind the end", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 200000, 4096)
		}, nil},
		{"zero", func() error {
			return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, 0, 100)
		}, []extent.Change{{Kind: extent.Zero, Off: 0, Len: 100}}},
		{"zero over the end", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_ZERO_RANGE, 99000, 2000) },
			[]extent.Change{{Kind: extent.Zero, Off: 99000, Len: 1000}, {Kind: extent.Truncate, Off: 101000}}},
		{"allocate inside", func() error { return unix.Fallocate(fd, 0, 0, 50000) }, nil},
		{"allocate behind, size kept", func() error { return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 101000, 5000) }, nil},
		{"allocate over the end", func() error { return unix.Fallocate(fd, 0, 100000, 20000) }, []extent.Change{{Kind: extent.Truncate, Off: 120000}}},
		{"open O_TRUNC", func() error {
			g, err := os.OpenFile(f.Name(), os.O_RDWR|os.O_TRUNC, 0)
			return errors.Join(err, g.Close())
		}, []extent.Change{{Kind: extent.Truncate, Off: 0}}},
		{"read", func() error { _, err := f.ReadAt(make([]byte, 0), 0); return err }, nil},
		{"chmod", func() error { return f.Chmod(0o600) }, nil},
	}
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Errorf("%s: %v", s.name, err)
		}
		if got := r.takeChanges(); !slices.Equal(got, s.want) {
			t.Errorf("%s: announced %+v, want %+v", s.name, got, s.want)
		}
	}
}

func inode(t testing.TB, name string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestI9_WhatCannotBeTrackedFails: a refused Begin is EIO for the guest, and no byte has changed.
func TestI9_WhatCannotBeTrackedFails(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("disk.img"), os.O_RDWR|os.O_CREATE)
	before := bytes.Repeat([]byte("x"), 8192)
	if _, err := f.WriteAt(before, 0); err != nil {
		t.Fatal(err)
	}
	r := m.vols.recorder(t, "disk.img")
	r.setRefuse(errHook)
	_, err := f.WriteAt([]byte("y"), 0)
	wantErrno(t, "write", err, unix.EIO)
	wantErrno(t, "truncate", f.Truncate(1), unix.EIO)
	wantErrno(t, "truncate by path", os.Truncate(f.Name(), 1), unix.EIO)
	wantErrno(t, "punch", unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 4096), unix.EIO)
	_, err = os.OpenFile(f.Name(), os.O_RDWR|os.O_TRUNC, 0)
	wantErrno(t, "open O_TRUNC", err, unix.EIO)
	if after, err := os.ReadFile(m.backing("disk.img")); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file has changed: %d bytes, %v", len(after), err)
	}
	r.setRefuse(fmt.Errorf("too large: %w", unix.EFBIG))
	_, err = f.WriteAt([]byte("y"), 0)
	wantErrno(t, "write beyond the largest disk", err, unix.EFBIG)
	wantErrno(t, "truncate beyond the largest disk", f.Truncate(1<<40), unix.EFBIG)
	r.setRefuse(nil)
	if _, err := f.WriteAt([]byte("y"), 0); err != nil {
		t.Errorf("write after the tracker is well again: %v", err)
	}
}

func TestFirstSightAttaches(t *testing.T) {
	src := t.TempDir()
	if err := os.Mkdir(filepath.Join(src, "vm"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.vhd", "vm/b.VHDX", "note.txt"} {
		mustWrite(t, filepath.Join(src, name), []byte("data"))
	}
	m := newStoreAt(t, src)
	for _, name := range []string{"a.vhd", "a.vhd", "vm/b.VHDX", "note.txt"} {
		if _, err := os.Stat(m.path(name)); err != nil {
			t.Error(err)
		}
	}
	m.vols.wantEvents(t, "attach a.vhd", "attach vm/b.VHDX")
	open(t, m.path("vm/new.img"), os.O_CREATE|os.O_RDWR).Close()
	m.vols.wantEvents(t, "attach vm/new.img")
	if err := unix.Mknod(m.path("node.raw"), unix.S_IFREG|0o600, 0); err != nil {
		t.Error(err)
	}
	m.vols.wantEvents(t, "attach node.raw")
}

func TestListingAttachesWhatItLooksUp(t *testing.T) {
	src := t.TempDir()
	mustWrite(t, filepath.Join(src, "a.vhd"), []byte("data"))
	m := newStoreAt(t, src)
	entries, err := os.ReadDir(m.mnt)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%v, %v", entries, err)
	}
	if _, err := entries[0].Info(); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach a.vhd")
}

// TestUntrackedIsServed: a nil Tracker means no tracking, not no service.
func TestUntrackedIsServed(t *testing.T) {
	m := newTestStore(t)
	m.vols.mu.Lock()
	m.vols.mu.untracked["a.vhd"] = true
	m.vols.mu.Unlock()
	mustWrite(t, m.path("a.vhd"), []byte("data"))
	if got, err := os.ReadFile(m.backing("a.vhd")); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
	m.vols.wantEvents(t, "attach a.vhd")
}

// TestRenamedToAnImageIsTracked: from the answer to the rename on, writes through a descriptor that was opened before
// are tracked.
func TestRenamedToAnImageIsTracked(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("download.part"), os.O_RDWR|os.O_CREATE)
	if _, err := f.WriteAt([]byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path("download.part"), m.path("disk.vhd")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach disk.vhd")
	if _, err := f.WriteAt([]byte("after"), 100); err != nil {
		t.Fatal(err)
	}
	m.vols.recorder(t, "disk.vhd").wantChanges(t, extent.Change{Kind: extent.Write, Off: 100, Len: 5})
}

// TestOpenDiskKeepsItsTracker: under another name, and without one, until the last close.
func TestOpenDiskKeepsItsTracker(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	r := m.vols.recorder(t, "a.vhd")
	m.vols.take()
	write := func(what string) {
		t.Helper()
		if _, err := f.WriteAt([]byte(what), 0); err != nil {
			t.Error(err)
		}
		r.wantChanges(t, extent.Change{Kind: extent.Write, Off: 0, Len: int64(len(what))})
	}
	if err := os.Rename(m.path("a.vhd"), m.path("b.old")); err != nil {
		t.Fatal(err)
	}
	write("under a name that is no image's")
	if err := os.Rename(m.path("b.old"), m.path("c.vhd")); err != nil {
		t.Fatal(err)
	}
	write("under another image's name")
	if err := os.Remove(m.path("c.vhd")); err != nil {
		t.Fatal(err)
	}
	write("under no name")
	m.vols.wantEvents(t, "renamed a.vhd b.old", "renamed b.old c.vhd", "removed c.vhd")
}

// TestLastCloseAttachesUnderTheNewName: the disk that was renamed while open gets its new path's tracker then.
func TestLastCloseAttachesUnderTheNewName(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	if err := os.Rename(m.path("a.vhd"), m.path("b.vhd")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach a.vhd", "renamed a.vhd b.vhd")
	f.Close()
	n := m.srv.store.tree.get(inode(t, m.backing("b.vhd")))
	waitReleased(n)
	m.vols.wantEvents(t, "attach b.vhd")
}

// TestNoImageIsClosed: a disk whose new name is no image's is a disk until its last close, which is told; at once if
// nobody has it open.
func TestNoImageIsClosed(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	if err := os.Rename(m.path("a.vhd"), m.path("a.bak")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach a.vhd", "renamed a.vhd a.bak")
	if _, err := f.WriteAt([]byte("still a disk"), 0); err != nil {
		t.Error(err)
	}
	m.vols.recorder(t, "a.vhd").wantChanges(t, extent.Change{Kind: extent.Write, Off: 0, Len: 12})
	f.Close()
	waitReleased(m.srv.store.tree.get(inode(t, m.backing("a.bak"))))
	m.vols.wantEvents(t, "closed a.bak")

	if err := os.Rename(m.path("a.bak"), m.path("b.vhd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path("b.vhd"), m.path("b.bak")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach b.vhd", "renamed b.vhd b.bak", "closed b.bak")
}

// waitReleased returns when the kernel's RELEASE, which nobody waits for, has been worked off.
func waitReleased(n *node) {
	for done := false; !done; {
		n.open.Lock()
		done = n.open.count == 0
		n.open.Unlock()
		runtime.Gosched()
	}
}

func TestRenamesAreTold(t *testing.T) {
	m := newTestStore(t)
	for _, dir := range []string{"vm", "vm/sub", "other"} {
		if err := os.Mkdir(m.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mustWrite(t, m.path("vm/a.vhd"), []byte("a"))
	mustWrite(t, m.path("vm/sub/b.img"), []byte("b"))
	mustWrite(t, m.path("vm/note"), []byte("n"))
	mustWrite(t, m.path("other/c.vhd"), []byte("c"))
	mustWrite(t, m.backing("vm/unseen.raw"), []byte("u"))
	for _, name := range []string{"vm/a.vhd", "vm/sub/b.img", "vm/note", "other/c.vhd"} {
		waitReleased(m.srv.store.tree.get(inode(t, m.backing(name))))
	}
	m.vols.take()

	if err := os.Rename(m.path("vm"), m.path("web01")); err != nil {
		t.Fatal(err)
	}
	told := m.vols.take()
	slices.Sort(told)
	want := []string{"attach web01/a.vhd", "attach web01/sub/b.img", "renamed vm/a.vhd web01/a.vhd",
		"renamed vm/sub/b.img web01/sub/b.img", "renamed vm/unseen.raw web01/unseen.raw"}
	if !slices.Equal(told, want) {
		t.Errorf("directory: %q, want %q", told, want)
	}

	if err := os.Rename(m.path("web01/a.vhd"), m.path("other/c.vhd")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "removed other/c.vhd", "renamed web01/a.vhd other/c.vhd", "attach other/c.vhd")

	if err := unix.Renameat2(unix.AT_FDCWD, m.path("other/c.vhd"), unix.AT_FDCWD, m.path("web01/sub/b.img"), unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "renamed web01/sub/b.img other/c.vhd", "attach other/c.vhd",
		"renamed other/c.vhd web01/sub/b.img", "attach web01/sub/b.img")
	got, err := os.ReadFile(m.path("other/c.vhd"))
	if err != nil || string(got) != "b" {
		t.Errorf("after the exchange: %q, %v", got, err)
	}

	err = unix.Renameat2(unix.AT_FDCWD, m.path("other/c.vhd"), unix.AT_FDCWD, m.path("web01/sub/b.img"), unix.RENAME_NOREPLACE)
	wantErrno(t, "noreplace", err, unix.EEXIST)
	err = unix.Renameat2(unix.AT_FDCWD, m.path("other/c.vhd"), unix.AT_FDCWD, m.path("w"), unix.RENAME_WHITEOUT)
	wantErrno(t, "whiteout", err, unix.EINVAL)
	m.vols.wantEvents(t)

	if err := os.Remove(m.path("other/c.vhd")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "removed other/c.vhd")
}

func TestLinksOfDisksAreRefused(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), nil)
	mustWrite(t, m.path("note"), nil)
	wantErrno(t, "link of a disk", os.Link(m.path("a.vhd"), m.path("b")), unix.EPERM)
	wantErrno(t, "link to an image's name", os.Link(m.path("note"), m.path("b.vhd")), unix.EPERM)
	if err := os.Link(m.path("note"), m.path("note2")); err != nil {
		t.Error(err)
	}
}

// TestRenameMakesNoSecondDisk: what a link to an image's name would make, a rename of a link does not make either.
func TestRenameMakesNoSecondDisk(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("note"), []byte("n"))
	mustWrite(t, m.path("disk.vhd"), []byte("d"))
	if err := os.Link(m.path("note"), m.path("note2")); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "rename", os.Rename(m.path("note2"), m.path("b.vhd")), unix.EPERM)
	wantErrno(t, "rename over", os.Rename(m.path("note2"), m.path("disk.vhd")), unix.EPERM)
	for _, names := range [][2]string{{"note2", "disk.vhd"}, {"disk.vhd", "note2"}} {
		err := unix.Renameat2(unix.AT_FDCWD, m.path(names[0]), unix.AT_FDCWD, m.path(names[1]), unix.RENAME_EXCHANGE)
		wantErrno(t, "exchange", err, unix.EPERM)
	}
	m.vols.wantEvents(t, "attach disk.vhd")
	if err := os.Remove(m.path("note")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path("note2"), m.path("b.vhd")); err != nil {
		t.Errorf("with one name: %v", err)
	}
}

// TestI1_HardLinkInTheSourceKeepsTheTracker: somebody linked a disk behind the mount. When one of its names goes, or
// becomes no image's, the kernel still opens it by the other one without a new lookup, and writes to it are tracked.
func TestI1_HardLinkInTheSourceKeepsTheTracker(t *testing.T) {
	for what, lose := range map[string]func(m *testStore) error{
		"remove": func(m *testStore) error { return os.Remove(m.path("backup")) },
		"rename": func(m *testStore) error { return os.Rename(m.path("backup"), m.path("older")) },
	} {
		t.Run(what, func(t *testing.T) {
			src := t.TempDir()
			mustWrite(t, filepath.Join(src, "disk.vhd"), []byte("data"))
			if err := os.Link(filepath.Join(src, "disk.vhd"), filepath.Join(src, "backup")); err != nil {
				t.Fatal(err)
			}
			m := newStoreAt(t, src)
			if _, err := os.Stat(m.path("disk.vhd")); err != nil {
				t.Fatal(err)
			}
			r := m.vols.recorder(t, "disk.vhd")
			if err := lose(m); err != nil {
				t.Fatal(err)
			}
			f := open(t, m.path("disk.vhd"), os.O_RDWR)
			if _, err := f.WriteAt([]byte("DATA"), 0); err != nil {
				t.Fatal(err)
			}
			r.wantChanges(t, extent.Change{Kind: extent.Write, Len: 4})
		})
	}
}

// TestParallelWritersAreTracked: many ranges at once, each announced, the sum exact.
func TestParallelWritersAreTracked(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("disk.raw"), os.O_RDWR|os.O_CREATE)
	if err := f.Truncate(4 << 20); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 8 {
		writers.Go(func() {
			block := bytes.Repeat([]byte{byte(w + 1)}, 4096)
			for i := range 64 {
				if _, err := f.WriteAt(block, int64(i*8+w)*4096); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	if changes := m.vols.recorder(t, "disk.raw").takeChanges(); len(changes) != 1+8*64 {
		t.Errorf("%d changes", len(changes))
	}
}
