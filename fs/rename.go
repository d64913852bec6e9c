package fs

import (
	"path"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"golang.org/x/sys/unix"
)

// entry is what a name meant before it was renamed or removed.
type entry struct {
	dir  *node
	name string
	path string
	mode uint32
	many bool // it has more names than this one
	id   Identity
	node *node // nil if the kernel does not know the file
}

func (e entry) isDir() bool     { return e.mode&unix.S_IFMT == unix.S_IFDIR }
func (e entry) isRegular() bool { return e.mode&unix.S_IFMT == unix.S_IFREG }

// isDisk says whether the Volumes have heard of the file, or would want to.
func (e entry) isDisk() bool {
	return e.isRegular() && (image.IsImageName(e.name) || e.node != nil && e.node.tracked())
}

// becomesSecondDisk says whether the name would make a disk of a file that has other names: as Link, Rename refuses that.
func (e entry) becomesSecondDisk(name string) bool {
	return e.many && e.isRegular() && !e.isDisk() && image.IsImageName(name)
}

// peek looks at a name without entering it.
func (s *store) peek(dir *node, name string) (entry, error) {
	fd, err := s.openPath(dir.fd, name)
	if err != nil {
		return entry{}, err
	}
	defer unix.Close(fd)
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		return entry{}, err
	}
	if st.Dev != s.dev {
		return entry{}, unix.EXDEV
	}
	e := entry{dir: dir, name: name, path: s.tree.child(dir, name), mode: st.Mode, many: st.Nlink > 1, node: s.tree.get(st.Ino)}
	e.id = Identity{Dev: st.Dev, Ino: st.Ino}
	if e.node != nil {
		e.id.Gen = e.node.gen
	} else if image.IsImageName(name) {
		e.id.Gen = generation(fd, st.Mode)
	}
	return e, nil
}

// Rename gives files other names. The Volumes are told before it is answered, and a file that became a disk is
// tracked by then.
func (s *store) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, err := s.parentOf(in.NodeId, oldName)
	if err != nil {
		return status(err)
	}
	to, err := s.parentOf(in.Newdir, newName)
	if err != nil {
		return status(err)
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0 {
		return fuse.EINVAL
	}
	return status(s.once(deed{
		unique: in.Unique,
		before: [2]uint64{s.inoAt(from, oldName), s.inoAt(to, newName)},
		did: func(before [2]uint64) bool {
			return before[0] != before[1] && s.inoAt(to, newName) == before[0] && s.inoAt(from, oldName) != before[0]
		},
		do: func() error { return s.rename(from, oldName, to, newName, in.Flags) },
	}))
}

func (s *store) rename(from *node, oldName string, to *node, newName string, flags uint32) error {
	a, err := s.peek(from, oldName)
	if err != nil {
		return err
	}
	b, err := s.peek(to, newName)
	exists := err == nil
	if err != nil && err != unix.ENOENT {
		return err
	}
	if a.becomesSecondDisk(newName) || flags&unix.RENAME_EXCHANGE != 0 && b.becomesSecondDisk(oldName) {
		return unix.EPERM
	}
	replaced := exists && a.id != b.id && flags&(unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE) == 0
	if replaced {
		s.hide(b)
	}
	if err := unix.Renameat2(from.fd, oldName, to.fd, newName, uint(flags)); err != nil {
		if replaced {
			s.keepName(b)
		}
		return err
	}
	if exists && a.id == b.id {
		return nil // two names of one file: rename does nothing
	}
	if exists && flags&unix.RENAME_EXCHANGE == 0 {
		s.gone(b)
	}
	target := entry{dir: to, name: newName, path: s.tree.child(to, newName)}
	s.place(a, to, newName)
	if flags&unix.RENAME_EXCHANGE != 0 {
		s.place(b, from, oldName)
		s.moved(b, a.path)
	}
	s.moved(a, target.path)
	return nil
}

// place records where the file of e lies now.
func (s *store) place(e entry, dir *node, name string) {
	if e.node != nil {
		s.tree.move(e.node, dir, name)
	}
}

// gone tells that the file of e has lost its name.
func (s *store) gone(e entry) {
	disk := e.isDisk()
	if e.node != nil {
		s.tree.remove(e.node, e.dir, e.name)
		s.retrack(e.node)
	}
	if disk && s.volumes != nil {
		s.volumes.Removed(e.path, e.id)
	}
}

// moved tells that the file of e, or every disk below it, has the path to now.
func (s *store) moved(e entry, to string) {
	if e.isDir() {
		s.movedBelow(e.path, to)
		return
	}
	if !e.isRegular() {
		return
	}
	if e.isDisk() && s.volumes != nil {
		s.volumes.Renamed(e.path, to, e.id)
	}
	switch {
	case e.node != nil:
		s.retrack(e.node)
	case e.isDisk() && s.volumes != nil && !image.IsImageName(to):
		s.volumes.Closed(to, e.id)
	}
}

// movedBelow tells of each disk in a directory that was moved: those the kernel knows, and those it has not asked for.
func (s *store) movedBelow(from, to string) {
	s.walk(to, func(e entry) {
		if e.isDisk() {
			old := path.Join(from, e.path[len(to):])
			moved := e.path
			e.path = old
			s.moved(e, moved)
		}
	})
}

// walk visits every file below the directory at the path, directories excepted. What cannot be read is left out and
// logged: the rename has happened already.
func (s *store) walk(dir string, visit func(entry)) {
	fd, err := unix.Openat2(s.root.fd, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		s.log.Warn("a renamed directory cannot be searched for disks", "path", dir, "error", err)
		return
	}
	here := &node{fd: fd, kind: unix.S_IFDIR}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		s.log.Warn("a renamed directory cannot be searched for disks", "path", dir, "error", err)
	}
	for _, name := range names {
		e, err := s.peek(here, name)
		if err != nil {
			continue
		}
		e.path = path.Join(dir, name)
		if e.isDir() {
			s.walk(e.path, visit)
			continue
		}
		visit(e)
	}
}
