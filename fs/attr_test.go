package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// attributes is what a change of attributes shows; times only where they are set to a value.
func attributes(t *testing.T, name string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		t.Fatal(err)
	}
	set := func(ts unix.Timespec) string {
		if ts.Sec > 1_000_000 {
			return "now"
		}
		return fmt.Sprintf("%d.%d", ts.Sec, ts.Nsec)
	}
	return fmt.Sprintf("mode %o owner %d:%d size %d times %s %s", st.Mode, st.Uid, st.Gid, st.Size, set(st.Atim), set(st.Mtim))
}

// attributeSteps are done in turn on a file, a link to it and a directory.
var attributeSteps = []struct {
	name string
	do   func(file, link, dir string) error
}{
	{"set-user-id", func(file, _, _ string) error { return unix.Chmod(file, 0o6755) }},
	{"chown takes it away", func(file, _, _ string) error { return unix.Chown(file, 7, 8) }},
	{"group only", func(file, _, _ string) error { return unix.Chown(file, -1, 9) }},
	{"nobody", func(file, _, _ string) error { return unix.Chown(file, -1, -1) }},
	{"truncate keeps the mode", func(file, _, _ string) error { return errors.Join(unix.Chmod(file, 0o640), os.Truncate(file, 3)) }},
	{"mode through a link", func(_, link, _ string) error { return unix.Fchmodat(unix.AT_FDCWD, link, 0o600, 0) }},
	{"sticky directory", func(_, _, dir string) error { return unix.Chmod(dir, 0o1777) }},
	{"owner of a link", func(_, link, _ string) error { return unix.Lchown(link, 5, 6) }},
	{"both times", func(file, _, _ string) error { return utimens(file, 0, at(42, 7), at(43, 8)) }},
	{"atime omitted", func(file, _, _ string) error { return utimens(file, 0, at(0, unix.UTIME_OMIT), at(44, 1)) }},
	{"mtime omitted", func(file, _, _ string) error { return utimens(file, 0, at(45, 2), at(0, unix.UTIME_OMIT)) }},
	{"atime now", func(file, _, _ string) error { return utimens(file, 0, at(0, unix.UTIME_NOW), at(46, 3)) }},
	{"both now", func(file, _, _ string) error { return utimens(file, 0, at(0, unix.UTIME_NOW), at(0, unix.UTIME_NOW)) }},
	{"before 1970", func(file, _, _ string) error { return utimens(file, 0, at(-5, 4), at(-6, 5)) }},
	{"times of a link", func(_, link, _ string) error { return utimens(link, unix.AT_SYMLINK_NOFOLLOW, at(47, 4), at(48, 5)) }},
	{"times of a directory", func(_, _, dir string) error { return utimens(dir, 0, at(49, 6), at(50, 7)) }},
}

func at(sec int64, nsec int64) unix.Timespec { return unix.Timespec{Sec: sec, Nsec: nsec} }

func utimens(name string, flags int, atime, mtime unix.Timespec) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, name, []unix.Timespec{atime, mtime}, flags)
}

// TestAttributesAreThoseOfThePlainFileSystem: after each step the mount, the source and a plain directory show the same.
func TestAttributesAreThoseOfThePlainFileSystem(t *testing.T) {
	m := newTestStore(t)
	plain := t.TempDir()
	for _, dir := range []string{m.mnt, plain} {
		mustWrite(t, filepath.Join(dir, "disk.vhd"), []byte("12345"))
		if err := errors.Join(os.Symlink("disk.vhd", filepath.Join(dir, "link")), os.Mkdir(filepath.Join(dir, "dir"), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range attributeSteps {
		var errs [2]error
		for i, dir := range []string{m.mnt, plain} {
			errs[i] = s.do(filepath.Join(dir, "disk.vhd"), filepath.Join(dir, "link"), filepath.Join(dir, "dir"))
		}
		if errs[0] != nil || errs[1] != nil {
			t.Errorf("%s: %v, on a plain file system %v", s.name, errs[0], errs[1])
		}
		for _, name := range []string{"disk.vhd", "link", "dir"} {
			got, behind, want := attributes(t, m.path(name)), attributes(t, m.backing(name)), attributes(t, filepath.Join(plain, name))
			if name != "disk.vhd" && s.name != "times of a link" && s.name != "times of a directory" {
				continue // somebody may read a link or a directory meanwhile, which is a time of access
			}
			if got != want || behind != want {
				t.Errorf("%s: %s has %s, behind the mount %s, on a plain file system %s", s.name, name, got, behind, want)
			}
		}
	}
}
