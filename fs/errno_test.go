package fs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestErrorsAreThoseOfThePlainFileSystem: the same mistakes in the mount and in a plain directory, the same errno.
func TestErrorsAreThoseOfThePlainFileSystem(t *testing.T) {
	m := newTestStore(t)
	plain := t.TempDir()
	for _, dir := range []string{m.mnt, plain} {
		for _, sub := range []string{"dir", "full", "full/sub"} {
			if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		mustWrite(t, filepath.Join(dir, "disk.vhd"), []byte("data"))
		mustWrite(t, filepath.Join(dir, "full/file"), nil)
		if err := errors.Join(os.Symlink("loop", filepath.Join(dir, "loop")), os.Symlink("absent", filepath.Join(dir, "dangling"))); err != nil {
			t.Fatal(err)
		}
	}
	long := strings.Repeat("n", 256)
	for name, do := range map[string]func(p func(string) string) error{
		"mkdir exists":          func(p func(string) string) error { return unix.Mkdir(p("dir"), 0o755) },
		"mkdir in a file":       func(p func(string) string) error { return unix.Mkdir(p("disk.vhd/x"), 0o755) },
		"mkdir in nothing":      func(p func(string) string) error { return unix.Mkdir(p("absent/x"), 0o755) },
		"mkdir long":            func(p func(string) string) error { return unix.Mkdir(p(long), 0o755) },
		"rmdir full":            func(p func(string) string) error { return unix.Rmdir(p("full")) },
		"rmdir file":            func(p func(string) string) error { return unix.Rmdir(p("disk.vhd")) },
		"rmdir absent":          func(p func(string) string) error { return unix.Rmdir(p("absent")) },
		"unlink dir":            func(p func(string) string) error { return unix.Unlink(p("dir")) },
		"unlink absent":         func(p func(string) string) error { return unix.Unlink(p("absent")) },
		"rename dir over full":  func(p func(string) string) error { return unix.Rename(p("dir"), p("full")) },
		"rename dir over file":  func(p func(string) string) error { return unix.Rename(p("dir"), p("disk.vhd")) },
		"rename file over dir":  func(p func(string) string) error { return unix.Rename(p("disk.vhd"), p("dir")) },
		"rename into itself":    func(p func(string) string) error { return unix.Rename(p("full"), p("full/sub/x")) },
		"rename absent":         func(p func(string) string) error { return unix.Rename(p("absent"), p("x")) },
		"rename to itself":      func(p func(string) string) error { return unix.Rename(p("disk.vhd"), p("disk.vhd")) },
		"exchange with nothing": func(p func(string) string) error { return renameFlags(p, unix.RENAME_EXCHANGE, "disk.vhd", "absent") },
		"noreplace over":        func(p func(string) string) error { return renameFlags(p, unix.RENAME_NOREPLACE, "disk.vhd", "dir") },
		"both flags": func(p func(string) string) error {
			return renameFlags(p, unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE, "dir", "disk.vhd")
		},
		"create exclusive": func(p func(string) string) error {
			return openClose(p("disk.vhd"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR)
		},
		"create over dir":      func(p func(string) string) error { return openClose(p("dir"), unix.O_CREAT|unix.O_RDWR) },
		"open dir for writing": func(p func(string) string) error { return openClose(p("dir"), unix.O_RDWR) },
		"open file as dir":     func(p func(string) string) error { return openClose(p("disk.vhd"), unix.O_DIRECTORY) },
		"open loop":            func(p func(string) string) error { return openClose(p("loop"), unix.O_RDONLY) },
		"open dangling":        func(p func(string) string) error { return openClose(p("dangling"), unix.O_RDONLY) },
		"create through dangling": func(p func(string) string) error {
			return openClose(p("dangling"), unix.O_RDWR|unix.O_CREAT|unix.O_EXCL)
		},
		"nofollow":            func(p func(string) string) error { return openClose(p("dangling"), unix.O_RDONLY|unix.O_NOFOLLOW) },
		"truncate too far":    func(p func(string) string) error { return unix.Truncate(p("full/file"), 1<<62) },
		"truncate negative":   func(p func(string) string) error { return unix.Truncate(p("disk.vhd"), -1) },
		"truncate dir":        func(p func(string) string) error { return unix.Truncate(p("dir"), 0) },
		"link dir":            func(p func(string) string) error { return unix.Link(p("dir"), p("x")) },
		"link over":           func(p func(string) string) error { return unix.Link(p("full/file"), p("dir")) },
		"symlink over":        func(p func(string) string) error { return unix.Symlink("x", p("dir")) },
		"readlink of a file":  func(p func(string) string) error { _, err := unix.Readlink(p("disk.vhd"), make([]byte, 9)); return err },
		"xattr without space": func(p func(string) string) error { return unix.Setxattr(p("disk.vhd"), "nospace", nil, 0) },
		"remove absent xattr": func(p func(string) string) error { return unix.Removexattr(p("disk.vhd"), "user.absent") },
		"mknod exists":        func(p func(string) string) error { return unix.Mknod(p("dir"), unix.S_IFIFO|0o600, 0) },
	} {
		at := func(dir string) func(string) string {
			return func(name string) string { return filepath.Join(dir, name) }
		}
		got, want := do(at(m.mnt)), do(at(plain))
		if !errors.Is(got, want) {
			t.Errorf("%s: %v, in a plain directory %v", name, got, want)
		}
	}
}

func renameFlags(p func(string) string, flags uint, from, to string) error {
	return unix.Renameat2(unix.AT_FDCWD, p(from), unix.AT_FDCWD, p(to), flags)
}

func openClose(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// TestPermissionsAreTheKernels: default_permissions, so a stranger sees what the modes allow and no more.
func TestPermissionsAreTheKernels(t *testing.T) {
	needTools(t, "setpriv")
	m := newTestStore(t)
	mustWrite(t, m.path("private.vhd"), []byte("secret"))
	mustWrite(t, m.path("public.vhd"), []byte("public"))
	if err := errors.Join(os.Chmod(m.mnt, 0o755), os.Chmod(m.path("private.vhd"), 0o600), os.Chmod(m.path("public.vhd"), 0o644)); err != nil {
		t.Fatal(err)
	}
	stranger := func(script string) (string, error) {
		cmd := exec.Command("setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", script)
		cmd.Dir = m.mnt
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := stranger("cat public.vhd"); err != nil || out != "public" {
		t.Errorf("reading what is public: %q, %v", out, err)
	}
	for _, script := range []string{"cat private.vhd", "echo x > public.vhd", "rm -f public.vhd", "touch new", "mv public.vhd x.vhd", "chmod 777 public.vhd"} {
		if out, err := stranger(script); err == nil {
			t.Errorf("%s: allowed: %q", script, out)
		}
	}
}

// TestGroupOfASetgidDirectory: files take it, directories take the bit as well.
func TestGroupOfASetgidDirectory(t *testing.T) {
	m := newTestStore(t)
	dir := m.path("vm")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chown(dir, 0, 77), os.Chmod(dir, 0o2775)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(dir, 0o2775); err != nil {
		t.Fatal(err)
	}
	mustWrite(t, filepath.Join(dir, "a.vhd"), nil)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"vm/a.vhd": unix.S_IFREG | 0o644, "vm/sub": unix.S_IFDIR | unix.S_ISGID | 0o755} {
		var st unix.Stat_t
		if err := unix.Stat(m.backing(name), &st); err != nil || st.Gid != 77 || st.Mode != mode {
			t.Errorf("%s: group %d, mode %o, %v", name, st.Gid, st.Mode, err)
		}
	}
}

// TestAbortEndsEverything: open files fail, nothing more reaches the backing file, the mount is gone.
func TestAbortEndsEverything(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("a.vhd"), os.O_RDWR|os.O_CREATE)
	if err := m.srv.Abort(context.Background()); err != nil {
		t.Fatal(err)
	}
	_, err := f.WriteAt([]byte("late"), 0)
	wantErrno(t, "write", err, unix.ENOTCONN)
	if st, err := os.Stat(m.backing("a.vhd")); err != nil || st.Size() != 0 {
		t.Errorf("the backing file: %v, %v", st, err)
	}
	if at, err := mountsAt(m.mnt); err != nil || len(at) > 0 {
		t.Errorf("left mounts %v, %v", at, err)
	}
	if err := m.srv.Abort(context.Background()); err != nil {
		t.Errorf("again: %v", err)
	}
}

// TestIdentifyIsWhatAttachIsTold: the appliance may know a disk before the kernel asks for it.
func TestIdentifyIsWhatAttachIsTold(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), nil)
	id, err := Identify(m.backing("a.vhd"))
	if err != nil {
		t.Fatal(err)
	}
	m.vols.mu.Lock()
	r := m.vols.mu.recorders[id]
	m.vols.mu.Unlock()
	if r == nil || r.name != "a.vhd" {
		t.Errorf("nobody was attached with %+v", id)
	}
	if _, err := Identify(m.backing("absent")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("absent: %v", err)
	}
}

