package fs

import (
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// readReply hands the bytes of a READ to go-fuse. Pooled: fuse.ReadResultData would allocate for every request.
type readReply struct{ data []byte }

var readReplies = sync.Pool{New: func() any { return new(readReply) }}

// Bytes returns what was read; it lies in go-fuse's own buffer.
func (r *readReply) Bytes([]byte) ([]byte, fuse.Status) { return r.data, fuse.OK }

// Size is the number of bytes read.
func (r *readReply) Size() int { return len(r.data) }

// Done gives the reply back.
func (r *readReply) Done() {
	r.data = nil
	readReplies.Put(r)
}

// read reads from the backing file's cache into go-fuse's buffer. Splicing was measured: it is slower for small reads,
// no faster for 512 KiB, and a reply of 1 MiB does not fit into a pipe of the default maximum.
func (s *store) read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	got, err := unix.Pread(int(n.rd.Load()), buf, int64(in.Offset))
	if err != nil {
		return nil, status(err)
	}
	r := readReplies.Get().(*readReply)
	r.data = buf[:got]
	return r, fuse.OK
}

// Write is never called: go-fuse asks Writev first.
func (s *store) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return s.Writev(cancel, in, [][]byte{data})
}

// writev writes through the page cache of the backing file, and to stable storage before it answers if the guest asked
// for that: the kernel sends no FSYNC for O_DSYNC, only this flag.
func (s *store) writev(_ <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return 0, status(err)
	}
	c := extent.Change{Kind: extent.Write, Off: int64(in.Offset), Len: int64(in.Size)}
	n.track.RLock()
	defer n.track.RUnlock()
	t := n.track.tracker
	if t == nil {
		done, err := n.write(data, c.Off, in.Flags)
		return uint32(done), status(err)
	}
	pass, err := t.Begin(c)
	if err != nil {
		return 0, status(refusal(err))
	}
	done, err := n.write(data, c.Off, in.Flags)
	t.End(c, pass, err)
	return uint32(done), status(err)
}

// write puts all of data at off, or as much as fits: an error after some bytes is a short write, the next one shows
// the error. But a write that had to be synced and was not is an error whatever was written.
func (n *node) write(data [][]byte, off int64, flags uint32) (done int, err error) {
	wr := int(n.wr.Load())
	for _, p := range data {
		for len(p) > 0 {
			k, err := writeOnce(wr, p, off+int64(done), flags)
			if err == nil && k == 0 {
				err = unix.EIO
			}
			if err != nil {
				if done > 0 && err == unix.ENOSPC {
					return done, nil
				}
				return 0, err
			}
			done += k
			p = p[k:]
		}
	}
	return done, nil
}

func writeOnce(fd int, p []byte, off int64, flags uint32) (int, error) {
	switch {
	case flags&unix.O_DSYNC == 0:
		return unix.Pwrite(fd, p, off)
	case flags&unix.O_SYNC == unix.O_SYNC:
		return pwriteSync(fd, p, off, unix.RWF_SYNC)
	}
	return pwriteSync(fd, p, off, unix.RWF_DSYNC)
}

// fsync syncs the backing file. A failure stays until the last release: the kernel reports a lost write once per
// descriptor, and ours is shared by all openers.
func (s *store) fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	if failed := n.sync.Load(); failed != nil {
		return status(*failed)
	}
	fd := int(n.wr.Load())
	if fd < 0 {
		fd = int(n.rd.Load())
	}
	err = syncFile(fd, in.FsyncFlags)
	if errno, ok := err.(unix.Errno); ok {
		n.failedSync(&errno)
	}
	return status(err)
}

// failedSync remembers an error of fsync, or with nil forgets it.
func (n *node) failedSync(errno *unix.Errno) {
	n.sync.Store(errno)
	if n.slot == nil {
		return
	}
	var v uint32
	if errno != nil {
		v = uint32(*errno)
	}
	atomic.StoreUint32(&n.slot.errno, v)
}

// syncFile does fdatasync if bit 0 of flags is set (FUSE_FSYNC_FDATASYNC), else fsync.
func syncFile(fd int, flags uint32) error {
	if flags&1 != 0 {
		return unix.Fdatasync(fd)
	}
	return unix.Fsync(fd)
}

// Lseek finds data and holes. The position of the shared descriptor moves, and nobody uses it.
func (s *store) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := unix.Seek(int(n.rd.Load()), int64(in.Offset), int(in.Whence))
	out.Offset = uint64(off)
	return status(err)
}

// CopyFileRange makes the kernel copy with READ and WRITE, which are tracked.
func (s *store) CopyFileRange(<-chan struct{}, *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}
