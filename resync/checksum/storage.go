package checksum

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/journal/durable"
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
type disk struct {
	durable.Editor
	tree durable.Tree
	path string
}

// sidePath returns where the side list of the table at path is.
func sidePath(path string) string { return path + ".zeros" }

func (d disk) SaveSide(p []byte) error { return durable.WriteFileIn(d.tree, sidePath(d.path), p) }

func (d disk) LoadSide() ([]byte, error) {
	p, err := d.tree.ReadFile(sidePath(d.path))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return p, errors.Join(err, d.tree.SyncDir(filepath.Dir(d.path)))
}

// createFile makes the file of a new table under its name, durably and as a
// whole, with no side list left over from an earlier table.
func createFile(tree durable.Tree, path string, h header) error {
	if _, err := tree.Stat(path); err == nil {
		return fmt.Errorf("%s: %w", path, os.ErrExist)
	}
	if err := tree.Remove(sidePath(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return durable.CreateEmpty(tree, path, append(h.encode(), make([]byte, slotSize)...), entriesStart+int64(h.blocks)*entrySize)
}
