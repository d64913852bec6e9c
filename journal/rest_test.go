package journal

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// rest makes every region that is in no use now one that was in none since the
// last Deactivate: the next one may take it.
func rest(vm *VM) {
	for _, d := range vm.Disks() {
		for _, r := range d.regions.list() {
			d.regions.rested(r)
		}
	}
}

// A region that is written to now and then stays active over the epochs: no
// change of a working set within the cap costs a synced commit.
func TestARegionInUseStaysActive(t *testing.T) {
	var tab regionTable
	tab.ensure(3)
	tab.activate(3)
	for range 5 {
		if !tab.pin(3) {
			t.Fatal("the region is not active")
		}
		tab.unpin(3)
		if tab.rested(3) {
			t.Fatal("a region that was used since the last turn may leave")
		}
	}
	if !tab.rested(3) {
		t.Error("a region that nobody used for a whole turn may not leave")
	}
	if !tab.depart(3) {
		t.Error("it does not leave")
	}
}

func TestKeysListsDocuments(t *testing.T) {
	j, err := Open(&memory.Store{}, Options{Log: slog.New(slog.DiscardHandler), Saved: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"b/2", "a/1", "b/1", "bb"} {
		if err := j.Save(key, key); err != nil {
			t.Fatal(err)
		}
	}
	if keys, err := j.Keys("b/"); err != nil || !slices.Equal(keys, []string{"b/1", "b/2"}) {
		t.Errorf("%v, %v", keys, err)
	}
}
