package checksum

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// powered makes a table of 9 blocks, and of some pages, on a powerFile.
func powered(t *testing.T) (*Table, *powerFile) {
	t.Helper()
	h := header{blocks: 9, id: goldenID}
	file := resized(h.encode(), entriesStart+9*entrySize)
	f := &powerFile{now: file, durable: slices.Clone(file)}
	table, err := open("power", f)
	must(t, err)
	f.ops, f.trace = 0, nil
	return table, f
}

// One epoch's order of operations (README, "Commit"), as text.
func TestGoldenTraceOfACommit(t *testing.T) {
	table, f := powered(t)
	table.Hook(func(point string) { f.trace = append(f.trace, "("+point+")") })
	must(t, table.Commit(1, 12, list(sums(0, 5, 0))))
	must(t, table.Forget(dr(0, 2)))
	got := strings.Join(f.trace, "\n")
	const want = `entries
side list
(after side list)
entries
(after entries)
sync
(after entries sync)
header
(after header)
sync
(after header sync)
side list
entries
(after forgetting)
sync`
	if got != want {
		t.Errorf("trace is\n%s\nexpected\n%s", got, want)
	}
}

// epochs is a history: what each commit gets.
type epoch struct {
	blocks int
	cs     []Change
}

func history(r *rand.Rand) (h []epoch) {
	for range 6 {
		n := size(r)
		h = append(h, epoch{n, randomEpoch(r, n)})
	}
	return h
}

func commit(table *Table, n uint64, e epoch) error {
	return table.Commit(n, extent.DiskBlock(e.blocks), list(e.cs...))
}

// A power cut at any point of any commit, any unsynced sectors lost: the
// position says an epoch whose commit had at least begun and no acknowledged one
// is missing; the redo from there gives what would have been without it.
func TestPowerCutThenRedo(t *testing.T) {
	for seed := uint64(0); seed < 25; seed++ {
		r := rand.New(rand.NewPCG(41, seed))
		table, f := powered(t)
		h := history(r)
		o := slices.Repeat(oracle{unknownEntry}, 9)
		done := uint64(0)
		crash := func(string) {
			for _, left := range []*powerFile{f.cut(r), f.cut(r), f.kill()} {
				redo(t, seed, left, h, done)
			}
		}
		table.Hook(crash)
		for i, e := range h {
			o = o.after(e.blocks, e.cs)
			must(t, commit(table, uint64(i)+1, e))
			done = uint64(i) + 1
			crash("between")
		}
		want(t, table, o...)
	}
}

// redo follows the numbered steps of the README on what a crash left.
func redo(t *testing.T, seed uint64, left *powerFile, h []epoch, acknowledged uint64) {
	t.Helper()
	table, err := open("redo", left)
	if err != nil {
		t.Fatalf("seed %d: %v", seed, err)
	}
	if p := table.Position(); p < acknowledged || p > acknowledged+1 {
		t.Fatalf("seed %d: position %d after epoch %d was acknowledged", seed, p, acknowledged)
	}
	o := slices.Repeat(oracle{unknownEntry}, 9)
	for i, e := range h {
		o = o.after(e.blocks, e.cs)
		must(t, commit(table, uint64(i)+1, e))
	}
	want(t, table, o...)
	must(t, table.Check())
	if again, err := open("redone", left.cut(rand.New(rand.NewPCG(seed, 1)))); err != nil || again.Position() != uint64(len(h)) {
		t.Fatalf("seed %d: the redo is not durable: %v", seed, err)
	}
}

// What Forget has acknowledged stays unknown after any power cut.
func TestPowerCutKeepsForgotten(t *testing.T) {
	for seed := uint64(0); seed < 100; seed++ {
		r := rand.New(rand.NewPCG(42, seed))
		table, f := powered(t)
		h := history(r)
		for i, e := range h {
			must(t, commit(table, uint64(i)+1, e))
		}
		b := extent.DiskBlock(r.IntN(int(table.Blocks())))
		before, err := table.Entries(single(b), nil)
		must(t, err)
		table.Hook(func(string) {
			left, err := open("half", f.cut(r))
			must(t, err)
			if e, err := left.Entries(single(b), nil); err != nil || e[0].Known && e[0] != before[0] {
				t.Errorf("seed %d: half forgotten is %+v, %v; was %+v", seed, e, err, before)
			}
		})
		must(t, table.Forget(single(b)))
		left, err := open("cut", f.cut(r))
		must(t, err)
		if e, err := left.Entries(single(b), nil); err != nil || e[0].Known {
			t.Fatalf("seed %d: forgotten block %d is %+v, %v", seed, b, e, err)
		}
	}
}

