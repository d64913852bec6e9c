package fsx

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

const page = 4096

// operation is one thing to do. Those that wait for a disk have little weight.
type operation struct {
	name   string
	weight int
	do     func(r *run, p *pair) error
}

var operations = []operation{
	{"read", 20, func(r *run, p *pair) error { return r.read(p) }},
	{"write", 20, func(r *run, p *pair) error { return r.write(p, 0) }},
	{"write dsync", 1, func(r *run, p *pair) error { return r.write(p, unix.RWF_DSYNC) }},
	{"append", 6, func(r *run, p *pair) error { return r.appendAtEnd(p) }},
	{"direct", 12, func(r *run, p *pair) error { return r.direct(p) }},
	{"truncate", 6, func(r *run, p *pair) error { return r.truncate(p) }},
	{"open truncating", 1, func(r *run, p *pair) error { return r.openTruncating(p) }},
	{"punch", 6, func(r *run, p *pair) error {
		return r.fallocate(p, "punch", unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE)
	}},
	{"zero", 4, func(r *run, p *pair) error { return r.fallocate(p, "zero", unix.FALLOC_FL_ZERO_RANGE) }},
	{"zero, size kept", 4, func(r *run, p *pair) error {
		return r.fallocate(p, "zero, size kept", unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE)
	}},
	{"allocate", 3, func(r *run, p *pair) error { return r.fallocate(p, "allocate", 0) }},
	{"allocate, size kept", 3, func(r *run, p *pair) error { return r.fallocate(p, "allocate, size kept", unix.FALLOC_FL_KEEP_SIZE) }},
	{"refused", 2, func(r *run, p *pair) error { return r.refused(p) }},
	{"copy", 8, func(r *run, p *pair) error { return r.copyRange(p) }},
	{"map and sync", 1, func(r *run, p *pair) error { return r.mapped(p, true) }},
	{"map", 8, func(r *run, p *pair) error { return r.mapped(p, false) }},
	{"live map", 16, func(r *run, p *pair) error { return r.liveMap(p) }},
	{"unmap", 1, func(r *run, p *pair) error { r.note("%s: unmap", p.names[mount]); return p.unmap() }},
	{"seek", 6, func(r *run, p *pair) error { return r.seek(p) }},
	{"reopen", 4, func(r *run, p *pair) error { return r.reopen(p, 0) }},
	{"fsync", 1, func(r *run, p *pair) error { return r.sync(p, "fsync", (*os.File).Sync) }},
	{"fdatasync", 1, func(r *run, p *pair) error {
		return r.sync(p, "fdatasync", func(f *os.File) error { return unix.Fdatasync(int(f.Fd())) })
	}},
	{"compare", 2, func(r *run, p *pair) error { return r.compare(p) }},
}

var totalWeight = func() (sum int) {
	for _, o := range operations {
		sum += o.weight
	}
	return sum
}()

// skip takes back the count of an operation that cannot be done now.
func (r *run) skip(name string) error {
	r.stats[name]--
	return nil
}

// span chooses a range that ends within Max: often small, often on pages.
func (r *run) span() (off, n int64) {
	off = r.rng.Int64N(r.Max)
	n = 1 + r.rng.Int64N([]int64{64, page, 64 << 10}[r.rng.IntN(3)])
	if r.rng.IntN(3) == 0 {
		off, n = off/page*page, (n+page-1)/page*page
	}
	return off, min(n, r.Max-off)
}

func (r *run) bytes(n int64) []byte {
	b := make([]byte, n)
	_, _ = r.data.Read(b) // documented never to fail
	return b
}

func (r *run) read(p *pair) error {
	off, n := r.span()
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		b := make([]byte, n)
		k, err := unix.Pread(int(f.Fd()), b, off)
		return b[:max(k, 0)], err
	}, "read %d+%d", off, n)
}

// write syncs at the mount only: the oracle needs to be equal, not durable.
func (r *run) write(p *pair, flags int) error {
	off, n := r.span()
	data := r.bytes(n)
	return r.both(p, func(side int, f *os.File) ([]byte, error) {
		k, err := unix.Pwritev2(int(f.Fd()), [][]byte{data}, off, onlyAt(side, flags))
		return data[:max(k, 0)], err
	}, "write %d+%d flags %#x", off, n, flags)
}

func onlyAt(side, flags int) int {
	if side == plain {
		return 0
	}
	return flags
}

func (r *run) appendAtEnd(p *pair) error {
	_, n := r.span()
	size, err := p.size()
	if err != nil || size >= r.Max {
		return err
	}
	data := r.bytes(min(n, r.Max-size))
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		g, err := os.OpenFile(f.Name(), os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return nil, err
		}
		_, err = g.Write(data)
		return nil, errors.Join(err, g.Close())
	}, "append %d at %d", len(data), size)
}

