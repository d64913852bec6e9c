package resync

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

func blankTable(t testing.TB, blocks extent.DiskBlock) *checksum.Table {
	t.Helper()
	table, err := checksum.CreateTable(filepath.Join(t.TempDir(), "table"), blocks)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(table.Check(), table.Close()); err != nil {
			t.Error(err)
		}
	})
	return table
}

// entriesHold checks that what is known is what the replica has.
func entriesHold(t *testing.T, table *checksum.Table, data []byte) {
	t.Helper()
	sums := checksum.Blocks(nil, data)
	entries, err := table.Entries(diskRange{End: table.Blocks()}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range entries {
		want := checksum.ZeroBlock
		if i < len(sums) {
			want = sums[i]
		}
		if e.Known && e.Sum != want {
			t.Fatalf("block %d is known and is not what the target holds", i)
		}
	}
}

func unknownOf(table *checksum.Table) (set diskSet) {
	for r := range table.Unknown().Ranges(diskRange{End: table.Blocks()}, 0) {
		set.Add(r)
	}
	return set
}

func TestMatchLeavesUnknownExactlyWhatDiffers(t *testing.T) {
	const size = 48<<20 + 3*blockSize
	src := full(1, size)
	clear(src[8<<20 : 20<<20]) // zeros at the source, partly a hole at the target
	rep := &replica{data: slices.Clone(src)}
	want := damaged(rand.New(rand.NewPCG(3, 3)), rep.data, 12)
	table := blankTable(t, size/blockSize)
	m := NewMatch(MatchDeps{Source: bytes.NewReader(src), Layout: layout{size: size}, Table: table, Replica: rep}, Options{})
	report, err := m.Run(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := unknownOf(table); !slices.Equal(got.Ranges(), want.Ranges()) || report.Differing != want.Blocks()*blockSize || report.Compared != size {
		t.Errorf("unknown %v, want %v; %+v", got.Ranges(), want.Ranges(), report)
	}
	entriesHold(t, table, rep.data)
	if n := int64(len(chunksOf(want))); report.Downloaded > n<<20 {
		t.Errorf("downloaded %d bytes of %d chunks", report.Downloaded, n)
	}
}

// A region was evicted while its block was looked at: only the unknown entry tells
// of what the guest wrote, so it stays.
func TestI4_MatchDoesNotLearnWhatIsForgottenMeanwhile(t *testing.T) {
	src := full(2, 4<<20)
	table := blankTable(t, 1024)
	rep := &replica{data: slices.Clone(src)}
	evicted := diskRange{Start: 40, End: 44}
	source := readerFunc(func(p []byte, off int64) (int, error) {
		n := copy(p, src[off:])
		if err := table.Forget(evicted); err != nil {
			t.Error(err)
		}
		return n, nil
	})
	report, err := NewMatch(MatchDeps{Source: source, Layout: layout{size: 4 << 20}, Table: table, Replica: rep}, Options{}).Run(t.Context(), 0)
	if got := unknownOf(table); err != nil || !slices.Equal(got.Ranges(), []diskRange{evicted}) {
		t.Errorf("%+v %v: unknown %v", report, err, got.Ranges())
	}
}

type readerFunc func(p []byte, off int64) (int, error)

func (f readerFunc) ReadAt(p []byte, off int64) (int, error) { return f(p, off) }

// What epochs after the snapshot carry is no business of a match, and what is
// known is not read again.
func TestMatchSkipsCarriedAndKnown(t *testing.T) {
	src := full(3, 12<<20)
	table := blankTable(t, 3072)
	if err := table.Learn(diskRange{Start: 1024, End: 2048}, checksum.Blocks(nil, src[4<<20:8<<20])); err != nil {
		t.Fatal(err)
	}
	rep := &replica{data: slices.Clone(src)}
	rep.carried.Add(diskRange{Start: 10, End: 20})
	report, err := NewMatch(MatchDeps{Source: bytes.NewReader(src), Layout: layout{size: 12 << 20}, Table: table, Replica: rep}, Options{}).Run(t.Context(), 0)
	if got := unknownOf(table); err != nil || !slices.Equal(got.Ranges(), []diskRange{{Start: 10, End: 20}}) || report.Skipped != 1034*blockSize {
		t.Errorf("%+v %v: unknown %v", report, err, got.Ranges())
	}
	for _, r := range rep.asked {
		if r.Overlaps(diskRange{Start: 1024, End: 2048}) {
			t.Errorf("asked for %v, which is known", r)
		}
	}
}

// It goes on where it was, and an empty replica is all hole.
func TestMatchGoesOnAtItsCursor(t *testing.T) {
	src := make([]byte, 16<<20)
	copy(src[9<<20:], full(4, 1<<20))
	table := blankTable(t, 4096)
	var at extent.DiskBlock
	deps := MatchDeps{Source: bytes.NewReader(src), Layout: layout{size: 16 << 20}, Table: table, Replica: &replica{},
		Passed: func(b extent.DiskBlock) error { at = b; return nil }}
	report, err := NewMatch(deps, Options{}).Run(t.Context(), 2048)
	if err != nil || at != 4096 || report.Total != 8<<20 || report.Cost != (Cost{}) || report.Differing != 1<<20 {
		t.Errorf("%+v %v, passed %d", report, err, at)
	}
	if got := unknownOf(table); !slices.Equal(got.Ranges(), []diskRange{{Start: 0, End: 2048}, {Start: 9 * 256, End: 10 * 256}}) {
		t.Errorf("unknown %v", got.Ranges())
	}
}