// The same with real files: copies taken at each point of a commit are redone
// to the same bytes of entries.
func TestCrashAtEachPointOfARealFile(t *testing.T) {
	table, path := create(t, 600)
	e1 := epoch{600, []Change{{Range: dr(0, 600)}}}
	e2 := epoch{700, []Change{sums(0, 5, 0, 6), sums(650, 7)}}
	must(t, commit(table, 1, e1))
	dir := t.TempDir()
	var copies []string
	table.Hook(func(point string) {
		to := filepath.Join(dir, strings.ReplaceAll(point, " ", "-"))
		for _, ext := range []string{"", ".zeros"} {
			if p, err := os.ReadFile(path + ext); err == nil {
				must(t, os.WriteFile(to+ext, p, 0o600))
			}
		}
		copies = append(copies, to)
	})
	must(t, commit(table, 2, e2))
	expected, err := table.Entries(dr(0, 700), nil)
	must(t, err)
	if len(copies) != 5 {
		t.Fatalf("%d points: %v", len(copies), copies)
	}
	for _, c := range copies {
		again, err := OpenTable(c)
		must(t, err)
		checkAtEnd(t, again)
		must(t, commit(again, 2, e2))
		if got, err := again.Entries(dr(0, 700), nil); err != nil || !slices.Equal(got, expected) {
			t.Errorf("%s: redo differs: %v", c, err)
		}
	}
}

// Fail the k-th operation for every k: it is reported, the table refuses from
// then on, and a reopen and redo finds everything right.
func TestEveryFailureIsReportedAndSticky(t *testing.T) {
	r := rand.New(rand.NewPCG(43, 0))
	h := history(r)
	for k := 1; ; k++ {
		table, f := powered(t)
		f.failAt = k
		failed := false
		done := uint64(0)
		for i, e := range h {
			err := commit(table, uint64(i)+1, e)
			if err == nil {
				err = table.Forget() // nothing: no operation
			}
			if failed = err != nil; failed {
				if !errors.Is(err, errInjected) || !errors.Is(err, ErrBroken) {
					t.Fatalf("operation %d: %v", k, err)
				}
				break
			}
			done++
		}
		if !failed {
			if f.ops >= k {
				t.Fatalf("the failure of operation %d went unreported", k)
			}
			return
		}
		refusesEverything(t, table)
		redoAfterFailure(t, f, h, done)
	}
}

func redoAfterFailure(t *testing.T, f *powerFile, h []epoch, done uint64) {
	t.Helper()
	r := rand.New(rand.NewPCG(44, uint64(f.failAt)))
	redo(t, uint64(f.failAt), f.kill(), h, done)
	redo(t, uint64(f.failAt), f.cut(r), h, done)
}

func refusesEverything(t *testing.T, table *Table) {
	t.Helper()
	_, entries := table.Entries(dr(0, 1), nil)
	_, _, after := table.SumAfter(1, list())
	for name, err := range map[string]error{
		"Entries": entries, "SumAfter": after, "Commit": table.Commit(99, 1, list()), "Forget": table.Forget(dr(0, 1)),
		"Learn": table.Learn(dr(0, 1), nil), "Sync": table.Sync(), "Check": table.Check(),
	} {
		if !errors.Is(err, ErrBroken) {
			t.Errorf("%s after a failure: %v", name, err)
		}
	}
	if _, ok := table.DiskSum(); ok {
		t.Error("DiskSum after a failure")
	}
}

// A reader beside commits sees an entry of before or after, never a mixture.
func TestReadersSeeWholeEntries(t *testing.T) {
	table, _ := create(t, 2000)
	fill := func(s Sum) Change { return sums(0, slices.Repeat([]Sum{s}, 2000)...) }
	const a, b = 0x1111111111111111, 0x2222222222222222
	must(t, table.Commit(1, 2000, list(fill(a))))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			var dst []Entry
			for {
				select {
				case <-stop:
					return
				default:
				}
				var err error
				dst, err = table.Entries(dr(0, 2000), dst[:0])
				if err != nil || slices.ContainsFunc(dst, func(e Entry) bool { return e.Sum != a && e.Sum != b || !e.Known }) {
					t.Errorf("entries of no epoch: %v", err)
					return
				}
			}
		})
	}
	for i := uint64(2); i < 60; i++ {
		must(t, table.Commit(i, 2000, list(fill([]Sum{a, b}[i%2]))))
		table.UnknownCount()
		table.DiskSum()
	}
	close(stop)
	wg.Wait()
}
