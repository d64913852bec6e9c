package checksum

import (
	"errors"
	"slices"
	"testing"
)

func unknownIn(t *Table) (all []diskRange) {
	for r := range t.Unknown().Ranges(diskRange{End: t.Blocks()}, 0) {
		all = append(all, r)
	}
	return all
}

// TestI4_WatchLeavesUnknownWhatWasForgotten: between the look and the learning a
// region was evicted, and its unknown entries are all that is left of the change.
func TestI4_WatchLeavesUnknownWhatWasForgotten(t *testing.T) {
	table, _ := create(t, 1000)
	early := table.Watch()
	defer early.Close()
	if err := table.Forget(dr(10, 20)); err != nil {
		t.Fatal(err)
	}
	late := table.Watch()
	defer late.Close()
	s := make([]Sum, 100)
	for i := range s {
		s[i] = Sum(i + 1)
	}
	if err := early.Learn(dr(0, 100), s); err != nil {
		t.Fatal(err)
	}
	if got := unknownIn(table); !slices.Equal(got, []diskRange{dr(10, 20), dr(100, 1000)}) {
		t.Errorf("unknown: %v", got)
	}
	if err := late.Learn(dr(5, 15), s[5:15]); err != nil {
		t.Fatal(err)
	}
	if got := unknownIn(table); !slices.Equal(got, []diskRange{dr(15, 20), dr(100, 1000)}) {
		t.Errorf("unknown: %v", got)
	}
	if e, err := table.Entries(dr(12, 13), nil); err != nil || e[0] != (Entry{13, true}) {
		t.Errorf("%v %v", e, err)
	}
}

// What is known stays what it is: it may be of a newer epoch than what was looked at.
func TestWatchDoesNotTouchWhatIsKnown(t *testing.T) {
	table, _ := create(t, 100)
	if err := table.Commit(1, 100, list(sums(3, 77))); err != nil {
		t.Fatal(err)
	}
	w := table.Watch()
	if err := w.Learn(dr(0, 10), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	e, err := table.Entries(dr(2, 4), nil)
	if err != nil || e[0] != (Entry{ZeroBlock, true}) || e[1] != (Entry{77, true}) {
		t.Errorf("%v %v", e, err)
	}
	if len(table.update.watches) != 0 {
		t.Error("a closed watch is kept")
	}
	if err := w.Learn(dr(0, 2), []Sum{1}); !errors.Is(err, ErrRange) {
		t.Errorf("%v", err)
	}
}
