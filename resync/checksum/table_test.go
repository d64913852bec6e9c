package checksum

import (
	"errors"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

type changes = iter.Seq2[Change, error]

func list(cs ...Change) changes {
	return func(yield func(Change, error) bool) {
		for _, c := range cs {
			if !yield(c, nil) {
				return
			}
		}
	}
}

// then yields the changes and after them an error.
func then(err error, cs ...Change) changes {
	return func(yield func(Change, error) bool) {
		for c := range list(cs...) {
			if !yield(c, nil) {
				return
			}
		}
		yield(Change{}, err)
	}
}

func dr(start, end extent.DiskBlock) diskRange { return diskRange{Start: start, End: end} }

// sums makes a change of the blocks from start on.
func sums(start extent.DiskBlock, s ...Sum) Change {
	return Change{dr(start, start+extent.DiskBlock(len(s))), s}
}

func create(t *testing.T, blocks extent.DiskBlock) (*Table, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "table")
	table, err := CreateTable(path, blocks)
	if err != nil {
		t.Fatal(err)
	}
	checkAtEnd(t, table)
	return table, path
}

// checkAtEnd makes every table a test used prove its invariants.
func checkAtEnd(t *testing.T, table *Table) {
	t.Cleanup(func() {
		if err := table.Check(); err != nil && !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
		table.Close()
	})
}

func reopen(t *testing.T, old *Table, path string) *Table {
	t.Helper()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	table, err := OpenTable(path)
	if err != nil {
		t.Fatal(err)
	}
	checkAtEnd(t, table)
	return table
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// want compares entries from block 0 on; -1 stands for unknown.
const unknownEntry = ^Sum(0)

func want(t *testing.T, table *Table, sums ...Sum) {
	t.Helper()
	got, err := table.Entries(dr(0, table.Blocks()), nil)
	must(t, err)
	if len(got) != len(sums) {
		t.Fatalf("%d entries, expected %d", len(got), len(sums))
	}
	for i, e := range got {
		expected := Entry{sums[i], true}
		if sums[i] == unknownEntry {
			expected = Entry{}
		}
		if e != expected || table.Unknown().Test(extent.DiskBlock(i)) == e.Known {
			t.Errorf("block %d is %+v, expected %+v", i, e, expected)
		}
	}
}

func TestNewTableKnowsNothing(t *testing.T) {
	table, path := create(t, 3)
	want(t, table, unknownEntry, unknownEntry, unknownEntry)
	if table.UnknownCount() != 3 || table.Position() != 0 || table.Blocks() != 3 {
		t.Errorf("%d unknown, position %d, %d blocks", table.UnknownCount(), table.Position(), table.Blocks())
	}
	if _, ok := table.DiskSum(); ok {
		t.Error("an unknown disk has a checksum")
	}
	if _, err := CreateTable(path, 3); !errors.Is(err, os.ErrExist) {
		t.Errorf("creating it twice: %v", err)
	}
	if _, err := CreateTable(path+"2", -1); !errors.Is(err, ErrRange) {
		t.Errorf("creating it with -1 blocks: %v", err)
	}
}

func TestCommitIsThereAfterReopen(t *testing.T) {
	table, path := create(t, 5)
	must(t, table.Commit(7, 5, list(sums(0, 11, 12), Change{Range: dr(3, 5)})))
	want(t, table, 11, 12, unknownEntry, ZeroBlock, ZeroBlock)
	table = reopen(t, table, path)
	want(t, table, 11, 12, unknownEntry, ZeroBlock, ZeroBlock)
	if table.Position() != 7 {
		t.Errorf("position %d", table.Position())
	}
}

func TestCommitOfAnOldEpochDoesNothing(t *testing.T) {
	table, _ := create(t, 1)
	must(t, table.Commit(7, 1, list(sums(0, 11))))
	must(t, table.Commit(7, 9, list(sums(0, 99))))
	must(t, table.Commit(3, 9, list(sums(0, 99))))
	want(t, table, 11)
}

func TestChecksumZeroIsKnown(t *testing.T) {
	table, path := create(t, 4)
	must(t, table.Commit(1, 4, list(sums(0, 5, 0, 0, 6))))
	want(t, table, 5, 0, 0, 6)
	table = reopen(t, table, path)
	want(t, table, 5, 0, 0, 6)
	must(t, table.Forget(dr(2, 3)))
	table = reopen(t, table, path)
	want(t, table, 5, 0, unknownEntry, 6)
}

// A block listed for its checksum of 0, then written, then forgotten, must not
// be taken for a checksum of 0 again; nor after the disk shrank and grew.
func TestForgottenIsUnknownThoughOnceListed(t *testing.T) {
	table, path := create(t, 2)
	must(t, table.Commit(1, 2, list(sums(0, 0, 0))))
	must(t, table.Commit(2, 2, list(sums(0, 8, 9))))
	must(t, table.Forget(dr(0, 1)))
	table = reopen(t, table, path)
	want(t, table, unknownEntry, 9)
	must(t, table.Commit(3, 1, list()))
	must(t, table.Commit(4, 2, list()))
	must(t, table.Forget(dr(1, 2)))
	table = reopen(t, table, path)
	want(t, table, unknownEntry, unknownEntry)
}

func TestResizeInCommit(t *testing.T) {
	table, path := create(t, 2)
	must(t, table.Commit(1, 2, list(sums(0, 1, 2))))
	must(t, table.Commit(2, 5, list(sums(1, 3), sums(4, 4))))
	want(t, table, 1, 3, ZeroBlock, ZeroBlock, 4)
	must(t, table.Commit(3, 2, list(sums(0, 9), Change{Range: dr(2, 5)}))) // a shrink's zero extent reaches past the end
	want(t, table, 9, 3)
	must(t, table.Commit(4, 4, list()))
	want(t, table, 9, 3, ZeroBlock, ZeroBlock)
	table = reopen(t, table, path)
	want(t, table, 9, 3, ZeroBlock, ZeroBlock)
	must(t, table.Commit(5, 0, list()))
	if s, ok := table.DiskSum(); s != 0 || !ok {
		t.Errorf("checksum of an empty disk: %x, %v", s, ok)
	}
}

// The window of an update may hold what a shrink took from the file.
func TestGrowWritesWhatAShrinkTruncated(t *testing.T) {
	const big = 3 * pageEntries
	table, path := create(t, big)
	must(t, table.Commit(1, big, list(Change{Range: dr(0, big)})))
	must(t, table.Commit(2, 1, list()))
	must(t, table.Commit(3, big, list()))
	table = reopen(t, table, path)
	if table.UnknownCount() != 0 {
		t.Errorf("%d entries unknown", table.UnknownCount())
	}
}

func TestLearnIsDurableAfterSync(t *testing.T) {
	table, path := create(t, 6)
	must(t, table.Learn(dr(1, 3), []Sum{7, 0}))
	must(t, table.Learn(dr(4, 6), nil))
	must(t, table.Sync())
	table = reopen(t, table, path)
	want(t, table, unknownEntry, 7, 0, unknownEntry, ZeroBlock, ZeroBlock)
	if table.UnknownCount() != 2 || table.Position() != 0 {
		t.Errorf("%d unknown at %d", table.UnknownCount(), table.Position())
	}
}

func TestMisfitsAreRefused(t *testing.T) {
	table, _ := create(t, 4)
	_, err := table.Entries(dr(3, 5), nil)
	for name, c := range map[string]struct{ err, want error }{
		"entries past the end":  {err, ErrRange},
		"learning past the end": {table.Learn(dr(3, 5), nil), ErrRange},
		"too few checksums":     {table.Learn(dr(0, 2), []Sum{1}), ErrRange},
		"commit past the end":   {table.Commit(1, 4, list(sums(3, 1, 2))), ErrRange},
		"commit out of order":   {table.Commit(1, 4, list(sums(2, 1), sums(1, 1))), ErrOrder},
		"commit of an overlap":  {table.Commit(1, 4, list(sums(1, 1, 1), sums(2, 1))), ErrOrder},
		"commit of -1 blocks":   {table.Commit(1, -1, list()), ErrRange},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, expected %v", name, c.err, c.want)
		}
	}
	must(t, table.Forget(dr(3, 90), dr(2, 2)))
	must(t, table.Commit(1, 4, list(sums(0, 1, 2, 3, 4))))
	want(t, table, 1, 2, 3, 4)
}

