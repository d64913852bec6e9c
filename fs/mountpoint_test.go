package fs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// setImmutable sets or clears the flag as an operator would.
func setImmutable(t testing.TB, dir string, flags int) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags); err != nil {
		t.Skipf("no immutable files here: %v", err)
	}
}

// TestOperatorsFlagIsLeftAlone: a directory that somebody else made immutable is neither changed nor released.
func TestOperatorsFlagIsLeftAlone(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	setImmutable(t, dir, fsImmutable)
	t.Cleanup(func() { setImmutable(t, dir, 0) })
	if err := guard(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if err := ReleaseMountPoint(dir); err != nil {
		t.Error(err)
	}
	wantErrno(t, "still immutable", os.Mkdir(filepath.Join(dir, "x"), 0o755), unix.EPERM)
}

func TestGuardRemembersTheFirstMode(t *testing.T) {
	needFUSE(t)
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o751); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := guard(dir); err != nil {
			t.Fatal(err)
		}
		setImmutable(t, dir, 0) // as if the flag could not be set
	}
	if err := ReleaseMountPoint(dir); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o751 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
}

func TestReleaseRefusesAMarkItCannotRead(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Setxattr(dir, guardXattr, []byte("rwx"), 0); err != nil {
		t.Skipf("no user xattrs here: %v", err)
	}
	if err := ReleaseMountPoint(dir); !errors.Is(err, strconv.ErrSyntax) {
		t.Errorf("%v", err)
	}
	if err := ReleaseMountPoint(filepath.Join(dir, "absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestResolveDeadFollowsLinksOnly(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{"a": "b", "b": filepath.Join(dir, "end"), "loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := resolveDead(filepath.Join(dir, "a")); err != nil || got != filepath.Join(dir, "end") {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := resolveDead(filepath.Join(dir, "loop")); !errors.Is(err, unix.ELOOP) {
		t.Errorf("%v", err)
	}
	if _, err := resolveDead(filepath.Join(dir, "no/where")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestUnescape(t *testing.T) {
	for in, want := range map[string]string{`/a\040b`: "/a b", `/a\134040`: `/a\040`, `/plain`: "/plain", `/end\04`: `/end\04`, `/x\999`: `/x\999`} {
		if got := unescape(in); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
}
