package fs

import (
	"bytes"
	"os"
	"os/exec"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// announced adds up what changes cover; a truncate covers nothing here.
func announced(changes []extent.Change) extent.Set[extent.FileBlock] {
	var s extent.Set[extent.FileBlock]
	for _, c := range changes {
		if c.Kind != extent.Truncate {
			s.Add(extent.Cover[extent.FileBlock](c.Off, c.Len))
		}
	}
	return s
}

// TestI1_CopyFileRangeIsTracked: between disks, from a disk to a file, from a file to a disk. What is copied to is
// announced, and nothing else.
func TestI1_CopyFileRangeIsTracked(t *testing.T) {
	const off, to, n = 4096, 3 * 4096, 200 << 10
	data := pattern(300 << 10)
	for _, c := range [][2]string{{"a.vhd", "b.raw"}, {"a.vhd", "note"}, {"note", "a.vhd"}} {
		t.Run(c[0]+" to "+c[1], func(t *testing.T) {
			m := newTestStore(t)
			mustWrite(t, m.path(c[0]), data)
			mustWrite(t, m.path(c[1]), make([]byte, len(data)))
			src, dst := open(t, m.path(c[0]), os.O_RDONLY), open(t, m.path(c[1]), os.O_RDWR)
			m.forgetChanges()
			from, dest := int64(off), int64(to)
			for left := n; left > 0; {
				k, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &dest, left, 0)
				if err != nil || k == 0 {
					t.Fatalf("%d, %v", k, err)
				}
				left -= k
			}
			want := make([]byte, len(data))
			copy(want[to:], data[off:off+n])
			if got, err := os.ReadFile(m.backing(c[1])); err != nil || !bytes.Equal(got, want) {
				t.Errorf("the copy differs, %v", err)
			}
			for _, r := range m.vols.all() {
				got := announced(r.takeChanges())
				covered := got.Contains(extent.Cover[extent.FileBlock](to, n))
				if r.name == c[1] && (!covered || got.Blocks() != n/extent.BlockSize) {
					t.Errorf("%s: announced %v", r.name, got.Ranges())
				}
				if r.name == c[0] && got.Blocks() != 0 {
					t.Errorf("%s is only read, announced %v", r.name, got.Ranges())
				}
			}
		})
	}
}

func (m *testStore) forgetChanges() {
	for _, r := range m.vols.all() {
		r.takeChanges()
	}
}

// all returns the recorders, in no order.
func (v *recordingVolumes) all() []*recorder {
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []*recorder
	for _, r := range v.mu.recorders {
		list = append(list, r)
	}
	return list
}

// TestCpCopies: cp tries a reflink, then copy_file_range, then reads and writes; --reflink=always has no way out.
func TestCpCopies(t *testing.T) {
	needTools(t, "cp")
	m := newTestStore(t)
	data := pattern(3 << 20)
	copy(data[1<<20:2<<20], make([]byte, 1<<20))
	mustWrite(t, m.path("a.vhd"), data)
	for name, args := range map[string][]string{
		"auto.vhd": {"--reflink=auto"}, "sparse.vhd": {"--sparse=always"}, "note": {"--reflink=auto", "--preserve=all"},
	} {
		run(t, "cp", append(args, m.path("a.vhd"), m.path(name))...)
		if got, err := os.ReadFile(m.backing(name)); err != nil || !bytes.Equal(got, data) {
			t.Errorf("%s: the copy differs, %v", name, err)
		}
	}
	if out, err := exec.Command("cp", "--reflink=always", m.path("a.vhd"), m.path("b.vhd")).CombinedOutput(); err == nil {
		t.Errorf("a reflink at the mount: %s", out)
	}
}

