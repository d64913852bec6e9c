package fs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"golang.org/x/sys/unix"
)

// notForUs are tests of go-fuse's suite that ask for more than a store promises.
var notForUs = map[string]string{
	"FcntlFlockLocksFile": "wants a process to be kept out by its own lock, and fails on ext4 as well; TestLocksBetweenProcesses is ours",
}

func TestPosix(t *testing.T) {
	for name, test := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why := notForUs[name]; why != "" {
				t.Skip(why)
			}
			m := newTestStore(t)
			test(t, m.mnt)
		})
	}
}

// TestXattrs: others pass with the exact errno, ours are hidden and refused.
func TestXattrs(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), nil)
	p := m.path("a.vhd")
	if err := unix.Setxattr(m.backing("a.vhd"), ownXattrs+"suspect", []byte("1"), 0); err != nil {
		t.Skipf("no user xattrs here: %v", err)
	}
	if err := unix.Setxattr(p, "user.mine", []byte("value"), unix.XATTR_CREATE); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 256)
	n, err := unix.Getxattr(p, "user.mine", buf)
	if err != nil || string(buf[:n]) != "value" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	if n, err = unix.Getxattr(p, "user.mine", nil); n != 5 || err != nil {
		t.Errorf("size %d, %v", n, err)
	}
	if n, err = unix.Listxattr(p, buf); err != nil || string(buf[:n]) != "user.mine\x00" {
		t.Errorf("list %q, %v", buf[:max(n, 0)], err)
	}
	if n, err = unix.Listxattr(p, nil); n != len("user.mine\x00") || err != nil {
		t.Errorf("size of the list %d, %v", n, err)
	}
	_, err = unix.Listxattr(p, buf[:3])
	wantErrno(t, "short list", err, unix.ERANGE)
	_, err = unix.Getxattr(p, "user.mine", buf[:3])
	wantErrno(t, "short value", err, unix.ERANGE)
	_, err = unix.Getxattr(p, "user.absent", buf)
	wantErrno(t, "absent", err, unix.ENODATA)
	wantErrno(t, "create twice", unix.Setxattr(p, "user.mine", nil, unix.XATTR_CREATE), unix.EEXIST)
	_, err = unix.Getxattr(p, ownXattrs+"suspect", buf)
	wantErrno(t, "ours", err, unix.ENODATA)
	wantErrno(t, "set ours", unix.Setxattr(p, ownXattrs+"suspect", []byte("0"), 0), unix.EPERM)
	wantErrno(t, "remove ours", unix.Removexattr(p, ownXattrs+"suspect"), unix.EPERM)
	if err := unix.Removexattr(p, "user.mine"); err != nil {
		t.Error(err)
	}
	if n, err = unix.Getxattr(m.backing("a.vhd"), ownXattrs+"suspect", buf); err != nil || string(buf[:n]) != "1" {
		t.Errorf("the mark on the backing file: %q, %v", buf[:max(n, 0)], err)
	}
}

// TestHostileNames: a name is bytes.
func TestHostileNames(t *testing.T) {
	m := newTestStore(t)
	names := []string{"\xff\xfe.vhd", "new\nline.img", "-rf .raw", strings.Repeat("x", 251) + ".vhd", "...", "a;$(reboot).vhd", "%2e%2e.vhd"}
	for _, name := range names {
		mustWrite(t, m.path(name), []byte(name))
		if got, err := os.ReadFile(m.backing(name)); err != nil || string(got) != name {
			t.Errorf("%q: %q, %v", name, got, err)
		}
	}
	entries, err := os.ReadDir(m.mnt)
	if err != nil || len(entries) != len(names) {
		t.Errorf("%d entries, %v", len(entries), err)
	}
	wantErrno(t, "256 bytes", os.WriteFile(m.path(strings.Repeat("y", 256)), nil, 0o644), unix.ENAMETOOLONG)
	s := m.srv.store
	for _, name := range []string{"", ".", "..", "a/b", "../../etc/passwd"} {
		if _, err := s.parentOf(s.root.ino, name); err != unix.EINVAL {
			t.Errorf("%q below the kernel: %v", name, err)
		}
	}
}