func TestUnreadableChangesLeaveTheTableUsable(t *testing.T) {
	lost := errors.New("segment lost")
	table, path := create(t, 3)
	if err := table.Commit(1, 3, then(lost, sums(0, 5))); !errors.Is(err, lost) {
		t.Fatalf("commit says %v", err)
	}
	if _, _, err := table.SumAfter(3, then(lost)); !errors.Is(err, lost) {
		t.Fatalf("sum after says %v", err)
	}
	want(t, table, 5, unknownEntry, unknownEntry)
	if table.Position() != 0 {
		t.Errorf("position %d", table.Position())
	}
	must(t, table.Forget(dr(0, 3)))
	must(t, table.Commit(2, 3, list(sums(2, 6))))
	table = reopen(t, table, path)
	want(t, table, unknownEntry, unknownEntry, 6)
}

func TestClosedTableRefuses(t *testing.T) {
	table, _ := create(t, 3)
	must(t, table.Close())
	if _, err := table.Entries(dr(0, 1), nil); !errors.Is(err, ErrBroken) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("entries of a closed table: %v", err)
	}
}

// Changes far apart, in windows and pages of their own, and ranges across them.
func TestChangesAcrossWindows(t *testing.T) {
	const big = 3*windowEntries + 100
	table, path := create(t, big)
	must(t, table.Commit(1, big, list(Change{Range: dr(0, big)})))
	across := make([]Sum, windowEntries+20)
	for i := range across {
		across[i] = Sum(i + 1)
	}
	must(t, table.Commit(2, big, list(sums(3, 77), sums(windowEntries-10, across...), sums(big-1, 78))))
	table = reopen(t, table, path)
	for b, s := range map[extent.DiskBlock]Sum{3: 77, 2: ZeroBlock, windowEntries - 11: ZeroBlock, windowEntries - 10: 1,
		windowEntries: 11, 2*windowEntries + 9: windowEntries + 20, 2*windowEntries + 10: ZeroBlock, big - 1: 78} {
		if e, err := table.Entries(single(b), nil); err != nil || e[0] != (Entry{s, true}) {
			t.Errorf("block %d: %+v, %v; expected %d", b, e, err, s)
		}
	}
}
