package extent

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

type bitmap = Bitmap[FileBlock]

// spread places the model's 600 blocks across three pages of a bitmap, so that
// every range in it may cross a border.
const spread = 2*pageBlocks - 300

func at(r rng) rng { return rng{r.Start + spread, r.End + spread} }

func shifted(ranges []rng) []rng {
	var out []rng
	for _, r := range ranges {
		out = append(out, at(r))
	}
	return out
}

func checkBitmap(t *testing.T, b *bitmap, m *model) {
	t.Helper()
	want := shifted(m.ranges())
	if got := slices.Collect(b.Ranges(rng{0, 1 << 60}, 0)); !slices.Equal(got, want) {
		t.Fatalf("runs %v, expected %v", got, want)
	}
	if n := m.count(rng{0, 600}); b.Count() != n {
		t.Fatalf("count %d, expected %d", b.Count(), n)
	}
	end := FileBlock(0)
	if len(want) > 0 {
		end = want[len(want)-1].End
	}
	if b.End() != end {
		t.Fatalf("end %d, expected %d", b.End(), end)
	}
}

func TestBitmapEqualsModel(t *testing.T) {
	const seed = 21
	r := rand.New(rand.NewPCG(seed, 0))
	var b bitmap
	var m model
	for i := range 30000 {
		x := randomRange(r, 600)
		if i%300 == 0 {
			x = rng{0, 600} // wider than a word, than a page border
		}
		set := m.count(x)
		switch r.IntN(5) {
		case 0, 1:
			if added := b.SetIfClear(at(x)); added != x.Len()-set {
				t.Fatalf("seed %d, step %d: %d added, expected %d", seed, i, added, x.Len()-set)
			}
			m.put(x, true)
		case 2, 3:
			b.Clear(at(x))
			m.put(x, false)
		case 4:
			x.End = x.Start + 1
			if got := b.ClearOne(at(x).Start); got != m[x.Start] {
				t.Fatalf("seed %d, step %d: clearing %v said %v", seed, i, x, got)
			}
			m.put(x, false)
		}
		q := randomRange(r, 600)
		if b.Any(at(q)) != (m.count(q) > 0) || b.CountIn(at(q)) != m.count(q) || b.Test(at(x).Start) != m[x.Start] {
			t.Fatalf("seed %d, step %d: %v or %v is read wrongly", seed, i, q, x)
		}
		if i%16 == 0 {
			checkBitmap(t, &b, &m)
		}
	}
}

func TestRangesAreClippedAndCut(t *testing.T) {
	var b bitmap
	b.Set(rng{10, 30})
	b.Set(rng{pageBlocks - 5, pageBlocks + 7})
	got := slices.Collect(b.Ranges(rng{12, pageBlocks + 2}, 8))
	want := []rng{{12, 20}, {20, 28}, {28, 30}, {pageBlocks - 5, pageBlocks + 2}}
	if !slices.Equal(got, want) {
		t.Errorf("runs %v, expected %v", got, want)
	}
	for stop := 1; stop <= len(want); stop++ {
		n := 0
		for range b.Ranges(rng{12, pageBlocks + 2}, 8) {
			if n++; n == stop {
				break
			}
		}
		if n != stop {
			t.Errorf("stopped after %d of %d", n, stop)
		}
	}
}

func TestBitmapSkipsWhatWasNeverSet(t *testing.T) {
	var b bitmap
	if b.Any(rng{0, 1 << 50}) || b.Test(1<<40) || b.ClearOne(3) || b.End() != 0 || b.Memory() != 0 {
		t.Error("the zero value is not empty")
	}
	b.Clear(rng{0, 1 << 50})
	b.Set(rng{5 * pageBlocks, 5*pageBlocks + 1})
	if b.Any(rng{0, 5 * pageBlocks}) || !b.Any(rng{0, 1 << 50}) || b.Test(2*pageBlocks) || b.Test(1<<40) {
		t.Error("a page never set is read wrongly")
	}
	if got := b.Memory(); got != 4096+6*8 {
		t.Errorf("one bit costs %d bytes", got)
	}
	b.Reset()
	if b.Memory() != 0 || b.Count() != 0 || b.Any(rng{0, 1 << 50}) {
		t.Error("reset leaves something")
	}
}

// 1 TiB of disk, all of it dirty, costs 32 MiB a bitmap (DESIGN §8 allows three).
func TestMemoryOfATebibyte(t *testing.T) {
	var b bitmap
	b.Set(rng{0, 1 << 28})
	if got := b.Memory(); got > 33<<20 || b.Count() != 1<<28 {
		t.Errorf("%d bytes for %d blocks", got, b.Count())
	}
}

func TestOrAndCloneEqualModel(t *testing.T) {
	r := rand.New(rand.NewPCG(22, 0))
	for range 300 {
		var a, b bitmap
		var ma, mb model
		for range 12 {
			x, y := randomRange(r, 600), randomRange(r, 600)
			a.Set(at(x))
			ma.put(x, true)
			b.Set(at(y))
			mb.put(y, true)
			b.Clear(at(x))
			mb.put(x, false)
		}
		c := a.Clone()
		a.Or(&b)
		checkBitmap(t, c, &ma)
		for i := range ma {
			ma[i] = ma[i] || mb[i]
		}
		checkBitmap(t, &a, &ma)
		checkBitmap(t, &b, &mb)
	}
}

func TestOrOfEmptyPagesCostsNone(t *testing.T) {
	var a, b bitmap
	b.Set(rng{0, 8})
	b.Clear(rng{0, 8})
	a.Or(&b)
	if a.Memory() != 0 {
		t.Errorf("%d bytes for no bit", a.Memory())
	}
}

