package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// loopDevice puts a block device over a file.
func loopDevice(t testing.TB, file string) string {
	t.Helper()
	needTools(t, "losetup", "mkfs.ext4", "fsck.ext4")
	dev := run(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	return dev
}

// mountDevice mounts an ext4 and unmounts it at the end.
func mountDevice(t testing.TB, dev, dir string) {
	t.Helper()
	if err := unix.Mount(dev, dir, "ext4", 0, ""); err != nil {
		t.Skipf("mount ext4: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, 0) })
}

// TestFileSystemInADisk: a kernel's own file system in an image at the mount, by a loop device: discards, barriers and
// parallel I/O as a guest does it.
func TestFileSystemInADisk(t *testing.T) {
	m := newTestStore(t)
	f := open(t, m.path("disk.raw"), os.O_RDWR|os.O_CREATE)
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	f.Close()
	func() {
		dev := run(t, "losetup", "--find", "--show", m.path("disk.raw"))
		defer run(t, "losetup", "--detach", dev)
		run(t, "mkfs.ext4", "-q", "-F", dev)
		dir := t.TempDir()
		if err := unix.Mount(dev, dir, "ext4", 0, "discard"); err != nil {
			t.Skipf("mount ext4: %v", err)
		}
		for i := range 20 {
			mustWrite(t, filepath.Join(dir, fmt.Sprint(i)), bytes.Repeat([]byte{byte(i)}, i*40000))
		}
		for i := 0; i < 20; i += 2 {
			if err := os.Remove(filepath.Join(dir, fmt.Sprint(i))); err != nil {
				t.Error(err)
			}
		}
		unix.Sync()
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
		run(t, "fsck.ext4", "-f", "-n", dev)
	}()
	run(t, "fsck.ext4", "-f", "-n", m.backing("disk.raw"))
	if n := len(m.vols.recorder(t, "disk.raw").takeChanges()); n < 10 {
		t.Errorf("only %d changes announced", n)
	}
}

// flagStore notes the flags of every WRITE.
type flagStore struct {
	*store
	mu struct { // no I/O under it
		sync.Mutex
		flags []uint32
	}
}

func (s *flagStore) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	s.mu.Lock()
	s.mu.flags = append(s.mu.flags, in.Flags&(unix.O_SYNC|unix.O_DSYNC))
	s.mu.Unlock()
	return s.store.Writev(cancel, in, data)
}

// TestKernelSendsSyncFlags: the fact that the write path rests on. O_DSYNC, O_SYNC and RWF_DSYNC come as a flag of
// WRITE.
func TestKernelSendsSyncFlags(t *testing.T) {
	inner, err := newStore(t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &flagStore{store: inner}
	mnt := serveRaw(t, s)
	name := filepath.Join(mnt, "disk.vhd")
	for _, c := range []struct {
		open, write int
		want        uint32
	}{{0, 0, 0}, {unix.O_DSYNC, 0, unix.O_DSYNC}, {unix.O_SYNC, 0, unix.O_SYNC}, {0, unix.RWF_DSYNC, unix.O_DSYNC}, {0, unix.RWF_SYNC, unix.O_SYNC}} {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|c.open, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Pwritev2(fd, [][]byte{[]byte("x")}, 0, c.write); err != nil {
			t.Error(err)
		}
		unix.Close(fd)
		s.mu.Lock()
		got := s.mu.flags
		s.mu.flags = nil
		s.mu.Unlock()
		if len(got) != 1 || got[0] != c.want {
			t.Errorf("open %#x, write %#x: flags %#x, want %#x", c.open, c.write, got, c.want)
		}
	}
}

// askedStore counts what the kernel asks beside reads and writes.
type askedStore struct {
	*store
	asked atomic.Int64
}

func (s *askedStore) GetXAttr(cancel <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	s.asked.Add(1)
	return s.store.GetXAttr(cancel, in, name, dest)
}

func (s *askedStore) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	s.asked.Add(1)
	return s.store.GetAttr(cancel, in, out)
}

// TestGuestIOAsksNothingElse: no request for a security label, an ACL or attributes comes along with a guest's reads and
// writes. Whether the kernel asks depends on the capabilities that were agreed on.
func TestGuestIOAsksNothingElse(t *testing.T) {
	const requests = 500
	inner, err := newStore(t.TempDir(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	s := &askedStore{store: inner}
	mnt := serveRaw(t, s)
	f := open(t, filepath.Join(mnt, "disk.vhd"), os.O_RDWR|os.O_CREATE)
	block := make([]byte, 4096)
	if _, err := f.WriteAt(block, 0); err != nil {
		t.Fatal(err)
	}
	s.asked.Store(0)
	for range requests {
		_, err := f.WriteAt(block, 0)
		_, err2 := f.ReadAt(block, 0)
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.asked.Load(); n > requests/50 { // attributes are believed for a second
		t.Errorf("%d requests beside %d reads and writes", n, 2*requests)
	}
}

// serveRaw mounts a file system as Mount does, without its checks.
func serveRaw(t *testing.T, s fuse.RawFileSystem) string {
	t.Helper()
	needFUSE(t)
	mnt := t.TempDir()
	opts := Options{Name: "raw", Log: discardLog()}
	srv, err := fuse.NewServer(s, mnt, opts.fuse())
	if err != nil {
		t.Fatal(err)
	}
	go srv.Serve()
	t.Cleanup(func() {
		if err := srv.Unmount(); err != nil {
			t.Error(err)
		}
	})
	if err := srv.WaitMount(); err != nil {
		t.Fatal(err)
	}
	return mnt
}

// fsIocShutdown is FS_IOC_SHUTDOWN, and flag 2 leaves the log unflushed: a power cut.
const fsIocShutdown = 0x8004587d

func powerCut(t testing.TB, dir string) {
	t.Helper()
	d, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := unix.IoctlSetPointerInt(int(d.Fd()), fsIocShutdown, 2); err != nil {
		t.Skipf("no shutdown ioctl: %v", err)
	}
}

// TestSyncedWritesSurviveAPowerCut: what was answered to an O_DSYNC write, or before an fsync, is there afterwards.
func TestSyncedWritesSurviveAPowerCut(t *testing.T) {
	needFUSE(t)
	disk := filepath.Join(t.TempDir(), "ext4")
	mustWrite(t, disk, nil)
	if err := os.Truncate(disk, 64<<20); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, disk)
	run(t, "mkfs.ext4", "-q", "-F", dev)
	src := t.TempDir()
	if err := unix.Mount(dev, src, "ext4", 0, ""); err != nil {
		t.Skipf("mount ext4: %v", err)
	}
	names := []string{"dsync.vhd", "sync.vhd", "fsync.vhd", "fdatasync.vhd"}
	for _, name := range names {
		mustWrite(t, filepath.Join(src, name), make([]byte, 1<<20))
	}
	unix.Sync()
	m := newStoreAt(t, src)
	for _, name := range names {
		writeSynced(t, m.path(name))
	}
	m.vols.check(t) // afterwards nothing can be read
	powerCut(t, src)
	if err := m.srv.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount(src, 0); err != nil {
		t.Fatal(err)
	}
	after := t.TempDir()
	mountDevice(t, dev, after)
	for _, name := range names {
		got, err := os.ReadFile(filepath.Join(after, name))
		if err != nil || len(got) != 1<<20 || binary.LittleEndian.Uint64(got[5000:]) != 0x1122334455667788 {
			t.Errorf("%s: lost: %d bytes, %v", name, len(got), err)
		}
	}
}

func writeSynced(t testing.TB, name string) {
	t.Helper()
	flags := map[string]int{"dsync.vhd": unix.O_DSYNC, "sync.vhd": unix.O_SYNC}
	fd, err := unix.Open(name, unix.O_RDWR|flags[filepath.Base(name)], 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], 0x1122334455667788)
	if _, err := unix.Pwrite(fd, b[:], 5000); err != nil {
		t.Fatal(err)
	}
	switch filepath.Base(name) {
	case "fsync.vhd":
		err = unix.Fsync(fd)
	case "fdatasync.vhd":
		err = unix.Fdatasync(fd)
	}
	if err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// TestFullStoreIsTheGuestsENOSPC: a hypervisor stops its guest on ENOSPC and lets it go on when there is room; any other
// error would be one of the disk.
func TestFullStoreIsTheGuestsENOSPC(t *testing.T) {
	needFUSE(t)
	file := filepath.Join(t.TempDir(), "ext4")
	mustWrite(t, file, nil)
	if err := os.Truncate(file, 16<<20); err != nil {
		t.Fatal(err)
	}
	dev := loopDevice(t, file)
	run(t, "mkfs.ext4", "-q", "-F", "-m", "0", dev)
	src := t.TempDir()
	mountDevice(t, dev, src)
	mustWrite(t, filepath.Join(src, "ballast"), make([]byte, 4<<20))
	m := newStoreAt(t, src)
	f := open(t, m.path("disk.raw"), os.O_RDWR|os.O_CREATE)
	if err := f.Truncate(64 << 20); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, "allocate", unix.Fallocate(int(f.Fd()), 0, 0, 64<<20), unix.ENOSPC)
	off, block := int64(0), bytes.Repeat([]byte{1}, 256<<10)
	var err error
	for err == nil {
		var n int
		n, err = f.WriteAt(block, off)
		off += int64(n)
	}
	wantErrno(t, "write", err, unix.ENOSPC)
	_, err = unix.Pwritev2(int(f.Fd()), [][]byte{block}, 40<<20, unix.RWF_DSYNC)
	wantErrno(t, "synced write", err, unix.ENOSPC)
	if _, err := f.WriteAt(block[:4096], 0); err != nil {
		t.Errorf("a write to what has room: %v", err)
	}
	if err := os.Remove(m.path("ballast")); err != nil {
		t.Fatal(err)
	}
	unix.Sync() // its blocks are free when that is committed
	if n, err := f.WriteAt(block, 40<<20); n != len(block) || err != nil {
		t.Errorf("with room again: %d, %v", n, err)
	}
	if err := f.Sync(); err != nil {
		t.Errorf("fsync with room again: %v", err)
	}
}