// direct writes or reads whole pages with O_DIRECT.
func (r *run) direct(p *pair) error {
	off, n := r.span()
	off, n = off/page*page, max(n/page, 1)*page
	n = min(n, r.Max/page*page-off)
	if n <= 0 {
		return nil
	}
	buf, write := aligned(n), r.rng.IntN(2) == 0
	if write {
		copy(buf, r.bytes(n))
	}
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		fd, err := unix.Open(f.Name(), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		defer unix.Close(fd)
		if write {
			_, err := unix.Pwrite(fd, buf, off)
			return nil, err
		}
		k, err := unix.Pread(fd, buf, off)
		return append([]byte(nil), buf[:max(k, 0)]...), err
	}, "direct %d+%d, write %v", off, n, write)
}

func aligned(n int64) []byte {
	b := make([]byte, n+page)
	skip := page - int(uintptr(unsafe.Pointer(&b[0]))%page)
	return b[skip : int64(skip)+n]
}

func (r *run) truncate(p *pair) error {
	size := r.Min + r.rng.Int64N(r.Max-r.Min+1)
	byPath := r.rng.IntN(2) == 0
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		if byPath {
			return nil, os.Truncate(f.Name(), size)
		}
		return nil, f.Truncate(size)
	}, "truncate to %d, by path %v", size, byPath)
}

func (r *run) openTruncating(p *pair) error {
	if r.Min > 0 {
		return r.skip("open truncating")
	}
	return r.reopen(p, os.O_TRUNC)
}

func (r *run) reopen(p *pair, flags int) error {
	r.note("%s: reopen, flags %#x", p.names[mount], flags)
	if err := p.close(); err != nil {
		return err
	}
	p.dirty = false // a close writes back
	return p.open(flags)
}

func (r *run) fallocate(p *pair, what string, mode uint32) error {
	off, n := r.span()
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		return nil, unix.Fallocate(int(f.Fd()), mode, off, n)
	}, "%s %d+%d", what, off, n)
}

// refused wants those modes refused that would move what lies behind the range, and nothing changed by that.
func (r *run) refused(p *pair) error {
	mode := []uint32{unix.FALLOC_FL_COLLAPSE_RANGE, unix.FALLOC_FL_INSERT_RANGE, unix.FALLOC_FL_UNSHARE_RANGE}[r.rng.IntN(3)]
	r.note("%s: fallocate, mode %#x", p.names[mount], mode)
	if err := unix.Fallocate(int(p.files[mount].Fd()), mode, 0, page); !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("fallocate with mode %#x: %w, want %w", mode, err, unix.EOPNOTSUPP)
	}
	return nil
}

// copyRange copies from the file into any of them, itself included. A copy may be short: it goes on to the end.
func (r *run) copyRange(p *pair) error {
	off, n := r.span()
	into := r.pairs[r.rng.IntN(len(r.pairs))]
	to := r.rng.Int64N(r.Max)
	n = min(n, r.Max-to)
	return r.both(p, func(side int, f *os.File) ([]byte, error) {
		from, dest, end := off, to, to+n
		for dest < end {
			k, err := unix.CopyFileRange(int(f.Fd()), &from, int(into.files[side].Fd()), &dest, int(end-dest), 0)
			if err != nil || k == 0 {
				return nil, err
			}
		}
		return nil, nil
	}, "copy_file_range %d+%d to %s %d", off, n, into.names[mount], to)
}

// seek wants SEEK_DATA to skip zeros only. What was stored through a mapping and is not written back may lie in a hole.
func (r *run) seek(p *pair) error {
	off, _ := r.span()
	size, err := p.size()
	if err != nil {
		return err
	}
	if p.dirty || off >= size {
		return r.skip("seek")
	}
	r.note("%s: seek from %d", p.names[mount], off)
	to, err := unix.Seek(int(p.files[mount].Fd()), off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		to, err = size, nil
	}
	if err != nil || to < off || to > size {
		return fmt.Errorf("SEEK_DATA from %d of %d: %d, %w", off, size, to, err)
	}
	skipped := make([]byte, to-off)
	if _, err := p.files[plain].ReadAt(skipped, off); err != nil {
		return err
	}
	for i, b := range skipped {
		if b != 0 {
			return fmt.Errorf("SEEK_DATA from %d says %d, but there is data at %d", off, to, off+int64(i))
		}
	}
	return nil
}

func (r *run) sync(p *pair, what string, do func(*os.File) error) error {
	r.note("%s: %s", p.names[mount], what)
	for _, m := range p.live {
		if m == nil {
			continue
		}
		if err := unix.Msync(m, unix.MS_SYNC); err != nil {
			return fmt.Errorf("msync: %w", err)
		}
	}
	p.dirty = false
	return do(p.files[mount])
}

// compare reads both files whole, through new descriptors.
func (r *run) compare(p *pair) error {
	return r.both(p, func(_ int, f *os.File) ([]byte, error) {
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		b, err := os.ReadFile(f.Name())
		if err == nil && st.Size() != int64(len(b)) {
			err = fmt.Errorf("%s: size %d, read %d", f.Name(), st.Size(), len(b))
		}
		return b, err
	}, "compare")
}
