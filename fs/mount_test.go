package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted store of a test.
type testStore struct {
	src, mnt string
	vols     *recordingVolumes
	srv      *Server
}

func (m *testStore) path(name string) string    { return filepath.Join(m.mnt, name) }
func (m *testStore) backing(name string) string { return filepath.Join(m.src, name) }

// needFUSE skips where a mount is impossible, and says why.
func needFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("no FUSE here: %v", err)
	}
	f.Close()
}

// newStoreAt mounts src. At the end it unmounts, and checks that no mount and no descriptor is left.
func newStoreAt(t testing.TB, src string) *testStore {
	t.Helper()
	needFUSE(t)
	m := &testStore{src: src, mnt: t.TempDir(), vols: newRecordingVolumes(t, src)}
	srv, err := Mount(Options{Source: m.src, Mount: m.mnt, Volumes: m.vols, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), AllowOther: true})
	if err != nil {
		t.Fatal(err)
	}
	m.srv = srv
	t.Cleanup(func() { m.close(t) })
	return m
}

func newTestStore(t testing.TB) *testStore {
	t.Helper()
	return newStoreAt(t, t.TempDir())
}

func (m *testStore) close(t testing.TB) {
	if err := m.srv.Unmount(); err != nil {
		t.Errorf("unmount: %v; open: %q; descriptors: %q", err, m.srv.OpenFiles(), descriptorsBelow(m.mnt))
		m.srv.Detach()
	}
	m.vols.check(t)
	if at, err := mountsAt(m.mnt); err != nil || len(at) > 0 {
		t.Errorf("left mounts %v, %v", at, err)
	}
	if fds := descriptorsBelow(m.src); len(fds) > 0 {
		t.Errorf("left descriptors: %q", fds)
	}
	if err := ReleaseMountPoint(m.mnt); err != nil {
		t.Error(err)
	}
}

// descriptorsBelow lists open descriptors of this process below dir, the recording trackers' excepted (they are closed
// by then).
func descriptorsBelow(dir string) []string {
	var found []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasPrefix(to, dir) {
			found = append(found, to)
		}
	}
	return found
}

func mustWrite(t testing.TB, name string, data []byte) {
	t.Helper()
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func wantErrno(t testing.TB, what string, err error, want unix.Errno) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func needTools(t testing.TB, tools ...string) {
	t.Helper()
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%v", err)
		}
	}
}

