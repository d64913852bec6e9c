package fs

import (
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// dirBuffers holds buffers for getdents: a list of entries is never larger in ours than in the kernel's format.
var dirBuffers = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// OpenDir has nothing to open: the offset of a READDIR is the file system's own cookie.
func (s *store) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, _ *fuse.OpenOut) fuse.Status {
	_, err := s.nodeOf(in.NodeId)
	return status(err)
}

// ReleaseDir has nothing to close.
func (s *store) ReleaseDir(*fuse.ReleaseIn) {}

// ReadDir lists names.
func (s *store) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	return status(s.readDir(n, int64(in.Offset), func(e fuse.DirEntry) bool { return out.AddDirEntry(e) }))
}

// ReadDirPlus lists names and looks each up, which the kernel counts; those that cannot be looked up are listed only.
func (s *store) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	s.gate.RLock() // it finds files
	defer s.gate.RUnlock()
	return status(s.readDir(n, int64(in.Offset), func(e fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if e.Name != "." && e.Name != ".." {
			if s.lookup(n, e.Name, entry) != nil {
				*entry = fuse.EntryOut{}
			} else {
				out.FixMode(entry.Mode)
			}
		}
		return true
	}))
}

// readDir calls add for each entry behind the cookie until it returns false or one buffer is used up. The kernel asks
// again with the last cookie.
func (s *store) readDir(dir *node, cookie int64, add func(fuse.DirEntry) bool) error {
	fd, err := unix.Openat(dir.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if cookie != 0 {
		if _, err := unix.Seek(fd, cookie, unix.SEEK_SET); err != nil {
			return err
		}
	}
	buffer := dirBuffers.Get().(*[]byte)
	defer dirBuffers.Put(buffer)
	got, err := unix.Getdents(fd, *buffer)
	if err != nil {
		return err
	}
	for rest := (*buffer)[:got]; len(rest) > 0; {
		var e fuse.DirEntry
		rest = rest[e.Parse(rest):]
		if e.Ino != 0 && !s.hidden(dir, e.Name) && !add(e) {
			return nil
		}
	}
	return nil
}

// readNames returns all names of a directory but "." and "..".
func readNames(dirfd int) ([]string, error) {
	fd, err := unix.Openat(dirfd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	return f.Readdirnames(-1)
}

// FsyncDir syncs a directory: the names in it are durable then.
func (s *store) FsyncDir(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	n, err := s.nodeOf(in.NodeId)
	if err != nil {
		return status(err)
	}
	fd, err := unix.Openat(n.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(syncFile(fd, in.FsyncFlags))
}
