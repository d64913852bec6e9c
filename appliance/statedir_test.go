package appliance

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// namedTree knows which names are durable: those in a directory when it was synced.
type namedTree struct {
	durable.OS
	durable map[string]bool
}

func (n namedTree) SyncDir(path string) error {
	list, err := os.ReadDir(path)
	for _, e := range list {
		n.durable[filepath.Join(path, e.Name())] = true
	}
	return err
}

// A power cut in the first life after the state directory was made took back the name of the spool, with all that was synced
// in it, and kept the tables (simulation, seed 2013).
func TestI4_TheNamesOfTheStateDirectoryAreDurable(t *testing.T) {
	dir, n := filepath.Join(t.TempDir(), "state"), namedTree{durable: map[string]bool{}}
	if err := makeState(n, dir+"/"); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"", "journal", "saved", "spool", "tables"} {
		if path := filepath.Join(dir, sub); !n.durable[path] {
			t.Errorf("the name of %s is not durable", path)
		}
	}
	if list, err := os.ReadDir(dir); err != nil || !slices.ContainsFunc(list, os.DirEntry.IsDir) {
		t.Errorf("%v, %v", list, err)
	}
}