// TestLinksDoNotLeaveTheStore: the shim never follows a symbolic link, the kernel does that for its caller.
func TestLinksDoNotLeaveTheStore(t *testing.T) {
	m := newTestStore(t)
	secret := filepath.Join(t.TempDir(), "secret")
	mustWrite(t, secret, []byte("untouched"))
	if err := os.Symlink(secret, m.path("disk.vhd")); err != nil {
		t.Fatal(err)
	}
	n := m.srv.store.tree.get(inode(t, m.backing("disk.vhd")))
	if err := n.truncate(0); err == nil {
		t.Error("truncate went through a link")
	}
	if err := n.acquire(unix.O_RDWR); err == nil {
		t.Error("open went through a link")
	}
	if got, err := os.ReadFile(secret); err != nil || string(got) != "untouched" {
		t.Errorf("%q, %v", got, err)
	}
	m.vols.wantEvents(t)
}

func TestNestedMountIsRefused(t *testing.T) {
	needFUSE(t)
	for _, kind := range []string{"tmpfs", "bind"} {
		t.Run(kind, func(t *testing.T) {
			src := t.TempDir()
			nested := filepath.Join(src, "nested")
			if err := os.Mkdir(nested, 0o755); err != nil {
				t.Fatal(err)
			}
			var err error
			if kind == "bind" {
				err = unix.Mount(t.TempDir(), nested, "", unix.MS_BIND, "")
			} else {
				err = unix.Mount("none", nested, "tmpfs", 0, "")
			}
			if err != nil {
				t.Skipf("mount: %v", err)
			}
			t.Cleanup(func() { unix.Unmount(nested, 0) })
			m := newStoreAt(t, src)
			_, err = os.Stat(m.path("nested"))
			wantErrno(t, "nested", err, unix.EXDEV)
			if entries, err := os.ReadDir(m.mnt); err != nil || len(entries) != 1 {
				t.Errorf("the directory is listed with %v, %v", entries, err)
			}
		})
	}
}

