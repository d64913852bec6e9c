package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// GetAttr answers with the backing file's attributes.
func (s *store) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	return status(fillAttr(out, n))
}

// Statx answers for the time of birth, which GETATTR does not know; the kernel asks it for nothing else.
func (s *store) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	var st unix.Statx_t
	if err := unix.Statx(n.fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return status(err)
	}
	out.SetTimeout(cacheTime)
	out.FromStatx(&st)
	return fuse.OK
}

func fillAttr(out *fuse.AttrOut, n *node) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(n.fd, &st); err != nil {
		return err
	}
	out.SetTimeout(cacheTime)
	out.Attr.FromStat(&st)
	if n.hidden.Load() { // true for the rest of the node's life: it has no name that anybody may see
		out.Attr.Nlink = 0
	}
	return nil
}

// SetAttr changes owner, mode, size and times, in this order; the first error ends it. A size is a tracked change.
func (s *store) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	for _, set := range []func(*node, *fuse.SetAttrIn) error{setOwner, setMode, setSize, setTimes} {
		if err := set(n, in); err != nil {
			return status(err)
		}
	}
	return status(fillAttr(out, n))
}

func setOwner(n *node, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_UID|fuse.FATTR_GID) == 0 {
		return nil
	}
	uid, gid := -1, -1
	if v, ok := in.GetUID(); ok {
		uid = int(v)
	}
	if v, ok := in.GetGID(); ok {
		gid = int(v)
	}
	return unix.Fchownat(n.fd, "", uid, gid, unix.AT_EMPTY_PATH)
}

func setMode(n *node, in *fuse.SetAttrIn) error {
	mode, ok := in.GetMode()
	if !ok {
		return nil
	}
	return unix.Fchmodat(unix.AT_FDCWD, n.proc(), mode, 0)
}

func setSize(n *node, in *fuse.SetAttrIn) error {
	size, ok := in.GetSize()
	if !ok {
		return nil
	}
	return n.truncate(int64(size))
}

// truncate sets the size of the file, open or not. It leaves the shared descriptor alone: a truncate by path races with
// the last release, which nobody waits for, and the number may be another file's by then.
func (n *node) truncate(size int64) error {
	if size < 0 {
		return unix.EINVAL
	}
	return n.change(extent.Change{Kind: extent.Truncate, Off: size}, func() error {
		return unix.Truncate(n.proc(), size)
	})
}

func setTimes(n *node, in *fuse.SetAttrIn) error {
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) == 0 {
		return nil
	}
	ts := []unix.Timespec{
		timeFor(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
		timeFor(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
	}
	return unix.UtimesNanoAt(n.fd, "", ts, unix.AT_EMPTY_PATH)
}

func timeFor(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	return unix.Timespec{Sec: int64(sec), Nsec: int64(nsec)}
}

// StatFs reports the source's file system.
func (s *store) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(s.root.fd, &st); err != nil {
		return status(err)
	}
	out.FromStatfsT(&st)
	return fuse.OK
}