func TestMountIsNamedAndTyped(t *testing.T) {
	m := newTestStore(t)
	at, err := mountsAt(m.mnt)
	if err != nil || len(at) != 1 || at[0].fsType != "fuse.vhdrelay" {
		t.Errorf("mounted: %v, %v", at, err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || !strings.Contains(string(info), " vhdrelay:"+filepath.Base(m.mnt)+" ") {
		t.Errorf("the source in mountinfo is not vhdrelay:%s", filepath.Base(m.mnt))
	}
}

func TestMountRefusesNesting(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	inner := filepath.Join(dir, "inner")
	link := filepath.Join(t.TempDir(), "link")
	if err := errors.Join(os.Mkdir(inner, 0o755), os.Symlink(inner, link)); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][2]string{{dir, dir}, {dir, inner}, {inner, dir}, {dir, link}, {link, inner}} {
		if _, err := Mount(Options{Source: c[0], Mount: c[1]}); !errors.Is(err, ErrNested) {
			t.Errorf("source %s, mount %s: %v", c[0], c[1], err)
		}
	}
}

func TestMountPointMustBeEmptyAndFree(t *testing.T) {
	m := newTestStore(t)
	if _, err := Mount(Options{Source: t.TempDir(), Mount: m.mnt}); !errors.Is(err, ErrMounted) {
		t.Errorf("on a living mount: %v", err)
	}
	full := t.TempDir()
	mustWrite(t, filepath.Join(full, "x"), nil)
	if _, err := Mount(Options{Source: t.TempDir(), Mount: full}); !errors.Is(err, ErrNotEmpty) {
		t.Errorf("on a full directory: %v", err)
	}
	if _, err := Mount(Options{Source: t.TempDir(), Mount: filepath.Join(full, "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("on nothing: %v", err)
	}
}

func TestUnmountedMountPointIsClosed(t *testing.T) {
	m := newTestStore(t)
	if err := m.srv.Unmount(); err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(m.mnt)
	if err != nil || st.Mode().Perm() != 0 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	probe := t.TempDir()
	setImmutable(t, probe, fsImmutable) // skips where no directory can be immutable
	setImmutable(t, probe, 0)
	wantErrno(t, "create below", os.WriteFile(filepath.Join(m.mnt, "disk.vhd"), nil, 0o644), unix.EPERM)
	again, err := Mount(Options{Source: m.src, Mount: m.mnt})
	if err != nil {
		t.Fatalf("mounting again over the closed directory: %v", err)
	}
	if err := again.Unmount(); err != nil {
		t.Error(err)
	}
	if err := ReleaseMountPoint(m.mnt); err != nil {
		t.Error(err)
	}
	if st, err = os.Stat(m.mnt); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("released: mode %v, %v", st.Mode(), err)
	}
	if err := ReleaseMountPoint(m.mnt); err != nil {
		t.Errorf("released twice: %v", err)
	}
}

func TestUnmountRefusesWhileOpen(t *testing.T) {
	m := newTestStore(t)
	f, err := os.Create(m.path("disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.srv.Unmount(); !errors.Is(err, ErrBusy) {
		t.Errorf("unmount: %v", err)
	}
	if open := m.srv.OpenFiles(); !slices.Equal(open, []string{"disk.img"}) {
		t.Errorf("open: %q", open)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Errorf("write after a refused unmount: %v", err)
	}
	f.Close()
}

// TestDeadMountIsDetached: a child mounts and is killed, then the same place is mounted again.
func TestDeadMountIsDetached(t *testing.T) {
	needFUSE(t)
	src, mnt := t.TempDir(), t.TempDir()
	child, out := startChild(t, "mount", src, mnt)
	if line := out(); line != "mounted" {
		t.Fatalf("child: %q", line)
	}
	child.Process.Kill()
	child.Wait()
	var st unix.Statfs_t
	if err := unix.Statfs(mnt, &st); err != unix.ENOTCONN {
		t.Fatalf("no dead mount: %v", err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(mnt, link); err != nil {
		t.Fatal(err)
	}
	srv, err := Mount(Options{Source: src, Mount: link})
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Unmount(); err != nil {
		t.Error(err)
	}
	if at, err := mountsAt(mnt); err != nil || len(at) > 0 {
		t.Errorf("left mounts %v, %v", at, err)
	}
	if err := ReleaseMountPoint(mnt); err != nil {
		t.Error(err)
	}
}

func TestParseMounts(t *testing.T) {
	const table = `36 35 98:0 / /mnt/a\040b rw shared:1 - fuse.vhdrelay vhdrelay:x rw
37 35 98:0 / /mnt/other rw - ext4 /dev/x rw
garbage
38 35 0:5 / /mnt/a\040b rw master:1 propagate_from:2 - tmpfs none rw
39 35 0:5 / /mnt/back\134slash rw - tmpfs none rw
`
	at, err := parseMounts(strings.NewReader(table), func(at string) bool { return at == "/mnt/a b" })
	if want := []mounted{{"/mnt/a b", "fuse.vhdrelay", "98:0"}, {"/mnt/a b", "tmpfs", "0:5"}}; err != nil || !slices.Equal(at, want) {
		t.Errorf("%v, %v", at, err)
	}
	if at, _ := parseMounts(strings.NewReader(table), func(at string) bool { return at == `/mnt/back\slash` }); len(at) != 1 {
		t.Errorf("%v", at)
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		p, dir string
		want   bool
	}{{"/a", "/a", true}, {"/a/b", "/a", true}, {"/ab", "/a", false}, {"/a", "/a/b", false}, {"/a/..b", "/a", true}} {
		if got := within(c.p, c.dir); got != c.want {
			t.Errorf("within(%q, %q) = %v", c.p, c.dir, got)
		}
	}
}

var errHook = fmt.Errorf("no place takes the mark")

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }
