package fs

import (
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// aclEntry is an entry of a POSIX ACL as acl(5) has them; the attribute's layout is that of the kernel's
// include/uapi/linux/posix_acl_xattr.h.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

const (
	aclUserObj, aclUser, aclGroupObj, aclMask, aclOther = 0x01, 0x02, 0x04, 0x10, 0x20

	aclVersion = 2
	aclNoID    = ^uint32(0)
)

func setACL(t *testing.T, name, kind string, entries ...aclEntry) {
	t.Helper()
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	if err := unix.Setxattr(name, kind, b, 0); errors.Is(err, unix.EOPNOTSUPP) {
		t.Skip("the file system of the source has no ACLs")
	} else if err != nil {
		t.Fatal(err)
	}
}

// onlyUser gives a user read and write, and nobody else but root anything.
func onlyUser(uid uint32) []aclEntry {
	return []aclEntry{{aclUserObj, 6, aclNoID}, {aclUser, 6, uid}, {aclGroupObj, 0, aclNoID}, {aclMask, 6, aclNoID}, {aclOther, 0, aclNoID}}
}

// as runs a shell command in the mount as another user and group.
func as(t *testing.T, m *testStore, uid, gid int, script string) error {
	t.Helper()
	needTools(t, "setpriv")
	cmd := exec.Command("setpriv", "--reuid="+strconv.Itoa(uid), "--regid="+strconv.Itoa(gid), "--clear-groups", "sh", "-c", script)
	cmd.Dir = m.mnt
	return cmd.Run()
}

// TestACLsCount: a hypervisor's user gets in by an ACL, and its mask, which the mode shows as the group's rights, lets
// the group in no further than its own entry does.
func TestACLsCount(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("disk.vhd"), []byte("data"))
	if err := errors.Join(os.Chmod(m.mnt, 0o755), os.Chmod(m.path("disk.vhd"), 0o600), os.Chown(m.path("disk.vhd"), 0, 777)); err != nil {
		t.Fatal(err)
	}
	if as(t, m, 1234, 1234, "cat disk.vhd") == nil {
		t.Error("a stranger reads without an ACL")
	}
	setACL(t, m.path("disk.vhd"), accessACL, onlyUser(1234)...)
	if err := as(t, m, 1234, 1234, "cat disk.vhd && printf more >> disk.vhd"); err != nil {
		t.Errorf("the user of the ACL: %v", err)
	}
	if as(t, m, 4321, 777, "cat disk.vhd") == nil {
		t.Error("the mask let the group in")
	}
	if as(t, m, 1234, 1234, "chmod 777 disk.vhd") == nil {
		t.Error("the user of the ACL is no owner")
	}
	var seen, backing [64]byte
	n, err := unix.Getxattr(m.path("disk.vhd"), accessACL, seen[:])
	k, err2 := unix.Getxattr(m.backing("disk.vhd"), accessACL, backing[:])
	if err != nil || err2 != nil || n != k || seen != backing {
		t.Errorf("at the mount %x, %v; behind it %x, %v", seen[:max(n, 0)], err, backing[:max(k, 0)], err2)
	}
	if err := unix.Removexattr(m.path("disk.vhd"), accessACL); err != nil {
		t.Fatal(err)
	}
	if as(t, m, 1234, 1234, "cat disk.vhd") == nil {
		t.Error("the ACL is gone and the user still reads")
	}
}

// TestDefaultACLIsInherited: it overrules the umask, for files, directories and files without a name.
func TestDefaultACLIsInherited(t *testing.T) {
	m := newTestStore(t)
	dir := m.path("vm")
	if err := errors.Join(os.Mkdir(dir, 0o700), os.Chmod(m.mnt, 0o755), os.Chmod(dir, 0o777)); err != nil {
		t.Fatal(err)
	}
	setACL(t, dir, defaultACL, onlyUser(1234)...)
	old := unix.Umask(0o077)
	mustWrite(t, m.path("vm/new.vhd"), []byte("data"))
	err := errors.Join(os.Mkdir(m.path("vm/sub"), 0o777), unix.Mknod(m.path("vm/node.raw"), unix.S_IFREG|0o666, 0))
	unix.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	if err := as(t, m, 1234, 1234, "cat vm/new.vhd && printf x >> vm/node.raw"); err != nil {
		t.Errorf("the user of the default ACL: %v", err)
	}
	if as(t, m, 4321, 4321, "cat vm/new.vhd") == nil {
		t.Error("a stranger reads")
	}
	for name, mode := range map[string]os.FileMode{"vm/new.vhd": 0o640, "vm/node.raw": 0o660, "vm/sub": os.ModeDir | 0o660} {
		if info, err := os.Stat(m.backing(name)); err != nil || info.Mode() != mode {
			t.Errorf("%s: mode %v, want %v, %v", name, info.Mode(), mode, err)
		}
	}
	if n, err := unix.Getxattr(m.path("vm/sub"), defaultACL, nil); err != nil || n != 4+5*8 {
		t.Errorf("the directory below inherits %d bytes, %v", n, err)
	}
}
