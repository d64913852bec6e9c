package appliance

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
)

// refused wants an error of a code, with what to do.
func refused(t *testing.T, err error, code control.Code) {
	t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Code != code || e.Action == "" {
		t.Errorf("%v, want %s with an action", err, code)
	}
}

// bind mounts a directory of its own over dir.
func bind(t *testing.T, dir string) func() {
	t.Helper()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Skip("needs root: ", err)
	}
	undo := func() { unix.Unmount(dir, unix.MNT_DETACH) }
	t.Cleanup(undo)
	return undo
}

const ableEnv = "VHDRELAY_TEST_ABLE" // makes the test binary say what it lacks

func TestAble(t *testing.T) {
	if os.Getenv(ableEnv) != "" {
		refused(t, Able("/dev/fuse"), "needs-root")
		return
	}
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	refused(t, Able(filepath.Join(t.TempDir(), "fuse")), "needs-fuse")
	gone := filepath.Join(t.TempDir(), "gone")
	if err := unix.Mknod(gone, unix.S_IFCHR|0o600, int(unix.Mkdev(60, 250))); err != nil { // a number for local use, no driver
		t.Fatal(err)
	}
	refused(t, Able(gone), "needs-fuse")
	if _, err := os.Stat("/dev/fuse"); err == nil {
		if err := Able("/dev/fuse"); err != nil {
			t.Errorf("here: %v", err)
		}
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAble$")
	cmd.Env = append(os.Environ(), ableEnv+"=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{AmbientCaps: nil, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestLockOwner(t *testing.T) {
	const table = `1: POSIX  ADVISORY  WRITE 10 fe:00:77 0 EOF
2: FLOCK  ADVISORY  WRITE 1234 fe:00:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 99 fe:00:78 0 EOF
3: FLOCK  ADVISORY  WRITE -1 08:11:5 0 EOF
`
	for _, c := range []struct {
		dev, ino uint64
		want     int
	}{{unix.Mkdev(0xfe, 0), 77, 1234}, {unix.Mkdev(0xfe, 0), 78, 0}, {unix.Mkdev(8, 17), 5, -1}, {unix.Mkdev(1, 2), 3, 0}} {
		if got := lockOwner(table, c.dev, c.ino); got != c.want {
			t.Errorf("%v: %d", c, got)
		}
	}
	if got := process(1 << 30); got != "pid 1073741824, ended" {
		t.Error(got)
	}
	if got := holder(t.TempDir()); got != "" {
		t.Errorf("nobody: %q", got)
	}
}

// Something mounted inside the source ends the start, and is told of when it comes
// while the store is served.
func TestNestedMounts(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	inner := filepath.Join(r.source, "web", "inner")
	r.must(os.MkdirAll(inner, 0o755))
	undo := bind(t, inner)
	err := Serve(r.ctx(), r.config(), Options{})
	refused(t, err, "nested-mount")
	if err == nil || !strings.Contains(err.Error(), inner) {
		t.Errorf("%v does not name %s", err, inner)
	}
	undo()
	r.start()
	r.sync("web")
	undo = bind(t, inner)
	r.app.look()
	if v := r.vm("web"); !hasReason("nested-mount")(v) || v.Health != control.HealthWarning {
		t.Errorf("%+v", v)
	}
	if _, err := os.ReadDir(filepath.Join(r.mount, "web/inner")); !errors.Is(err, unix.EXDEV) {
		t.Errorf("it is served: %v", err)
	}
	undo()
	r.app.look()
	if v := r.vm("web"); hasReason("nested-mount")(v) {
		t.Errorf("%+v", v.Reasons)
	}
}

// A source that lies on a mount of ours, or is covered by a mount while it is served,
// is not what the guests' disks are on.
func TestShadowedSource(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	conf := r.config()
	conf.StateDir, conf.ControlSocket = t.TempDir(), r.socket+"2"
	conf.Stores = []config.Store{{Name: "shadow", Source: filepath.Join(r.mount, "web"), Mount: t.TempDir()}}
	refused(t, Serve(r.ctx(), conf, Options{}), "source-shadowed")

	undo := bind(t, r.source)
	r.app.look()
	if v := r.vm("web"); !hasReason("source-shadowed")(v) || v.Health != control.HealthCritical {
		t.Errorf("%+v", v)
	}
	r.change("web/os.img", 0, []byte("seen"))
	copy(content, "seen")
	undo()
	r.app.look()
	if v := r.vm("web"); hasReason("source-shadowed")(v) {
		t.Errorf("%+v", v.Reasons)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// A source whose file system is not mounted is an empty directory: serving it would
// take every disk away.
func TestSourceThatIsNotMounted(t *testing.T) {
	r := newRig(t)
	undo := bind(t, r.source)
	r.put("web/os.img", r.content(mib))
	r.start()
	r.sync("web")
	r.stop()
	undo()
	refused(t, Serve(r.ctx(), r.config(), Options{}), "source-empty")
	if left, err := readMark(r.source, markStoreID); left != "" || err != nil {
		t.Errorf("the empty directory was marked: %q %v", left, err)
	}
}

// Each way in which a mount point cannot be had names its cause and what to do.
func TestMountPointsThatCannotBeHad(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	try := func(mount string) error {
		conf := r.config()
		conf.Stores[0].Mount = mount
		return Serve(r.ctx(), conf, Options{Log: discard})
	}
	refused(t, try(r.mount+"-missing"), "mount-missing")
	full := t.TempDir()
	r.must(os.WriteFile(filepath.Join(full, "os.img"), nil, 0o600))
	refused(t, try(full), "mount-not-empty")
	taken := t.TempDir()
	bind(t, taken)
	refused(t, try(taken), "mount-taken")
	link := filepath.Join(t.TempDir(), "link")
	r.must(os.Symlink(filepath.Join(r.source, "web"), link))
	refused(t, try(link), "mount-nested")
	refused(t, mountError(config.Store{Name: "x"}, unix.EPERM), "mount-failed")
}

// The mount of an appliance that was killed is cleared away by the next, and between
// the two no VM can start beside the shim.
func TestStaleMountOfACrash(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	cmd := r.child()
	r.sync("web")
	r.must(cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	var st unix.Statfs_t
	if err := unix.Statfs(r.mount, &st); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("no dead mount: %v", err)
	}
	r.start()
	r.sync("web")
	r.stop()
	if err := os.WriteFile(filepath.Join(r.mount, "stray.img"), nil, 0o600); !errors.Is(err, unix.EPERM) {
		t.Errorf("a VM beside the shim: %v", err)
	}
	if st, err := os.Stat(r.mount); err != nil || st.Mode().Perm() != 0 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	r.must(fs.ReleaseMountPoint(r.mount))
	r.must(os.WriteFile(filepath.Join(r.mount, "stray.img"), nil, 0o600))
	r.must(os.Remove(filepath.Join(r.mount, "stray.img")))
}

// Two stores with a directory of one name are not two VMs of that name: the second's
// disks are served, marked and named with what to do, and the first goes on.
func TestSameVMInTwoStores(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	other, mount := t.TempDir(), t.TempDir()
	r.must(os.Mkdir(filepath.Join(other, "web"), 0o755))
	r.must(os.WriteFile(filepath.Join(other, "web/os.img"), r.content(mib), 0o644))
	t.Cleanup(func() { r.must(fs.ReleaseMountPoint(mount)) })
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	conf := r.config()
	conf.Stores = append(conf.Stores, config.Store{Name: "second", Source: other, Mount: mount})
	r.must(r.tryStart(conf))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	v := r.vm("web")
	if !hasReason("image-untracked")(v) || v.Health != control.HealthCritical || !strings.Contains(v.Reasons[0].Message, "store main has a VM of that name already") {
		t.Errorf("%+v", v.Reasons)
	}
	if n, err := unix.Getxattr(filepath.Join(other, "web/os.img"), "user.vhdrelay.suspect", make([]byte, 8)); err != nil || n == 0 {
		t.Errorf("no mark on the second: %v", err)
	}
	r.must(os.WriteFile(filepath.Join(mount, "web/os.img"), []byte("served"), 0o644))
	r.stop()
}
