package chain

import (
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// File is an image of the store, open for reading.
type File interface {
	io.ReaderAt
	io.Closer
	Stat() (Stat, error)
}

// Stat is what tells one file from another, and one moment of it from another.
type Stat struct {
	Size          int64 // bytes
	Device, Inode uint64
	Birth         time.Time // zero where the file system knows none
	Modified      time.Time
	Changed       time.Time // of the inode
}

// SameFile says whether both are of one file, whatever its name.
func (s Stat) SameFile(o Stat) bool {
	return s.Inode != 0 && s.Device == o.Device && s.Inode == o.Inode && s.Birth.Equal(o.Birth)
}

// settled is how old a file's last change must be for its times to tell the next one: they have the grain of a kernel's tick.
const settled = 2 * time.Second

// Unwritten says whether the file is as it was at an earlier look: nothing about it differs, and its last change was old
// enough then, at, that a later one would show. It errs towards no.
func (s Stat) Unwritten(was Stat, at time.Time) bool {
	return s.SameFile(was) && s.Size == was.Size && s.Modified.Equal(was.Modified) && s.Changed.Equal(was.Changed) &&
		at.Sub(was.Changed) > settled && at.Sub(was.Modified) > settled
}

// Store gives the images of a store by their names, which are relative, local (filepath.IsLocal) and with slashes.
type Store interface {
	// Open opens a file for reading. iofs.ErrNotExist if there is none, another error if it is no regular file.
	Open(name string) (File, error)
	// Names lists a directory.
	Names(dir string) ([]string, error)
}

// namesMost is how many entries of a directory are looked at for a name in other letters.
const namesMost = 1 << 16

// Dir is a directory as a Store. Nothing outside it is opened, whatever symbolic links say.
type Dir struct{ root *os.Root }

// OpenDir opens the directory; Close it.
func OpenDir(path string) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	return &Dir{root}, nil
}

// Close closes the directory; files that were opened stay open.
func (d *Dir) Close() error { return d.root.Close() }

// Open implements Store. It does not wait for the other end of a pipe, and reads no device.
func (d *Dir) Open(name string) (File, error) {
	if !filepath.IsLocal(name) {
		return nil, fmt.Errorf("%q leads out of the store: %w", name, iofs.ErrInvalid)
	}
	st, err := d.root.Stat(name)
	if err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", name, iofs.ErrInvalid)
	}
	if err != nil {
		return nil, err
	}
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return OS{f}, nil
}

// Names implements Store.
func (d *Dir) Names(dir string) ([]string, error) {
	f, err := d.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(namesMost)
	if err == io.EOF {
		err = nil
	}
	return names, err
}

// OS is a file of the operating system as a File.
type OS struct{ *os.File }

// Stat implements File.
func (f OS) Stat() (Stat, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return Stat{}, err
	}
	var x unix.Statx_t
	controlErr := conn.Control(func(fd uintptr) {
		err = unix.Statx(int(fd), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &x)
	})
	if err == nil {
		err = controlErr
	}
	if err != nil {
		return Stat{}, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if x.Mode&unix.S_IFMT != unix.S_IFREG {
		return Stat{}, fmt.Errorf("%s is no regular file: %w", f.Name(), iofs.ErrInvalid)
	}
	s := Stat{Size: int64(x.Size), Device: unix.Mkdev(x.Dev_major, x.Dev_minor), Inode: x.Ino, Modified: stamp(x.Mtime), Changed: stamp(x.Ctime)}
	if x.Mask&unix.STATX_BTIME != 0 {
		s.Birth = stamp(x.Btime)
	}
	return s, nil
}

func stamp(t unix.StatxTimestamp) time.Time { return time.Unix(t.Sec, int64(t.Nsec)).UTC() }
