package fsx

import (
	"bytes"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// mappable asks whether the file can be mapped shared: below kernel 6.6 a disk at the mount cannot (ENODEV).
func mappable(f *os.File) (bool, error) {
	m, err := unix.Mmap(int(f.Fd()), 0, page, unix.PROT_READ, unix.MAP_SHARED)
	if errors.Is(err, unix.ENODEV) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, unix.Munmap(m)
}

// within chooses a range inside the file; n is 0 if it is empty.
func (r *run) within(p *pair) (off, n int64, err error) {
	size, err := p.size()
	off, n = r.span()
	if err != nil || size == 0 {
		return 0, 0, err
	}
	off %= size
	return off, min(n, size-off), nil
}

// mapped reads and stores through a shared mapping that is gone at once. Without a sync it is for the kernel to make the
// next read see it.
func (r *run) mapped(p *pair, sync bool) error {
	off, n, err := r.within(p)
	if err != nil || n == 0 || !p.maps {
		return err
	}
	data := r.bytes(n)
	p.dirty = p.dirty || !sync
	return r.both(p, func(side int, f *os.File) ([]byte, error) {
		base := off / page * page
		m, err := unix.Mmap(int(f.Fd()), base, int(off-base+n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, err
		}
		old := bytes.Clone(m[off-base:])
		copy(m[off-base:], data)
		if sync && side == mount {
			err = unix.Msync(m, unix.MS_SYNC)
		}
		return old, errors.Join(err, unix.Munmap(m))
	}, "map %d+%d, sync %v", off, n, sync)
}

// liveMap reads or stores through a mapping that stays over other operations: what they change must be seen in it, and
// what is stored in it must be seen by them.
func (r *run) liveMap(p *pair) error {
	off, n, err := r.within(p)
	if err != nil || n == 0 || !p.maps {
		return err
	}
	var data []byte
	if r.rng.IntN(2) == 0 {
		data = r.bytes(n)
		p.dirty = true
	}
	return r.both(p, func(side int, f *os.File) ([]byte, error) {
		if p.live[side] == nil {
			m, err := unix.Mmap(int(f.Fd()), 0, int((r.Max+page-1)/page*page), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return nil, err
			}
			p.live[side] = m
		}
		old := bytes.Clone(p.live[side][off : off+n])
		copy(p.live[side][off:], data)
		return old, nil
	}, "live map %d+%d, store %d", off, n, len(data))
}
