package checksum

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// storage is what a table keeps its bytes in; the seam for tests of power cuts.
type storage interface {
	io.ReaderAt
	io.WriterAt
	Truncate(size int64) error
	// Datasync makes everything written so far durable, the size included.
	Datasync() error
	// SaveSide replaces the side list durably and atomically.
	SaveSide(p []byte) error
	// LoadSide returns the side list, durable by then; nil if there never was one.
	LoadSide() ([]byte, error)
	Size() (int64, error)
	Close() error
}

// disk is the real storage: a file, and the side list in a file beside it.
type disk struct{ *os.File }

func (d disk) Datasync() error {
	for {
		if err := unix.Fdatasync(int(d.Fd())); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (d disk) Size() (int64, error) {
	info, err := d.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// sidePath returns where the side list of the table at path is.
func sidePath(path string) string { return path + ".zeros" }

func (d disk) SaveSide(p []byte) error { return replace(sidePath(d.Name()), p) }

func (d disk) LoadSide() ([]byte, error) {
	p, err := os.ReadFile(sidePath(d.Name()))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return p, errors.Join(err, syncDir(filepath.Dir(d.Name())))
}

// replace puts a file with the content p durably in the place of path: a crash
// leaves the old or the new one.
func replace(path string, p []byte) error {
	if err := writeSynced(path+".tmp", p); err != nil {
		return err
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// writeSynced leaves a durable file with the content p, without its name.
func writeSynced(path string, p []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(p)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// createFile makes the file of a new table under its name, durably and as a
// whole, with no side list left over from an earlier table.
func createFile(path string, h header) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	tmp := path + ".tmp"
	if err := writeSynced(tmp, append(h.encode(), make([]byte, slotSize)...)); err != nil {
		return err
	}
	if err := truncateSynced(tmp, entriesStart+int64(h.blocks)*entrySize); err != nil {
		return err
	}
	if err := os.Remove(sidePath(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func truncateSynced(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
