package durable

import (
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
)

// File is a file being written.
type File interface {
	io.Writer
	Sync() error
	Close() error
}

// FS is what durable replacement needs of a file system. Every method is one operation that can fail on its own.
type FS interface {
	// Create makes or truncates a file for writing, mode 0600.
	Create(path string) (File, error)
	Rename(from, to string) error
	// Remove unlinks a file or an empty directory.
	Remove(path string) error
	// SyncDir makes names created, renamed and removed in a directory durable.
	SyncDir(path string) error
}

// OS is the real file system.
type OS struct{}

// Create implements FS.
func (OS) Create(path string) (File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err // not f: a nil *os.File in a File is not nil
	}
	return f, nil
}

// Rename implements FS.
func (OS) Rename(from, to string) error { return os.Rename(from, to) }

// Remove implements FS.
func (OS) Remove(path string) error { return os.Remove(path) }

// SyncDir implements FS.
func (OS) SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if e := d.Close(); err == nil {
		err = e
	}
	return err
}

// TempSuffix ends the name of a file that is being written and not yet in place. Whoever owns the directory may remove such
// a file at a start.
const TempSuffix = ".tmp"

// WriteFile makes path hold data, durably when it returns nil. After an error path holds the old content or the new one, and
// a crash may still turn one into the other; nothing else was touched. A temporary file may be left only if removing it
// failed too. It may be repeated.
func WriteFile(path string, data []byte) error { return WriteFileIn(OS{}, path, data) }

// WriteFileIn is WriteFile on another file system.
func WriteFileIn(fs FS, path string, data []byte) error {
	temp := path + TempSuffix
	err := writeSynced(fs, temp, data)
	if err == nil {
		err = fs.Rename(temp, path)
	}
	if err != nil {
		_ = fs.Remove(temp) // the error to report is the first one; a leftover is overwritten by the next attempt
		return err
	}
	return fs.SyncDir(filepath.Dir(path))
}

func writeSynced(fs FS, path string, data []byte) error {
	f, err := fs.Create(path)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

// Remove unlinks path, durably when it returns nil. A path that is not there is made durably so: the call may be repeated
// until it succeeds.
func Remove(path string) error { return RemoveIn(OS{}, path) }

// RemoveIn is Remove on another file system.
func RemoveIn(fs FS, path string) error {
	if err := fs.Remove(path); err != nil && !isNotExist(err) {
		return err
	}
	return fs.SyncDir(filepath.Dir(path))
}

func isNotExist(err error) bool { return errors.Is(err, iofs.ErrNotExist) }