// TestIoctlsAreRefused: those that would write around the shim or share blocks, with errors that programs know.
func TestIoctlsAreRefused(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), pattern(64<<10))
	mustWrite(t, m.path("b.vhd"), make([]byte, 64<<10))
	a, b := open(t, m.path("a.vhd"), os.O_RDWR), open(t, m.path("b.vhd"), os.O_RDWR)
	m.forgetChanges()
	fd := int(b.Fd())
	wantErrno(t, "FICLONE", unix.IoctlFileClone(fd, int(a.Fd())), unix.EOPNOTSUPP)
	wantErrno(t, "FICLONERANGE", unix.IoctlFileCloneRange(fd, &unix.FileCloneRange{Src_fd: int64(a.Fd()), Src_length: 4096}), unix.EOPNOTSUPP)
	dedupe := unix.FileDedupeRange{Src_length: 4096, Info: []unix.FileDedupeRangeInfo{{Dest_fd: int64(fd)}}}
	if err := unix.IoctlFileDedupeRange(int(a.Fd()), &dedupe); err == nil && dedupe.Info[0].Status >= 0 {
		t.Errorf("FIDEDUPERANGE: status %d", dedupe.Info[0].Status)
	}
	const fitrim, ext4Shutdown, ext4MoveExt = 0xc0185879, fsIocShutdown, 0xc028660f
	for name, request := range map[string]uint{"FS_IOC_GETFLAGS": unix.FS_IOC_GETFLAGS, "FITRIM": fitrim, "EXT4_IOC_SHUTDOWN": ext4Shutdown, "EXT4_IOC_MOVE_EXT": ext4MoveExt} {
		err := unix.IoctlSetPointerInt(fd, request, 0)
		wantErrno(t, name, err, unix.ENOTTY)
	}
	for _, r := range m.vols.all() {
		r.wantChanges(t)
	}
	if got, err := os.ReadFile(m.backing("b.vhd")); err != nil || !bytes.Equal(got, make([]byte, 64<<10)) {
		t.Errorf("a refused ioctl changed the disk, %v", err)
	}
}

// TestSeekFindsHoles: data and holes at the mount are those of the backing file.
func TestSeekFindsHoles(t *testing.T) {
	m := newTestStore(t)
	for _, name := range []string{"a.vhd", "note"} {
		f := open(t, m.path(name), os.O_RDWR|os.O_CREATE)
		if err := f.Truncate(4 << 20); err != nil {
			t.Fatal(err)
		}
		for _, off := range []int64{0, 1 << 20, 3<<20 + 4096} {
			if _, err := f.WriteAt(pattern(64<<10), off); err != nil {
				t.Fatal(err)
			}
		}
		back := open(t, m.backing(name), os.O_RDONLY)
		for _, whence := range []int{unix.SEEK_DATA, unix.SEEK_HOLE} {
			for off := int64(0); off <= 4<<20; off += 32 << 10 {
				got, err := unix.Seek(int(f.Fd()), off, whence)
				want, wantErr := unix.Seek(int(back.Fd()), off, whence)
				if got != want || err != wantErr {
					t.Errorf("%s, whence %d from %d: %d, %v, behind the mount %d, %v", name, whence, off, got, err, want, wantErr)
				}
			}
		}
		if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); at != 0 || err != nil {
			t.Errorf("%s: data at %d, %v", name, at, err)
		}
		if at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); at == 0 || at > 1<<20 || err != nil {
			t.Errorf("%s: hole at %d, %v", name, at, err)
		}
	}
}

// TestStatfsAndStatxAreTheSources: free space, and the time of birth.
func TestStatfsAndStatxAreTheSources(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("a.vhd"), pattern(5000))
	var seen, behind unix.Statfs_t
	if err := unix.Statfs(m.path("a.vhd"), &seen); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(m.backing("a.vhd"), &behind); err != nil {
		t.Fatal(err)
	}
	if seen.Bsize != behind.Bsize || seen.Blocks != behind.Blocks || seen.Files != behind.Files || seen.Namelen != behind.Namelen || seen.Bavail == 0 {
		t.Errorf("at the mount %+v, behind it %+v", seen, behind)
	}
	const mask = unix.STATX_BASIC_STATS | unix.STATX_BTIME
	var x, y unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, m.path("a.vhd"), 0, mask, &x); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statx(unix.AT_FDCWD, m.backing("a.vhd"), 0, mask, &y); err != nil {
		t.Fatal(err)
	}
	if x.Size != 5000 || x.Ino != y.Ino || x.Mode != y.Mode || x.Uid != y.Uid || x.Mtime != y.Mtime || x.Nlink != 1 || x.Blocks != y.Blocks {
		t.Errorf("at the mount %+v, behind it %+v", x, y)
	}
	if x.Mask&unix.STATX_BTIME == 0 {
		t.Log("no time of birth: that needs kernel 6.6")
	} else if x.Btime != y.Btime {
		t.Errorf("born %+v, behind the mount %+v", x.Btime, y.Btime)
	}
}
