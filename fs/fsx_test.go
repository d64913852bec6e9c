package fs

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

var (
	fsxSeed = flag.Uint64("fsx.seed", 0, "seed of the randomized file test; 0: a new one")
	fsxOps  = flag.Int("fsx.ops", 1500, "operations of the randomized file test, per file")
)

const (
	fsxMax   = 256 << 10 // bytes a file grows to
	fsxAlign = 4096
)

// TestRandomOperationsEqualAPlainFile does the same on a disk at the mount and on a plain file, and wants the same
// answers and bytes. The recorder checks meanwhile that every change was announced.
func TestRandomOperationsEqualAPlainFile(t *testing.T) {
	seed := *fsxSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for _, name := range []string{"disk.vhd", "other.txt"} {
		t.Run(name, func(t *testing.T) {
			m := newTestStore(t)
			t.Logf("repeat with: -run %s -fsx.seed %d -fsx.ops %d", t.Name(), seed, *fsxOps)
			runChild(t, "fsx", m.path(name), filepath.Join(t.TempDir(), "plain"), strconv.FormatUint(seed, 10), strconv.Itoa(*fsxOps))
		})
	}
}

// fsx is one run of the tool: two files that must stay equal.
type fsx struct {
	rng   *rand.Rand
	names [2]string
	files [2]*os.File
	log   []string
}

func childFsx(args []string) error {
	seed, err1 := strconv.ParseUint(args[2], 10, 64)
	ops, err2 := strconv.Atoi(args[3])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	x := &fsx{rng: rand.New(rand.NewPCG(seed, 0)), names: [2]string{args[0], args[1]}}
	if err := x.reopen(); err != nil {
		return err
	}
	for i := range ops {
		if err := x.step(); err != nil {
			for _, l := range x.log[max(0, len(x.log)-30):] {
				fmt.Println(l)
			}
			return fmt.Errorf("operation %d: %w", i, err)
		}
	}
	return x.compare()
}

func (x *fsx) reopen() error {
	for i, name := range x.names {
		if x.files[i] != nil {
			x.files[i].Close()
		}
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		x.files[i] = f
	}
	return nil
}

// both does an operation on both files and wants the same outcome.
func (x *fsx) both(what string, do func(f *os.File) ([]byte, error)) error {
	x.log = append(x.log, what)
	got, err := do(x.files[0])
	want, wantErr := do(x.files[1])
	var e, w unix.Errno
	errors.As(err, &e)
	errors.As(wantErr, &w)
	if (err == nil) != (wantErr == nil) || e != w {
		return fmt.Errorf("%s: %v, plain file: %v", what, err, wantErr)
	}
	if !bytes.Equal(got, want) {
		return fmt.Errorf("%s: other bytes than the plain file (%d, %d)", what, len(got), len(want))
	}
	return nil
}

