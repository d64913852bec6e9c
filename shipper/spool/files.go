package spool

import (
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"syscall"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// files is the seam to the file system: tests fail the k-th operation, and cut the power, behind it.
type files interface {
	durable.FS
	// MkdirAll makes a directory and its parents; it may exist.
	MkdirAll(path string) error
	// ReadDir returns the names in a directory, sorted.
	ReadDir(path string) ([]string, error)
	ReadFile(path string) ([]byte, error)
	Stat(path string) (fileInfo, error)
	Open(path string) (readFile, error)
}

type readFile interface {
	io.ReaderAt
	io.Closer
}

type fileInfo struct {
	size      int64 // bytes
	allocated int64 // bytes of the disk it takes
	dir       bool
}

type osFiles struct{ durable.OS }

func (osFiles) MkdirAll(path string) error { return os.MkdirAll(path, 0o700) }

func (osFiles) ReadDir(path string) ([]string, error) {
	list, err := os.ReadDir(path)
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names, err
}

func (osFiles) ReadFile(path string) ([]byte, error) { return os.ReadFile(path) }

func (osFiles) Stat(path string) (fileInfo, error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return fileInfo{}, err
	}
	info := fileInfo{size: fi.Size(), dir: fi.IsDir()}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		info.allocated = st.Blocks * 512 // stat(2): always units of 512
	}
	return info, nil
}

func (osFiles) Open(path string) (readFile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func isNotExist(err error) bool { return errors.Is(err, iofs.ErrNotExist) }
