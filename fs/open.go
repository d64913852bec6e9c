package fs

import (
	"errors"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Open counts an open and answers without a handle: every request names the node, so a restarted daemon can serve
// files that were opened before. The kernel leaves O_TRUNC to us (CAP_ATOMIC_O_TRUNC): it is a tracked truncate.
func (s *store) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	return status(s.once(deed{
		unique: in.Unique,
		did:    func(before [2]uint64) bool { return before[1] != 0 }, // it would truncate again
		count:  func(a *act) error { return counted(a)(n, s.openNode(n, in.Flags, out)) },
		repeat: func([2]uint64) error { out.OpenFlags = s.openFlags(n); return nil },
	}))
}

func (s *store) openNode(n *node, flags uint32, out *fuse.OpenOut) error {
	if err := n.acquire(flags); err != nil {
		return err
	}
	if flags&unix.O_TRUNC != 0 {
		if err := n.truncate(0); err != nil {
			s.release(n)
			return err
		}
	}
	out.Fh = 0
	out.OpenFlags = s.openFlags(n)
	return nil
}

// acquire opens the shared backing descriptors as far as flags needs them.
func (n *node) acquire(flags uint32) error {
	write := flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
	n.open.Lock()
	defer n.open.Unlock()
	if n.rd.Load() < 0 {
		if err := n.openFirst(write); err != nil {
			return err
		}
	}
	if write && n.wr.Load() < 0 {
		fd, err := n.reopen(unix.O_RDWR)
		if err != nil {
			return err
		}
		n.wr.Store(int32(fd))
	}
	n.open.count++
	n.noteOpens()
	return nil
}

// noteOpens puts the count of opens where the next process finds it; n.open is held.
func (n *node) noteOpens() {
	if n.slot != nil {
		atomic.StoreUint32(&n.slot.opens, uint32(n.open.count))
	}
}

// openFirst opens for both if that is possible, so that a later writer needs no second descriptor.
func (n *node) openFirst(write bool) error {
	fd, err := n.reopen(unix.O_RDWR)
	if err == nil {
		n.wr.Store(int32(fd))
		n.rd.Store(int32(fd))
		return nil
	}
	if write || !readOnlyFor(err) {
		return err
	}
	if fd, err = n.reopen(unix.O_RDONLY); err != nil {
		return err
	}
	n.rd.Store(int32(fd))
	return nil
}

// readOnlyFor says whether err may only mean that the file cannot be written.
func readOnlyFor(err error) bool {
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.ETXTBSY)
}

// Release takes an open back.
func (s *store) Release(_ <-chan struct{}, in *fuse.ReleaseIn) {
	if n := s.tree.get(in.NodeId); n != nil {
		_ = s.once(deed{
			unique: in.Unique,
			did:    func([2]uint64) bool { return true }, // rather a descriptor too many than one that somebody needs
			do:     func() error { s.release(n); return nil },
		})
	}
}

func (s *store) release(n *node) {
	n.open.Lock()
	defer n.open.Unlock()
	n.open.count = max(n.open.count-1, 0)
	n.noteOpens()
	if n.open.count > 0 {
		return
	}
	n.closeBacking()
	n.failedSync(nil)
	if n.open.stale {
		n.open.stale = false
		n.track.Lock()
		s.attachLocked(n)
		n.track.Unlock()
	}
}

// Create makes a file and opens it; a file that is there already is opened, unless O_EXCL forbids it.
func (s *store) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.once(deed{
		unique: in.Unique, before: [2]uint64{s.inoAt(dir, name)},
		did: func(before [2]uint64) bool { return before[1] != 0 || before[0] == 0 && s.inoAt(dir, name) != 0 },
		count: func(a *act) error {
			n, err := s.makeFile(dir, name, in, &out.EntryOut)
			return s.openMade(a, n, err, in.Flags, out)
		},
		repeat: func(before [2]uint64) error { return s.createdBefore(dir, name, in, out, before) },
	}))
}

// createdBefore answers a create whose file is made, and truncated: others may have written to it since.
func (s *store) createdBefore(dir *node, name string, in *fuse.CreateIn, out *fuse.CreateOut, before [2]uint64) error {
	n, err := s.find(dir, name, &out.EntryOut)
	if err == nil && before[0] == 0 { // the owner may not be set yet
		err = settle(dir, n.fd, in.Mode, in.Umask, in.Owner)
	}
	err = s.openMade(nil, n, err, in.Flags&^unix.O_TRUNC, out)
	if had := s.tree.get(before[1]); err == nil && had != nil {
		s.release(had)
		s.Forget(had.ino, 1)
	}
	return err
}

// openMade opens a file for the one who created it.
func (s *store) openMade(a *act, n *node, err error, flags uint32, out *fuse.CreateOut) error {
	if err != nil {
		return err
	}
	if err := s.openNode(n, flags&^unix.O_EXCL, &out.OpenOut); err != nil {
		s.Forget(n.ino, 1) // the kernel counts no lookup in an answer that failed
		return err
	}
	a.answered(n.ino)
	if err := s.refresh(n, &out.EntryOut); err != nil {
		s.release(n)
		s.Forget(n.ino, 1)
		return err
	}
	return nil
}

// makeFile creates name, or finds it.
func (s *store) makeFile(dir *node, name string, in *fuse.CreateIn, out *fuse.EntryOut) (*node, error) {
	fd, err := unix.Openat(dir.fd, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, in.Mode&07777)
	if err == nil {
		unix.Close(fd)
		return s.made(dir, name, in.Mode, in.Umask, in.Owner, out)
	}
	if err != unix.EEXIST || in.Flags&unix.O_EXCL != 0 {
		return nil, err
	}
	if fd, err = s.openPath(dir.fd, name); err != nil {
		return nil, err
	}
	n, err := s.enter(dir, name, fd, out)
	if err == nil && !n.isRegular() {
		s.Forget(n.ino, 1)
		return nil, unix.EEXIST
	}
	return n, err
}

// refresh puts the attributes of now into an entry: the open may have truncated.
func (s *store) refresh(n *node, out *fuse.EntryOut) error {
	var st syscall.Stat_t
	if err := syscall.Fstat(n.fd, &st); err != nil {
		return err
	}
	fillEntry(out, n, &st)
	return nil
}

// Flush has nothing to do: every write is in the backing file already. ENOSYS tells the kernel not to ask again; it
// still writes back mapped pages at close.
func (s *store) Flush(<-chan struct{}, *fuse.FlushIn) fuse.Status { return fuse.ENOSYS }