// TestCreatorOwns: a file belongs to who made it, whatever the daemon is and whatever its umask.
func TestCreatorOwns(t *testing.T) {
	m := newTestStore(t)
	if err := os.Chmod(m.mnt, 0o777); err != nil {
		t.Fatal(err)
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	needTools(t, "setpriv")
	cmd := exec.Command("setpriv", "--reuid=1234", "--regid=2345", "--clear-groups", "sh", "-c",
		"umask 002; echo x > disk.vhd && mkdir dir && ln -s x link && mkfifo fifo")
	cmd.Dir = m.mnt
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for name, mode := range map[string]os.FileMode{"disk.vhd": 0o664, "dir": os.ModeDir | 0o775, "link": os.ModeSymlink | 0o777, "fifo": os.ModeNamedPipe | 0o664} {
		var st unix.Stat_t
		if err := unix.Lstat(m.backing(name), &st); err != nil || st.Uid != 1234 || st.Gid != 2345 {
			t.Errorf("%s: owner %d:%d, %v", name, st.Uid, st.Gid, err)
		}
		if info, err := os.Lstat(m.backing(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v, %v", name, info.Mode(), mode, err)
		}
	}
}

func TestAttributesPass(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), []byte("12345"))
	ts := []unix.Timespec{{Sec: 42, Nsec: 7}, {Sec: 43, Nsec: 8}}
	if err := unix.UtimesNanoAt(unix.AT_FDCWD, m.path("a.vhd"), ts, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(m.path("a.vhd"), 7, -1); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(m.path("a.vhd"), 0o600); err != nil {
		t.Fatal(err)
	}
	var seen, backing unix.Stat_t
	if err := unix.Stat(m.path("a.vhd"), &seen); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(m.backing("a.vhd"), &backing); err != nil {
		t.Fatal(err)
	}
	if seen.Ino != backing.Ino || seen.Size != 5 || seen.Mtim != ts[1] || seen.Uid != 7 || seen.Mode != backing.Mode || seen.Blocks != backing.Blocks {
		t.Errorf("seen %+v, backing %+v", seen, backing)
	}
	if f := open(t, m.path("a.vhd"), os.O_RDWR); f != nil {
		if _, err := f.WriteAt([]byte("x"), 99); err != nil {
			t.Error(err)
		}
		if st, err := f.Stat(); err != nil || st.Size() != 100 {
			t.Errorf("size right after a write: %v, %v", st.Size(), err)
		}
	}
}

// TestLargeDirectoryListsOnce: every name once, over many requests, also while names come and go.
func TestLargeDirectoryListsOnce(t *testing.T) {
	m := newTestStore(t)
	var want []string
	for i := range 2000 {
		name := fmt.Sprintf("a-rather-long-name-for-a-file-%05d", i)
		mustWrite(t, m.backing(name), nil)
		want = append(want, name)
	}
	d := open(t, m.mnt, os.O_RDONLY)
	var got []string
	for i := 0; ; i++ {
		names, err := d.Readdirnames(100)
		for _, n := range names {
			if strings.HasPrefix(n, "a-") {
				got = append(got, n)
			}
		}
		if err != nil || len(names) == 0 {
			break
		}
		mustWrite(t, m.path(fmt.Sprintf("new-%d", i)), nil)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("%d names, want %d", len(got), len(want))
	}
	if err := d.Sync(); err != nil {
		t.Errorf("fsync of a directory: %v", err)
	}
}

func TestRemovedWhileOpen(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	if err := os.Remove(m.path("a.vhd")); err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 10000)
	if _, err := f.WriteAt(data, 0); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read: %v", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != 10000 {
		t.Errorf("stat: %v", err)
	}
	if err := f.Truncate(10); err != nil {
		t.Errorf("truncate: %v", err)
	}
	mustWrite(t, m.path("a.vhd"), []byte("another"))
	if got, err := os.ReadFile(m.path("a.vhd")); err != nil || string(got) != "another" {
		t.Errorf("%q, %v", got, err)
	}
}

// TestReadOnlyBacking: a file that cannot be opened for writing is still read.
func TestReadOnlyBacking(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), []byte("data"))
	waitReleased(m.srv.store.tree.get(inode(t, m.backing("a.vhd"))))
	back := open(t, m.backing("a.vhd"), os.O_RDONLY)
	if err := unix.IoctlSetPointerInt(int(back.Fd()), unix.FS_IOC_SETFLAGS, fsImmutable); err != nil {
		t.Skipf("no immutable files here: %v", err)
	}
	t.Cleanup(func() { unix.IoctlSetPointerInt(int(back.Fd()), unix.FS_IOC_SETFLAGS, 0) })
	reader := open(t, m.path("a.vhd"), os.O_RDONLY)
	if got, err := os.ReadFile(m.path("a.vhd")); err != nil || string(got) != "data" {
		t.Errorf("%q, %v", got, err)
	}
	_, err := os.OpenFile(m.path("a.vhd"), os.O_RDWR, 0)
	wantErrno(t, "open for writing", err, unix.EPERM)
	if err := unix.IoctlSetPointerInt(int(back.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
		t.Fatal(err)
	}
	writer := open(t, m.path("a.vhd"), os.O_RDWR)
	if _, err := writer.WriteAt([]byte("D"), 0); err != nil {
		t.Errorf("write after the file may be written: %v", err)
	}
	got := make([]byte, 4)
	if _, err := reader.ReadAt(got, 0); err != nil || string(got) != "Data" {
		t.Errorf("the first reader sees %q, %v", got, err)
	}
	back.Close()
}
