package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// namelessName stands for the name of a file that has none, in a list of open files.
const namelessName = "(no name)"

// Tmpfile makes and opens a file without a name. It is no disk; a link to an image's name makes it one. The kernel asks
// for it from 6.1 on.
func (s *store) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	n, err := s.makeNameless(dir, in)
	if err != nil {
		return status(err)
	}
	err = s.openNode(n, in.Flags&^(unix.O_TMPFILE|unix.O_EXCL), &out.OpenOut)
	if err == nil {
		if err = s.refresh(n, &out.EntryOut); err == nil {
			return fuse.OK
		}
		s.release(n)
	}
	s.Forget(n.ino, 1)
	return status(err)
}

// makeNameless makes the file, gives it to its creator and enters it. O_EXCL forbids links to it.
func (s *store) makeNameless(dir *node, in *fuse.CreateIn) (*node, error) {
	made, err := unix.Openat(dir.fd, ".", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|int(in.Flags)&unix.O_EXCL, in.Mode&07777)
	if err != nil {
		return nil, err
	}
	defer unix.Close(made)
	if err := settle(dir, made, in.Mode, in.Umask, in.Owner); err != nil {
		return nil, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(made, &st); err != nil {
		return nil, err
	}
	fd, err := unix.Open(procPath(made), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	n, _ := s.tree.adopt(newNode(st.Ino, generation(fd, st.Mode), st.Mode, fd), dir, namelessName)
	s.tree.remove(n, dir, namelessName)
	return n, nil
}
