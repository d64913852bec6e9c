package checksum

import (
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Check is the oracle of every other test here: it must see each contradiction.
func TestCheckSeesContradictions(t *testing.T) {
	for name, spoil := range map[string]func(table *Table, f *powerFile){
		"an entry written behind its back": func(_ *Table, f *powerFile) { f.now[entriesStart] ^= 1 },
		"an entry lost":                    func(_ *Table, f *powerFile) { clear(f.now[entriesStart : entriesStart+8]) },
		"an unknown bit too many":          func(table *Table, _ *powerFile) { table.unknown.Set(single(0)) },
		"an unknown bit missing":           func(table *Table, _ *powerFile) { table.unknown.ClearOne(8) },
		"an unknown bit past the end":      func(table *Table, _ *powerFile) { table.unknown.Set(single(500)) },
		"a position not published":         func(table *Table, _ *powerFile) { table.mu.position++ },
		"a size not published":             func(table *Table, _ *powerFile) { table.mu.blocks-- },
		"a checksum that went astray":      func(table *Table, _ *powerFile) { table.update.sum ^= 1 },
		"a side list without its block":    func(table *Table, _ *powerFile) { table.mu.side.Clear(single(1)) },
		"another side list":                func(_ *Table, f *powerFile) { f.side = encodeSide(goldenID, []extent.DiskBlock{2}) },
		"a page not written":               func(table *Table, _ *powerFile) { table.update.window.dirty = 1 },
		"both headers gone":                func(_ *Table, f *powerFile) { clear(f.now[:entriesStart]) },
		"a side list of another table":     func(_ *Table, f *powerFile) { f.side = encodeSide([16]byte{9}, []extent.DiskBlock{1}) },
	} {
		table, f := powered(t)
		must(t, table.Commit(1, 9, list(sums(0, 5, 0, 6))))
		if err := table.recombineLocked(); err != nil {
			t.Fatal(err)
		}
		must(t, table.Check())
		spoil(table, f)
		if err := table.Check(); err == nil {
			t.Errorf("%s goes unseen", name)
		}
	}
}

// Beyond its bound the side list takes nothing more, and the entries stay
// unknown: never taken for what they are not.
func TestFullSideListLeavesEntriesUnknown(t *testing.T) {
	table, f := powered(t)
	table.mu.side.Set(dr(100, 100+maxSide-1)) // all but one
	must(t, table.Commit(1, 9, list(sums(0, 0, 0, 0))))
	want(t, table, 0, unknownEntry, unknownEntry, unknownEntry, unknownEntry, unknownEntry, unknownEntry, unknownEntry, unknownEntry)
	again, err := open("again", f)
	must(t, err)
	if again.UnknownCount() != 8 || table.UnknownCount() != 8 {
		t.Errorf("%d unknown, after a reopen %d", table.UnknownCount(), again.UnknownCount())
	}
}

// A known entry that becomes a checksum of 0 with no room in the list is
// unknown from then on.
func TestFullSideListForgetsOldEntry(t *testing.T) {
	table, _ := powered(t)
	must(t, table.Commit(1, 9, list(Change{Range: dr(0, 9)})))
	table.mu.side.Set(dr(100, 100+maxSide))
	must(t, table.Commit(2, 9, list(sums(3, 0))))
	if !table.Unknown().Test(3) || table.UnknownCount() != 1 {
		t.Errorf("%d unknown", table.UnknownCount())
	}
}

// The side list of a table that was there before must not speak for a new one,
// and neither must the leavings of a crash.
func TestCreateClearsWhatWasLeft(t *testing.T) {
	table, path := create(t, 4)
	must(t, table.Commit(1, 4, list(sums(0, 0, 0))))
	must(t, table.Close())
	must(t, os.Remove(path))
	must(t, os.WriteFile(path+".tmp", make([]byte, 99999), 0o600))
	again, err := CreateTable(path, 4)
	must(t, err)
	checkAtEnd(t, again)
	want(t, again, unknownEntry, unknownEntry, unknownEntry, unknownEntry)
	if _, err := os.Stat(path + ".tmp"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Size() != entriesStart+4*entrySize {
		t.Errorf("the file has %d bytes, %v", info.Size(), err)
	}
}

func TestCreateInNoDirectoryFails(t *testing.T) {
	if _, err := CreateTable(t.TempDir()+"/none/table", 4); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("create says %v", err)
	}
}

// Puts are acknowledged in any order and by several workers.
func TestLearnFromSeveralWorkers(t *testing.T) {
	const blocks, workers = 4096, 4
	table, path := create(t, blocks)
	var wg sync.WaitGroup
	for w := range extent.DiskBlock(workers) {
		wg.Go(func() {
			for b := w * 16; b < blocks; b += workers * 16 {
				s := make([]Sum, 16)
				for i := range s {
					s[i] = Sum(b) + Sum(i) + 1
				}
				if err := table.Learn(dr(b, b+16), s); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	must(t, table.Sync())
	table = reopen(t, table, path)
	entries, err := table.Entries(dr(0, blocks), nil)
	must(t, err)
	for i, e := range entries {
		if e != (Entry{Sum(i) + 1, true}) {
			t.Fatalf("block %d is %+v", i, e)
		}
	}
}

func TestRunsOfPages(t *testing.T) {
	for set, expected := range map[uint64][][2]int{
		0:              nil,
		1:              {{0, 1}},
		^uint64(0):     {{0, 64}},
		1 << 63:        {{63, 64}},
		0b1101_1000:    {{3, 5}, {6, 8}},
		3<<62 | 0xf<<4: {{4, 8}, {62, 64}},
	} {
		var got [][2]int
		for lo, hi := range runs(set) {
			got = append(got, [2]int{lo, hi})
		}
		if !slices.Equal(got, expected) {
			t.Errorf("runs of %b are %v, expected %v", set, got, expected)
		}
	}
}

func TestZeroRuns(t *testing.T) {
	var raw []byte
	for _, s := range []uint64{0, 0, 1, 0, 2, 3, 0} {
		raw = binary.LittleEndian.AppendUint64(raw, s)
	}
	got := slices.Collect(zeroRuns(10, raw))
	if expected := []diskRange{dr(10, 12), dr(13, 14), dr(16, 17)}; !slices.Equal(got, expected) {
		t.Errorf("runs %v, expected %v", got, expected)
	}
}

// A page in which nothing changes is not written: an epoch that carries what
// the table knows costs the state disk a header.
func TestUnchangedPagesAreNotWritten(t *testing.T) {
	table, f := powered(t)
	const big = 40 * pageEntries
	must(t, table.Commit(1, big, list(Change{Range: dr(0, big)})))
	f.trace = nil
	must(t, table.Commit(2, big, list(Change{Range: dr(0, big)})))
	if !slices.Equal(f.trace, []string{"sync", "header", "sync"}) {
		t.Errorf("an epoch of nothing new: %v", f.trace)
	}
	f.trace = nil
	must(t, table.Commit(3, big, list(sums(5, 1), sums(6, 2), sums(30*pageEntries, 3))))
	if !slices.Equal(f.trace, []string{"entries", "entries", "sync", "header", "sync"}) {
		t.Errorf("two pages changed: %v", f.trace)
	}
}