func (x *fsx) step() error {
	off := x.rng.Int64N(fsxMax)
	n := min(1+x.rng.Int64N(64<<10), fsxMax-off)
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(x.rng.Uint32())
	}
	steps := []func() error{
		func() error { return x.read(off, n) },
		func() error { return x.write("write", data, off, 0) },
		func() error { return x.write("dsync write", data, off, unix.RWF_DSYNC) },
		func() error { return x.truncate(off) },
		func() error { return x.fallocate("punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n) },
		func() error { return x.fallocate("zero", unix.FALLOC_FL_ZERO_RANGE, off, n) },
		func() error {
			return x.fallocate("zero, size kept", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		},
		func() error { return x.fallocate("allocate", 0, off, n) },
		func() error { x.log = append(x.log, "reopen"); return x.reopen() },
		func() error { return x.direct(off, n) },
		func() error { return x.mapped(off, data) },
		func() error { return x.copyRange(off, n) },
		func() error { return x.appendAtEnd(data) },
		func() error { return x.both("fsync", func(f *os.File) ([]byte, error) { return nil, f.Sync() }) },
		x.compare,
	}
	return steps[x.rng.IntN(len(steps))]()
}

func (x *fsx) read(off, n int64) error {
	return x.both(fmt.Sprintf("read %d+%d", off, n), func(f *os.File) ([]byte, error) {
		b := make([]byte, n)
		k, err := unix.Pread(int(f.Fd()), b, off)
		return b[:max(k, 0)], err
	})
}

func (x *fsx) write(what string, data []byte, off int64, flags int) error {
	return x.both(fmt.Sprintf("%s %d+%d", what, off, len(data)), func(f *os.File) ([]byte, error) {
		k, err := unix.Pwritev2(int(f.Fd()), [][]byte{data}, off, flags)
		return data[:max(k, 0)], err
	})
}

func (x *fsx) appendAtEnd(data []byte) error {
	st, err := x.files[1].Stat()
	if err != nil || st.Size()+int64(len(data)) > fsxMax {
		return err
	}
	return x.both(fmt.Sprintf("append %d", len(data)), func(f *os.File) ([]byte, error) {
		g, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		_, err = g.Write(data)
		return nil, errors.Join(err, g.Close())
	})
}

func (x *fsx) truncate(size int64) error {
	return x.both(fmt.Sprintf("truncate %d", size), func(f *os.File) ([]byte, error) { return nil, f.Truncate(size) })
}

func (x *fsx) fallocate(what string, mode uint32, off, n int64) error {
	return x.both(fmt.Sprintf("%s %d+%d", what, off, n), func(f *os.File) ([]byte, error) {
		return nil, unix.Fallocate(int(f.Fd()), mode, off, n)
	})
}

// direct writes and reads aligned blocks with O_DIRECT.
func (x *fsx) direct(off, n int64) error {
	off = off / fsxAlign * fsxAlign
	buf := aligned(max(n/fsxAlign, 1) * fsxAlign)
	fill := byte(x.rng.Uint32())
	return x.both(fmt.Sprintf("direct %d+%d", off, len(buf)), func(f *os.File) ([]byte, error) {
		fd, err := unix.Open(f.Name(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		for i := range buf {
			buf[i] = fill
		}
		if _, err := unix.Pwrite(fd, buf, off); err != nil {
			return nil, err
		}
		clear(buf)
		k, err := unix.Pread(fd, buf, off)
		return bytes.Clone(buf[:max(k, 0)]), err
	})
}

func aligned(n int64) []byte {
	b := make([]byte, n+fsxAlign)
	skip := fsxAlign - int(uintptr(unsafe.Pointer(&b[0]))%fsxAlign)
	return b[skip : int64(skip)+n]
}

// mapped writes through a shared mapping, as far as the file reaches, and syncs it.
func (x *fsx) mapped(off int64, data []byte) error {
	return x.both(fmt.Sprintf("map %d+%d", off, len(data)), func(f *os.File) ([]byte, error) {
		st, err := f.Stat()
		if err != nil || st.Size() <= off {
			return nil, err
		}
		n := min(int64(len(data)), st.Size()-off)
		base := off / fsxAlign * fsxAlign
		p, err := unix.Mmap(int(f.Fd()), base, int(off-base+n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		old := bytes.Clone(p[off-base:])
		copy(p[off-base:], data[:n])
		return old, errors.Join(unix.Msync(p, unix.MS_SYNC), unix.Munmap(p))
	})
}

func (x *fsx) copyRange(off, n int64) error {
	to := x.rng.Int64N(fsxMax)
	return x.both(fmt.Sprintf("copy_file_range %d+%d to %d", off, n, to), func(f *os.File) ([]byte, error) {
		from, dest := off, to
		_, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &dest, int(n), 0)
		return nil, err
	})
}

func (x *fsx) compare() error {
	return x.both("compare", func(f *os.File) ([]byte, error) {
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(f.Name())
		if err == nil && st.Size() != int64(len(b)) {
			err = fmt.Errorf("%s: size %d, read %d", f.Name(), st.Size(), len(b))
		}
		return b, err
	})
}

// childMmap writes args[1] through a shared mapping to the file args[0], without msync.
func childMmap(args []string) error {
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	p, err := unix.Mmap(int(f.Fd()), 0, len(args[1]), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(p, args[1])
	return unix.Munmap(p)
}

// TestMappedWritesArriveAtClose: what a mapping changed is in the backing file, and announced, when the last user has
// closed it.
func TestMappedWritesArriveAtClose(t *testing.T) {
	m := newTestStore(t)
	mustWrite(t, m.path("disk.vhd"), make([]byte, 8192))
	r := m.vols.recorder(t, "disk.vhd")
	r.takeChanges()
	runChild(t, "mmap", m.path("disk.vhd"), "through the mapping")
	if got, err := os.ReadFile(m.backing("disk.vhd")); err != nil || !bytes.HasPrefix(got, []byte("through the mapping")) {
		t.Errorf("%q, %v", got[:20], err)
	}
	if len(r.takeChanges()) == 0 {
		t.Error("no change was announced")
	}
}
