package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name. It is where the kernel, and so the Volumes, first hear of an image.
func (s *store) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.once(deed{
		unique: in.Unique,
		count:  func(a *act) error { return counted(a)(s.find(dir, name, out)) },
		repeat: func(before [2]uint64) error { return s.recounted(before)(s.find(dir, name, out)) },
	}))
}

// counted notes what was found and counted.
func counted(a *act) func(*node, error) error {
	return func(n *node, err error) error {
		if err == nil {
			a.answered(n.ino)
		}
		return err
	}
}

// recounted gives back what was counted for an answer that the kernel has not got; the name may mean another file now.
func (s *store) recounted(before [2]uint64) func(*node, error) error {
	return func(_ *node, err error) error {
		if err == nil {
			s.Forget(before[1], 1)
		}
		return err
	}
}

// Forget takes lookups back.
func (s *store) Forget(id, count uint64) {
	if n := s.tree.forget(id, count); n != nil {
		s.show(n)
	}
}

// lookup opens the name, enters the node and answers with its attributes. The caller's reply counts as a lookup.
func (s *store) lookup(dir *node, name string, out *fuse.EntryOut) error {
	_, err := s.find(dir, name, out)
	return err
}

// find is lookup, and returns the node.
func (s *store) find(dir *node, name string, out *fuse.EntryOut) (*node, error) {
	fd, err := s.openPath(dir.fd, name)
	if err != nil {
		return nil, err
	}
	return s.enter(dir, name, fd, out)
}

// openPath opens a child as O_PATH. A mount inside the store is refused: its files would have numbers that are ours
// already, and a bind mount would show a disk twice.
func (s *store) openPath(dirfd int, name string) (int, error) {
	fd, err := unix.Openat2(dirfd, name, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.EXDEV {
		s.log.Warn("a mount inside the store is not served", "name", name,
			"action", "mount it elsewhere, or make it a store of its own")
	}
	return fd, err
}

// enter makes the file behind fd known under dir and name, attaches it if it is an image, and fills out. It owns fd.
func (s *store) enter(dir *node, name string, fd int, out *fuse.EntryOut) (*node, error) {
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if st.Dev != s.dev || st.Ino == fuse.FUSE_ROOT_ID || st.Ino == ^uint64(0) {
		unix.Close(fd)
		s.log.Warn("a file of another device, or with a reserved inode number, is not served", "name", name,
			"device", st.Dev, "inode", st.Ino, "action", "subvolumes and nested mounts need a store of their own")
		return nil, unix.EXDEV
	}
	n, used := s.tree.adopt(newNode(st.Ino, generation(fd, st.Mode), st.Mode, fd), dir, name)
	if !used {
		unix.Close(fd)
	}
	s.attach(n, name)
	fillEntry(out, n, &st)
	return n, nil
}

// generation asks for the inode generation of a regular file, the only kind that becomes a disk. 0 if there is none.
func generation(path int, mode uint32) uint64 {
	if mode&unix.S_IFMT != unix.S_IFREG {
		return 0
	}
	fd, err := unix.Open(procPath(path), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	gen, err := getVersion(fd)
	if err != nil {
		return 0
	}
	return gen
}

func fillEntry(out *fuse.EntryOut, n *node, st *syscall.Stat_t) {
	out.NodeId = n.ino
	out.Generation = n.gen
	out.SetEntryTimeout(cacheTime)
	out.SetAttrTimeout(cacheTime)
	out.Attr.FromStat(st)
}