// Every block is set, and then cleared, by exactly one of the callers racing
// for it, however the directory grows meanwhile.
func TestBitmapCountsEachTransitionOnce(t *testing.T) {
	const workers, blocks = 4, 2 * 40 * 512
	var b bitmap
	var added, cleared atomic.Int64
	race := func(f func(r *rand.Rand)) {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { f(rand.New(rand.NewPCG(23, uint64(w)))) })
		}
		wg.Wait()
	}
	race(func(r *rand.Rand) {
		for _, i := range r.Perm(blocks / 40) {
			x := rng{FileBlock(i * 40), FileBlock(i*40 + 40)}
			added.Add(b.SetIfClear(x))
			if !b.Any(x) || !b.Test(x.Start) {
				t.Error("a set bit is not seen")
				return
			}
		}
	})
	if added.Load() != blocks || b.Count() != blocks {
		t.Fatalf("%d added, count %d, expected %d", added.Load(), b.Count(), blocks)
	}
	race(func(r *rand.Rand) {
		for i := range FileBlock(blocks) {
			if b.ClearOne(i) {
				cleared.Add(1)
			}
		}
	})
	if cleared.Load() != blocks || b.Count() != 0 || b.Any(rng{0, blocks}) {
		t.Fatalf("%d cleared, count %d", cleared.Load(), b.Count())
	}
}

// Callers that meet at the same word, or at a page that neither finds, lose
// nothing of each other's.
func TestNeighboursDoNotLoseBits(t *testing.T) {
	const workers, blocks = 2, 512
	for round := range 1500 {
		var b bitmap
		b.Set(rng{pageBlocks, pageBlocks + FileBlock(round%2)})
		b.Clear(rng{pageBlocks, pageBlocks + 1})
		var ready atomic.Int32
		var wg sync.WaitGroup
		for w := range FileBlock(workers) {
			wg.Go(func() {
				for ready.Add(1); ready.Load() < workers; {
					runtime.Gosched()
				}
				for i := w; i < blocks; i += workers {
					b.Set(rng{i, i + 1})
				}
				for i := w; i < blocks; i += 2 * workers {
					b.ClearOne(i)
				}
			})
		}
		wg.Wait()
		for i := range FileBlock(blocks) {
			if b.Test(i) == (i%(2*workers) < workers) {
				t.Fatalf("round %d: block %d is %v", round, i, b.Test(i))
			}
		}
		if b.Count() != blocks/2 {
			t.Fatalf("round %d: count %d", round, b.Count())
		}
	}
}

// A block set throughout is reported in every iteration, none twice.
func TestRangesBesideChanges(t *testing.T) {
	var b bitmap
	fixed := func(r FileBlock) bool { return r%3 == 0 }
	for i := FileBlock(0); i < 2*pageBlocks; i += 3 {
		b.Set(rng{i, i + 1})
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := FileBlock(0); !stop.Load(); i = (i + 1) % (2 * pageBlocks) {
			if !fixed(i) {
				b.Set(rng{i, i + 1})
				b.Clear(rng{i, i + 1})
			}
		}
	})
	for range 25 {
		last, seen := FileBlock(-1), 0
		for run := range b.Ranges(rng{0, 1 << 40}, 7) {
			if run.Start < last || run.Empty() || run.Len() > 7 {
				t.Fatalf("run %v after %d", run, last)
			}
			last = run.End
			for i := run.Start; i < run.End; i++ {
				if fixed(i) {
					seen++
				}
			}
		}
		if want := (2*pageBlocks + 2) / 3; seen != want {
			t.Fatalf("%d of %d fixed blocks reported", seen, want)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	var b bitmap
	b.Set(rng{0, 3 * pageBlocks})
	var sealed bitmap
	sealed.Set(rng{9, 10})
	x := rng{pageBlocks - 100, pageBlocks + 156}
	if n := testing.AllocsPerRun(100, func() { b.Set(x); sealed.Any(x); b.Test(x.Start); b.ClearOne(7); b.Set(rng{7, 8}) }); n != 0 {
		t.Errorf("%v allocations a write", n)
	}
}

func BenchmarkSetAlreadySet(b *testing.B) {
	for name, n := range map[string]FileBlock{"4KiB": 1, "1MiB": 256} {
		b.Run(name, func(b *testing.B) {
			var m bitmap
			m.Set(rng{0, 1 << 20})
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := FileBlock(0); pb.Next(); i = (i + 777) & (1<<19 - 1) {
					m.Set(rng{i, i + n})
				}
			})
		})
	}
}

func BenchmarkAny(b *testing.B) {
	for name, n := range map[string]FileBlock{"4KiB": 1, "1MiB": 256} {
		b.Run(name, func(b *testing.B) {
			var m bitmap
			m.Set(rng{1 << 20, 1<<20 + 1}) // pages there, bits not
			for i := FileBlock(0); i < 1<<20; i += pageBlocks {
				m.Set(rng{i, i + 1})
				m.ClearOne(i)
			}
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for i := FileBlock(0); pb.Next(); i = (i + 777) & (1<<19 - 1) {
					m.Any(rng{i, i + n})
				}
			})
		})
	}
}

func BenchmarkSetNew(b *testing.B) {
	var m bitmap
	b.ReportAllocs()
	for i := FileBlock(0); b.Loop(); i++ {
		m.Set(rng{i, i + 1})
	}
}

func BenchmarkRangesOfATebibyteHalfSet(b *testing.B) {
	var m bitmap
	for i := FileBlock(0); i < 1<<28; i += 512 {
		m.Set(rng{i, i + 256})
	}
	for b.Loop() {
		for range m.Ranges(rng{0, 1 << 40}, 1024) {
		}
	}
}
