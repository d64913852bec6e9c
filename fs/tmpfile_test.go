package fs

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// tmpfile opens a file without a name in the mount's root.
func tmpfile(t *testing.T, m *testStore, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(m.mnt, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|flags, 0o666)
	if errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("O_TMPFILE needs kernel 6.1, and a file system below that knows it")
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), m.path("tmpfile"))
	t.Cleanup(func() { f.Close() })
	return f
}

// linkTo gives the open file a name, as open(2) describes for O_TMPFILE.
func linkTo(f *os.File, name string) error {
	return unix.Linkat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
}

// TestI1_NamelessFileBecomesADisk: from the answer to the link on, writes through the descriptor are tracked.
func TestI1_NamelessFileBecomesADisk(t *testing.T) {
	m := newTestStore(t)
	old := unix.Umask(0o027)
	f := tmpfile(t, m, 0)
	unix.Umask(old)
	if _, err := f.WriteAt([]byte("before"), 0); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 || st.Size != 6 || st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("links %d, size %d, mode %o, %v", st.Nlink, st.Size, st.Mode, err)
	}
	if open := m.srv.OpenFiles(); !slices.Equal(open, []string{namelessName}) {
		t.Errorf("open: %q", open)
	}
	m.vols.wantEvents(t)
	if err := linkTo(f, m.path("disk.vhd")); err != nil {
		t.Fatal(err)
	}
	m.vols.wantEvents(t, "attach disk.vhd")
	if _, err := f.WriteAt([]byte("after"), 100); err != nil {
		t.Fatal(err)
	}
	m.vols.recorder(t, "disk.vhd").wantChanges(t, extent.Change{Kind: extent.Write, Off: 100, Len: 5})
	wantErrno(t, "a second name", linkTo(f, m.path("b.vhd")), unix.EPERM)
	wantErrno(t, "a second name that is no image's", linkTo(f, m.path("b")), unix.EPERM)
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 1 || st.Ino != inode(t, m.backing("disk.vhd")) {
		t.Errorf("links %d, inode %d, %v", st.Nlink, st.Ino, err)
	}
}

// TestNamelessFileStaysOne: under a name that is no image's, under none, and where links are forbidden.
func TestNamelessFileStaysOne(t *testing.T) {
	m := newTestStore(t)
	f := tmpfile(t, m, 0)
	if _, err := f.Write([]byte("text")); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(linkTo(f, m.path("note")), linkTo(f, m.path("note2"))); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "an image's name for a file that has one", linkTo(f, m.path("a.vhd")), unix.EPERM)
	if got, err := os.ReadFile(m.backing("note2")); err != nil || string(got) != "text" {
		t.Errorf("%q, %v", got, err)
	}
	wantErrno(t, "O_EXCL", linkTo(tmpfile(t, m, unix.O_EXCL), m.path("b.vhd")), unix.ENOENT)
	g := tmpfile(t, m, 0)
	g.Close()
	m.vols.wantEvents(t)
	if names, err := os.ReadDir(m.src); err != nil || len(names) != 2 {
		t.Errorf("%d names in the source, %v", len(names), err)
	}
}