// TestQEMUWorksOnTheMount: its own tools write a disk, and read the same from the backing file.
func TestQEMUWorksOnTheMount(t *testing.T) {
	needTools(t, "qemu-img", "qemu-io")
	m := newTestStore(t)
	run(t, "qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", m.path("a.vhd"), "8M")
	run(t, "qemu-io", "-f", "vpc", "-c", "write -P 0x5a 1M 2M", "-c", "write -z 2M 64k", "-c", "discard 2560k 128k", "-c", "flush", m.path("a.vhd"))
	run(t, "qemu-io", "-f", "vpc", "-t", "none", "-c", "write -P 0x77 4M 1M", "-c", "read -P 0x77 4M 1M", m.path("a.vhd"))
	run(t, "qemu-img", "compare", "-f", "vpc", "-F", "vpc", m.path("a.vhd"), m.backing("a.vhd"))
	run(t, "qemu-img", "convert", "-f", "vpc", "-O", "raw", m.path("a.vhd"), m.path("b.raw"))
	run(t, "qemu-img", "compare", "-f", "vpc", "-F", "raw", m.backing("a.vhd"), m.backing("b.raw"))
}

// TestEveryVerbKnowsAStrangeNode: a number the kernel was never told is ESTALE, for every verb that takes one.
func TestEveryVerbKnowsAStrangeNode(t *testing.T) {
	s, _ := bareStore(t, nil)
	in := fuse.InHeader{NodeId: 0xdead}
	var entry fuse.EntryOut
	var attr fuse.AttrOut
	want := fuse.Status(unix.ESTALE)
	for name, got := range map[string]fuse.Status{
		"Lookup":   s.Lookup(nil, &in, "x", &entry),
		"Statx":    s.Statx(nil, &fuse.StatxIn{InHeader: in}, &fuse.StatxOut{}),
		"Tmpfile":  s.Tmpfile(nil, &fuse.CreateIn{InHeader: in}, &fuse.CreateOut{}),
		"GetAttr":  s.GetAttr(nil, &fuse.GetAttrIn{InHeader: in}, &attr),
		"SetAttr":  s.SetAttr(nil, &fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: in}}, &attr),
		"Mknod":    s.Mknod(nil, &fuse.MknodIn{InHeader: in}, "x", &entry),
		"Mkdir":    s.Mkdir(nil, &fuse.MkdirIn{InHeader: in}, "x", &entry),
		"Symlink":  s.Symlink(nil, &in, "x", "y", &entry),
		"Unlink":   s.Unlink(nil, &in, "x"),
		"Rmdir":    s.Rmdir(nil, &in, "x"),
		"Rename":   s.Rename(nil, &fuse.RenameIn{InHeader: in, Newdir: fuse.FUSE_ROOT_ID}, "x", "y"),
		"Rename 2": s.Rename(nil, &fuse.RenameIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Newdir: 0xdead}, "x", "y"),
		"Link":     s.Link(nil, &fuse.LinkIn{InHeader: fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, Oldnodeid: 0xdead}, "x", &entry),
		"Open":     s.Open(nil, &fuse.OpenIn{InHeader: in}, &fuse.OpenOut{}),
		"Create":   s.Create(nil, &fuse.CreateIn{InHeader: in}, "x", &fuse.CreateOut{}),
		"OpenDir":  s.OpenDir(nil, &fuse.OpenIn{InHeader: in}, &fuse.OpenOut{}),
		"ReadDir":  s.ReadDir(nil, &fuse.ReadIn{InHeader: in}, nil),
		"ReadDir+": s.ReadDirPlus(nil, &fuse.ReadIn{InHeader: in}, nil),
		"Fsync":    s.Fsync(nil, &fuse.FsyncIn{InHeader: in}),
		"FsyncDir": s.FsyncDir(nil, &fuse.FsyncIn{InHeader: in}),
		"Lseek":    s.Lseek(nil, &fuse.LseekIn{InHeader: in}, &fuse.LseekOut{}),
		"Falloc":   s.Fallocate(nil, &fuse.FallocateIn{InHeader: in, Length: 1}),
		"SetXAttr": s.SetXAttr(nil, &fuse.SetXAttrIn{InHeader: in}, "user.x", nil),
		"RmXAttr":  s.RemoveXAttr(nil, &in, "user.x"),
	} {
		if got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if _, got := s.Read(nil, &fuse.ReadIn{InHeader: in}, nil); got != want {
		t.Errorf("Read: %v", got)
	}
	if _, got := s.Writev(nil, &fuse.WriteIn{InHeader: in}, nil); got != want {
		t.Errorf("Writev: %v", got)
	}
	if _, got := s.Readlink(nil, &in); got != want {
		t.Errorf("Readlink: %v", got)
	}
	s.Release(nil, &fuse.ReleaseIn{InHeader: in})
	s.Forget(in.NodeId, 1)
}
