package fs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"golang.org/x/sys/unix"
)

// Mknod makes a file of any kind but a directory. The mount is nodev.
func (s *store) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.make(in.Unique, dir, name,
		func() error { return unix.Mknodat(dir.fd, name, in.Mode, int(in.Rdev)) },
		func() (*node, error) { return s.made(dir, name, in.Mode, in.Umask, in.Owner, out) }))
}

// Mkdir makes a directory.
func (s *store) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.make(in.Unique, dir, name,
		func() error { return unix.Mkdirat(dir.fd, name, in.Mode&07777) },
		func() (*node, error) { return s.made(dir, name, in.Mode, in.Umask, in.Owner, out) }))
}

// Symlink makes a symbolic link. The kernel follows it in the caller's name space.
func (s *store) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.make(in.Unique, dir, name,
		func() error { return unix.Symlinkat(target, dir.fd, name) },
		func() (*node, error) { return s.made(dir, name, unix.S_IFLNK|0777, 0, in.Owner, out) }))
}

// make does a request that makes a name, once; enter makes its answer.
func (s *store) make(unique uint64, dir *node, name string, create func() error, enter func() (*node, error)) error {
	return s.once(deed{
		unique: unique, before: [2]uint64{s.inoAt(dir, name)},
		did: func(before [2]uint64) bool { return before[0] == 0 && s.inoAt(dir, name) != 0 },
		count: func(a *act) error {
			if err := create(); err != nil {
				return err
			}
			return counted(a)(enter())
		},
		repeat: func(before [2]uint64) error { return s.recounted(before)(enter()) },
	})
}

// made enters a file that was just created and gives it to its creator: the daemon's own user, group and umask do not
// count. If that fails the file is taken away again.
func (s *store) made(dir *node, name string, mode, umask uint32, owner fuse.Owner, out *fuse.EntryOut) (*node, error) {
	fd, err := s.openPath(dir.fd, name)
	if err == nil {
		if err = settle(dir, fd, mode, umask, owner); err == nil {
			return s.enter(dir, name, fd, out)
		}
		unix.Close(fd)
	}
	flag := 0
	if mode&unix.S_IFMT == unix.S_IFDIR {
		flag = unix.AT_REMOVEDIR
	}
	unix.Unlinkat(dir.fd, name, flag)
	return nil, err
}

// settle sets owner and mode of a new file. In a directory with the setgid bit the group comes from the directory. In
// one with a default ACL the file system has made the mode of it, and nobody's umask counts.
func settle(dir *node, fd int, mode, umask uint32, owner fuse.Owner) error {
	var st, parent syscall.Stat_t
	if err := syscall.Fstat(dir.fd, &parent); err != nil {
		return err
	}
	if err := syscall.Fstat(fd, &st); err != nil {
		return err
	}
	gid := owner.Gid
	if parent.Mode&unix.S_ISGID != 0 {
		gid = parent.Gid
	}
	if st.Uid != owner.Uid || st.Gid != gid {
		if err := unix.Fchownat(fd, "", int(owner.Uid), int(gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	want := mode & 07777 &^ umask
	if dir.hasDefaultACL() {
		want = st.Mode&0777 | mode&07000
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		want |= parent.Mode & unix.S_ISGID
	}
	if st.Mode&07777 == want && want&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	return unix.Fchmodat(unix.AT_FDCWD, procPath(fd), want, 0)
}

// Readlink reads a symbolic link.
func (s *store) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return nil, status(err)
	}
	buf := make([]byte, unix.PathMax)
	k, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:k], fuse.OK
}

// Link makes a second name, but not for a disk: a disk has one. A file without a name (O_TMPFILE) may get an image's: it
// is tracked when this is answered.
func (s *store) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	n, err := s.nodeOf(in.Oldnodeid)
	if err != nil {
		return status(err)
	}
	if s.isDisk(n) || image.IsImageName(name) && !n.nameless() {
		return fuse.EPERM
	}
	return status(s.make(in.Unique, dir, name,
		func() error { return unix.Linkat(unix.AT_FDCWD, n.proc(), dir.fd, name, unix.AT_SYMLINK_FOLLOW) },
		func() (*node, error) { return s.find(dir, name, out) }))
}

// links counts the names of a file; 0 if that cannot be said.
func (n *node) links() uint64 {
	var st syscall.Stat_t
	if syscall.Fstat(n.fd, &st) != nil {
		return 0
	}
	return uint64(st.Nlink)
}

// nameless says whether no directory has the file.
func (n *node) nameless() bool { return n.links() == 0 }

// hasOtherName says whether the file has names besides the one we know it by, if it has that.
func (n *node) hasOtherName(named bool) bool {
	if named {
		return n.links() > 1
	}
	return n.links() > 0
}

// Unlink removes a name. An open file lives on, a disk with its tracker, until the last release.
func (s *store) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.once(deed{
		unique: in.Unique, before: [2]uint64{s.inoAt(dir, name)},
		did: func(before [2]uint64) bool { return before[0] != 0 && s.inoAt(dir, name) != before[0] },
		do:  func() error { return s.unlink(dir, name, 0) },
	}))
}

// unlink removes a name; flags are unlinkat's.
func (s *store) unlink(dir *node, name string, flags int) error {
	e, err := s.peek(dir, name)
	if err != nil {
		return err
	}
	s.hide(e)
	if err := unix.Unlinkat(dir.fd, name, flags); err != nil {
		s.keepName(e)
		return err
	}
	s.gone(e)
	return nil
}

// Rmdir removes an empty directory.
func (s *store) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir, err := s.parentOf(in.NodeId, name)
	if err != nil {
		return status(err)
	}
	return status(s.once(deed{
		unique: in.Unique, before: [2]uint64{s.inoAt(dir, name)},
		did: func(before [2]uint64) bool { return before[0] != 0 && s.inoAt(dir, name) != before[0] },
		do:  func() error { return s.unlink(dir, name, unix.AT_REMOVEDIR) },
	}))
}
