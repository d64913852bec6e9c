package durable

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Tree is a local file system, as the rooms use it that keep files of their own. Each method is one operation that can fail
// on its own, and a model of it can forget at a power cut whatever was not synced.
type Tree interface {
	FS
	// MkdirAll makes a directory and its parents, mode 0700; it may exist.
	MkdirAll(path string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	ReadFile(path string) ([]byte, error)
	// Stat does not follow a symbolic link.
	Stat(path string) (Info, error)
	// Open opens a file for reading.
	Open(path string) (Reader, error)
	// Edit opens a file that is there for reading and writing in place.
	Edit(path string) (Editor, error)
}

// Info is what Stat tells of a file or directory.
type Info struct {
	Size      int64 // bytes
	Allocated int64 // bytes of the disk it takes
	Dir       bool
}

// Reader is a file open for reading.
type Reader interface {
	io.ReaderAt
	io.Closer
}

// Editor is a file that is changed in place.
type Editor interface {
	Reader
	io.WriterAt
	Truncate(size int64) error
	// Datasync makes everything written so far durable, the size included.
	Datasync() error
	// Size returns the size in bytes.
	Size() (int64, error)
}

// MkdirAll implements Tree.
func (OS) MkdirAll(path string) error { return os.MkdirAll(path, 0o700) }

// ReadDir implements Tree.
func (OS) ReadDir(path string) ([]string, error) {
	list, err := os.ReadDir(path)
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}

// ReadFile implements Tree.
func (OS) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

// Stat implements Tree.
func (OS) Stat(path string) (Info, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return Info{}, err
	}
	info := Info{Size: fi.Size(), Dir: fi.IsDir()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.Allocated = st.Blocks * 512 // stat(2): always units of 512
	}
	return info, nil
}

// Open implements Tree.
func (OS) Open(path string) (Reader, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err // not f: a nil *os.File in a Reader is not nil
	}
	return f, nil
}

// Edit implements Tree.
func (OS) Edit(path string) (Editor, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osEditor{f}, nil
}

type osEditor struct{ *os.File }

func (f osEditor) Datasync() error {
	for {
		if err := unix.Fdatasync(int(f.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (f osEditor) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// CreateEmpty makes a file of zeros of a size durably and as a whole, beginning with data; what was at path is replaced.
func CreateEmpty(t Tree, path string, data []byte, size int64) error {
	temp := path + TempSuffix
	err := writeSynced(t, temp, data)
	if err == nil {
		err = extendSynced(t, temp, size)
	}
	if err == nil {
		err = t.Rename(temp, path)
	}
	if err != nil {
		return err
	}
	return t.SyncDir(filepath.Dir(path))
}

func extendSynced(t Tree, path string, size int64) error {
	f, err := t.Edit(path)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Datasync()
	}
	return errors.Join(err, f.Close())
}
