package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// Fallocate allocates, punches holes and zeroes. Collapsing and inserting would move every byte behind: refused.
func (s *store) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	off, length := int64(in.Offset), int64(in.Length)
	if off < 0 || length <= 0 || off+length < 0 {
		return fuse.EINVAL
	}
	return status(n.fallocate(in.Mode, off, length))
}

// fallocate asks for the size first; the kernel holds the inode's lock, so it does not change meanwhile.
func (n *node) fallocate(mode uint32, off, length int64) error {
	size, err := n.size()
	if err != nil {
		return err
	}
	wr := int(n.wr.Load())
	do := func() error { return unix.Fallocate(wr, mode, off, length) }
	switch mode {
	case unix.FALLOC_FL_KEEP_SIZE: // changes no byte that can be read
		return do()
	case 0:
		if off+length <= size {
			return do()
		}
		return n.change(extent.Change{Kind: extent.Truncate, Off: off + length}, do)
	case unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE:
		return n.changeWithin(extent.Discard, size, off, length, do)
	case unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE:
		return n.changeWithin(extent.Zero, size, off, length, do)
	case unix.FALLOC_FL_ZERO_RANGE:
		// Two changes, one after the other: a tracker may wait in Begin for the passes before it. The zeros come first,
		// or a file system that has no such mode would leave a file that has grown behind its refusal.
		if err := n.fallocate(mode|unix.FALLOC_FL_KEEP_SIZE, off, length); err != nil || off+length <= size {
			return err
		}
		return n.truncate(off + length)
	}
	return unix.EOPNOTSUPP
}

// changeWithin tells of the part of the range that lies within the file: behind its end nothing can be read, and a
// guest may name any length.
func (n *node) changeWithin(kind extent.Kind, size, off, length int64, do func() error) error {
	if off >= size {
		return do()
	}
	return n.change(extent.Change{Kind: kind, Off: off, Len: min(length, size-off)}, do)
}

func (n *node) size() (int64, error) {
	st, err := n.stat()
	return st.Size, err
}

func (n *node) stat() (st syscall.Stat_t, err error) {
	err = syscall.Fstat(n.fd, &st)
	return st, err
}
