package fs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"unsafe"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// TestAppendersLoseNothing: several descriptors with O_APPEND at once; each record is there once and whole.
func TestAppendersLoseNothing(t *testing.T) {
	const writers, records, size = 4, 100, 96
	m := newTestStore(t)
	for _, name := range []string{"disk.raw", "log"} {
		mustWrite(t, m.path(name), nil)
		var all sync.WaitGroup
		for w := range writers {
			f := open(t, m.path(name), os.O_WRONLY|os.O_APPEND)
			all.Go(func() {
				for i := range records {
					record := bytes.Repeat(binary.LittleEndian.AppendUint32(nil, uint32(w*records+i+1)), size/4)
					if _, err := f.Write(record); err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		got, err := os.ReadFile(m.backing(name))
		if err != nil || len(got) != writers*records*size {
			t.Fatalf("%s: %d bytes, want %d, %v", name, len(got), writers*records*size, err)
		}
		seen := map[uint32]bool{}
		for ; len(got) > 0; got = got[size:] {
			number := binary.LittleEndian.Uint32(got)
			if !bytes.Equal(got[:size], bytes.Repeat(got[:4], size/4)) || seen[number] {
				t.Errorf("%s: record %d is torn or twice there", name, number)
			}
			seen[number] = true
		}
	}
}

func alignedBuffer(n int) []byte {
	b := make([]byte, n+4096)
	skip := 4096 - int(uintptr(unsafe.Pointer(&b[0]))%4096)
	return b[skip : skip+n]
}

// TestDirectIOIsTracked: O_DIRECT of any alignment the kernel lets through, mixed with buffered I/O.
func TestDirectIOIsTracked(t *testing.T) {
	m := newTestStore(t)
	for _, name := range []string{"disk.raw", "note"} {
		mustWrite(t, m.path(name), make([]byte, 64<<10))
		direct, err := unix.Open(m.path(name), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(direct)
		m.forgetChanges()
		buf := alignedBuffer(8192)
		copy(buf, pattern(8192))
		if n, err := unix.Pwrite(direct, buf, 4096); n != len(buf) || err != nil {
			t.Fatalf("%s: %d, %v", name, n, err)
		}
		buffered := open(t, m.path(name), os.O_RDWR)
		got := make([]byte, 8192)
		if _, err := buffered.ReadAt(got, 4096); err != nil || !bytes.Equal(got, buf) {
			t.Errorf("%s: a buffered read does not see it, %v", name, err)
		}
		if _, err := buffered.WriteAt([]byte("buffered"), 5000); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Pread(direct, buf, 4096); n != len(buf) || err != nil || string(buf[5000-4096:][:8]) != "buffered" {
			t.Errorf("%s: a direct read does not see a buffered write: %d, %v", name, n, err)
		}
		if name == "disk.raw" {
			m.vols.recorder(t, name).wantChanges(t, extent.Change{Kind: extent.Write, Off: 4096, Len: 8192}, extent.Change{Kind: extent.Write, Off: 5000, Len: 8})
		}
	}
}

// TestOpenOfARemovedFile: by its name it is gone; by a descriptor it can be opened again, and is the disk it was.
func TestOpenOfARemovedFile(t *testing.T) {
	m := newTestStore(t)
	for _, name := range []string{"disk.raw", "note"} {
		mustWrite(t, m.path(name), []byte("data"))
		f := open(t, m.path(name), os.O_RDWR)
		if err := os.Remove(m.path(name)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Open(m.path(name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: open by name: %v", name, err)
		}
		m.forgetChanges()
		again := open(t, "/proc/self/fd/"+strconv.Itoa(int(f.Fd())), os.O_RDWR)
		if _, err := again.WriteAt([]byte("DA"), 0); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		got := make([]byte, 4)
		if _, err := f.ReadAt(got, 0); err != nil || string(got) != "DAta" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if name == "disk.raw" {
			m.vols.recorder(t, name).wantChanges(t, extent.Change{Kind: extent.Write, Len: 2})
		}
		if st, err := f.Stat(); err != nil || st.Size() != 4 {
			t.Errorf("%s: stat %v, %v", name, st, err)
		}
	}
}

// fallocModes are all modes of fallocate(2), sensible and not, and what a disk does with each.
var fallocModes = []struct {
	mode   uint32
	change []extent.Kind // what is announced for a range inside the file
	err    error
}{
	{0, nil, nil},
	{unix.FALLOC_FL_KEEP_SIZE, nil, nil},
	{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, []extent.Kind{extent.Discard}, nil},
	{unix.FALLOC_FL_PUNCH_HOLE, nil, unix.EOPNOTSUPP},
	{unix.FALLOC_FL_ZERO_RANGE, []extent.Kind{extent.Zero}, nil},
	{unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, []extent.Kind{extent.Zero}, nil},
	{unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE, nil, unix.EOPNOTSUPP},
	{unix.FALLOC_FL_COLLAPSE_RANGE, nil, unix.EOPNOTSUPP},
	{unix.FALLOC_FL_INSERT_RANGE, nil, unix.EOPNOTSUPP},
	{unix.FALLOC_FL_UNSHARE_RANGE, nil, unix.EOPNOTSUPP},
	{unix.FALLOC_FL_UNSHARE_RANGE | unix.FALLOC_FL_KEEP_SIZE, nil, unix.EOPNOTSUPP},
	{fallocWriteZeroes, nil, unix.EOPNOTSUPP},
	{0x1000, nil, unix.EOPNOTSUPP},
}

const fallocWriteZeroes = 0x80 // FALLOC_FL_WRITE_ZEROES of kernel 6.17

// TestI1_EveryFallocateModeIsTrackedOrRefused, through the kernel and below it, where a later kernel may let more
// through.
func TestI1_EveryFallocateModeIsTrackedOrRefused(t *testing.T) {
	needZeroRange(t)
	m := newTestStore(t)
	f := open(t, m.path("disk.vhd"), os.O_RDWR|os.O_CREATE)
	data := pattern(64 << 10)
	n := m.srv.store.tree.get(inode(t, m.backing("disk.vhd")))
	r := m.vols.recorder(t, "disk.vhd")
	for way, do := range map[string]func(mode uint32) error{
		"at the mount":     func(mode uint32) error { return unix.Fallocate(int(f.Fd()), mode, 8192, 4096) },
		"below the kernel": func(mode uint32) error { return n.fallocate(mode, 8192, 4096) },
	} {
		for _, c := range fallocModes {
			what := fmt.Sprintf("mode %#x %s", c.mode, way)
			mustWrite(t, f.Name(), data)
			r.takeChanges()
			if err := do(c.mode); !errors.Is(err, c.err) {
				t.Errorf("%s: %v, want %v", what, err, c.err)
			}
			want := bytes.Clone(data)
			if len(c.change) > 0 {
				clear(want[8192:12288])
			}
			if got, err := os.ReadFile(m.backing("disk.vhd")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: wrong bytes, %v", what, err)
			}
			changes := r.takeChanges()
			if len(changes) != len(c.change) {
				t.Errorf("%s: announced %+v", what, changes)
			}
			for i := range c.change {
				if (changes[i] != extent.Change{Kind: c.change[i], Off: 8192, Len: 4096}) {
					t.Errorf("%s: announced %+v", what, changes)
				}
			}
		}
	}
}

// childCoherence maps args[0], 64 KiB of zeros, and mixes the mapping with every other way to its bytes. It prints what
// is not as it must be.
func childCoherence(args []string) error {
	fd, err := unix.Open(args[0], unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	direct, err := unix.Open(args[0], unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p, err := unix.Mmap(fd, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	buf := alignedBuffer(4096)
	expect := func(what string, got, want byte) {
		if got != want {
			err = errors.Join(err, fmt.Errorf("%s: %#x, want %#x", what, got, want))
		}
	}
	do := func(_ int, e error) { err = errors.Join(err, e) }
	p[100] = 0x11
	do(unix.Pread(fd, buf, 0))
	expect("a read after a store", buf[100], 0x11)
	p[4096] = 0x22
	do(unix.Pread(direct, buf, 4096))
	expect("a direct read after a store", buf[0], 0x22)
	do(unix.Pwrite(fd, []byte{0x33}, 200))
	expect("a mapping after a write", p[200], 0x33)
	expect("the store before it", p[100], 0x11)
	for i := range buf {
		buf[i] = 0x44
	}
	do(unix.Pwrite(direct, buf, 8192))
	expect("a mapping after a direct write", p[8192], 0x44)
	do(0, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 8192, 4096))
	expect("a mapping after a punch", p[8192], 0)
	p[12288] = 0x55
	do(0, unix.Ftruncate(fd, 12289))
	do(0, unix.Ftruncate(fd, 64<<10))
	expect("what a shrink left", p[12288], 0x55)
	expect("what a shrink cut off", p[12289], 0)
	p[20000] = 0x66
	return errors.Join(err, unix.Msync(p, unix.MS_SYNC), unix.Munmap(p))
}

// TestI1_SharedMappingsAreTrackedAndCoherent: a mapping, reads, writes, O_DIRECT, a punch and a truncate see each other,
// and what was stored is announced and in the backing file after msync.
func TestI1_SharedMappingsAreTrackedAndCoherent(t *testing.T) {
	for _, name := range []string{"disk.raw", "note"} {
		t.Run(name, func(t *testing.T) {
			if name != "note" {
				needSharedMappings(t)
			}
			m := newTestStore(t)
			mustWrite(t, m.path(name), make([]byte, 64<<10))
			m.forgetChanges()
			runChild(t, "coherence", m.path(name))
			got, err := os.ReadFile(m.backing(name))
			if err != nil || got[100] != 0x11 || got[200] != 0x33 || got[12288] != 0x55 || got[20000] != 0x66 {
				t.Errorf("%v: %#x %#x %#x %#x", err, got[100], got[200], got[12288], got[20000])
			}
			if name == "note" {
				return
			}
			seen := announced(m.vols.recorder(t, name).takeChanges())
			for _, off := range []int64{100, 200, 4096, 8192, 12288, 20000} {
				if !seen.Contains(extent.Cover[extent.FileBlock](off, 1)) {
					t.Errorf("nothing was announced at %d", off)
				}
			}
		})
	}
}

// TestI1_RenamedToAnImageStaysCoherent: who opened the file before goes through the kernel's cache, who opens it after
// does not; both see each other's writes and mappings, and all are announced.
func TestI1_RenamedToAnImageStaysCoherent(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("download.part"), make([]byte, 64<<10))
	before := open(t, m.path("download.part"), os.O_RDWR)
	got := make([]byte, 64<<10)
	if _, err := before.ReadAt(got, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(m.path("download.part"), m.path("disk.vhd")); err != nil {
		t.Fatal(err)
	}
	after := open(t, m.path("disk.vhd"), os.O_RDWR)
	for i := range int64(8) {
		from, to := before, after
		if i%2 == 1 {
			from, to = to, from
		}
		data := bytes.Repeat([]byte{byte(i + 1)}, 5000)
		if _, err := from.WriteAt(data, i*6000); err != nil {
			t.Fatal(err)
		}
		if _, err := to.ReadAt(got[:5000], i*6000); err != nil || !bytes.Equal(got[:5000], data) {
			t.Errorf("write %d is not seen by the other, %v", i, err)
		}
	}
	told := announced(m.vols.recorder(t, "disk.vhd").takeChanges())
	for i := range int64(8) {
		if !told.Contains(extent.Cover[extent.FileBlock](i*6000, 5000)) {
			t.Errorf("write %d was not announced: %v", i, told.Ranges())
		}
	}
	needSharedMappings(t)
	runChild(t, "mmap", m.path("disk.vhd"), "stored")
	for _, f := range []*os.File{before, after} {
		if _, err := f.ReadAt(got[:6], 0); err != nil || string(got[:6]) != "stored" {
			t.Errorf("what was stored is not seen: %q, %v", got[:6], err)
		}
	}
}
