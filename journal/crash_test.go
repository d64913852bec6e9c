package journal

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// The crash test runs a random life of one disk and at every hook point takes
// what a power cut would leave: the durable store, and an image that forgets,
// by chance, blocks that were not synced. Opened again, every block in which
// the image differs from the table must be known to differ: suspect, or in a
// change set, or its entry unknown (I1, I4, I11).
const crashBlocks = 12 * extent.BlocksPerRegion

// tableModel is a checksum table: durable stamps by block, and unknown blocks.
type tableModel struct {
	stamps  map[extent.FileBlock]uint64
	unknown map[extent.FileBlock]bool
}

type crashRig struct {
	t       *testing.T
	seed    uint64
	rnd     *rand.Rand
	r       *rig
	f       *modelFile
	d       *Disk
	table   tableModel
	stamp   uint64
	crashes map[string]int
	wrong   int // blocks that nobody knows to differ
	quietly bool
}

func newCrashRig(t *testing.T, seed uint64, m mutant) *crashRig {
	c := &crashRig{t: t, seed: seed, rnd: rand.New(rand.NewPCG(seed, 0)), f: newModelFile(crashBlocks), crashes: map[string]int{}}
	c.table = tableModel{map[extent.FileBlock]uint64{}, map[extent.FileBlock]bool{}}
	c.r = newRig(t, Options{ActivityRegions: 6, Hook: c.crash, Retry: time.Hour})
	c.r.j.mutant = m
	c.d = c.r.disk("a", c.f)
	c.d.OnEvict(c.forget)
	return c
}

func (c *crashRig) forget(ranges []extent.Range[extent.FileBlock]) error {
	for _, r := range ranges {
		for b := r.Start; b < r.End; b++ {
			c.table.unknown[b] = true
		}
	}
	return nil
}

// crash is the hook: it opens what a power cut here would leave and judges it.
func (c *crashRig) crash(point string) {
	c.crashes[point]++
	if c.d == nil {
		return
	}
	image, store := c.f.crash(c.rnd), c.r.store.Crash()
	boot := func() Boot { return Boot{ID: "next", Start: image.mu.ctime.Add(1)} }
	j, err := Open(store, Options{Saved: c.t.TempDir(), Boot: boot})
	if err != nil {
		c.t.Fatal(err)
	}
	vm, err := j.VM("vm")
	if err != nil {
		c.t.Fatal(err)
	}
	d, err := vm.AddDisk("a", image, Identity{Ino: 1})
	if err != nil {
		c.t.Fatal(err)
	}
	if err := j.Check(); err != nil {
		c.t.Errorf("seed %d, %s: %v", c.seed, point, err)
	}
	if vm.LastEpoch() < c.r.vm.epochs.last {
		c.t.Errorf("seed %d, %s: epoch %d may be used again", c.seed, point, vm.LastEpoch())
	}
	c.judge(point, d, image)
}

func (c *crashRig) judge(point string, d *Disk, image *modelFile) {
	suspect := extent.Of(d.Suspect()...)
	set := d.vm.phase.Load().set(d.index)
	touched := maps.Clone(c.table.stamps)
	maps.Copy(touched, image.mu.now)
	for b := range touched {
		if image.stamp(b) == c.table.stamps[b] || c.table.unknown[b] || set.Test(b) || suspect.Contains(blocks(b, b+1)) {
			continue
		}
		c.wrong++
		if !c.quietly {
			c.t.Errorf("seed %d, %s: block %d has %d, the table %d, and nobody knows", c.seed, point, b, image.stamp(b), c.table.stamps[b])
		}
		return
	}
}

// step does one random thing.
func (c *crashRig) step() error {
	switch n := c.rnd.IntN(10); {
	case n < 7:
		c.stamp++
		b := extent.FileBlock(c.rnd.IntN(crashBlocks - 8))
		ch := extent.Change{Off: off(b), Len: (1 + c.rnd.Int64N(8)) * extent.BlockSize, Kind: extent.Kind(c.rnd.IntN(3))}
		change(c.t, c.d, c.f, ch, c.stamp)
		return nil
	case n < 9:
		return c.epoch()
	default:
		rest(c.r.vm)
		_, err := c.r.vm.Deactivate(context.Background())
		return err
	}
}

// epoch seals, writes meanwhile, captures and either spools or merges back.
func (c *crashRig) epoch() error {
	s, err := c.r.vm.Seal(SealRequest{SavedLimit: 1 << 30, Extra: map[string][]blockRange{c.d.id: c.unknown()}})
	if err != nil {
		return err
	}
	c.write()
	if err := s.Wait(context.Background()); err != nil {
		return err
	}
	for r := range s.Disks[0].List(1) { // the guest overwrites what the capture wants
		c.stamp++
		write(c.t, c.d, c.f, r.Start, 1, c.stamp)
		break
	}
	got := capture(c.t, s.Disks[0], 0)
	if c.rnd.IntN(4) == 0 {
		return s.MergeBack()
	}
	for b, stamp := range got { // the manifest and the table are durable
		c.table.stamps[b] = stamp
		delete(c.table.unknown, b)
	}
	return s.Spooled()
}

func (c *crashRig) write() {
	c.stamp++
	write(c.t, c.d, c.f, extent.FileBlock(c.rnd.IntN(crashBlocks)), 1, c.stamp)
}

func (c *crashRig) unknown() []blockRange {
	var out []blockRange
	for b := range c.table.unknown {
		out = append(out, blocks(b, b+1))
	}
	return out
}

func runCrashes(t *testing.T, seeds, steps int, m mutant, quietly bool) (wrong int, points map[string]int) {
	points = map[string]int{}
	for seed := range uint64(seeds) {
		c := newCrashRig(t, seed, m)
		c.quietly = quietly
		for range steps {
			if err := c.step(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			c.crash("between steps")
			if t.Failed() {
				return c.wrong, points
			}
		}
		c.r.close()
		for p, n := range c.crashes {
			points[p] += n
		}
		wrong += c.wrong
	}
	return wrong, points
}

func TestI1_I4_I11_PowerCutAtEveryPoint(t *testing.T) {
	seeds := 6
	if testing.Short() {
		seeds = 1
	}
	_, points := runCrashes(t, seeds, 60, mutant{}, false)
	for _, p := range []string{
		BeforeActivationCommit, AfterActivationCommit, BeforeDeactivationSync, AfterDeactivationSync, BeforeDeactivationApply, AfterDeactivationApply,
		BeforeEvictionForget, AfterEvictionForget, AfterEvictionApply, BeforeEpochReserve, AfterEpochReserve, AfterPhaseSwitch, AfterSettle,
		AfterBlocksClaimed, AfterBlocksSaved, BeforeReaderSwap, AfterMergeBack, AfterEpochEnd, BeforeCleanSets, AfterCleanSets, AfterCleanFlag,
	} {
		if points[p] == 0 {
			t.Errorf("no crash %s", p)
		}
	}
}

// The mutant "deactivate at spool", without a Datasync, must be caught.
func TestI4_MutantWithoutSyncIsCaught(t *testing.T) {
	wrong, _ := runCrashes(t, 3, 60, mutant{skipSync: true}, true)
	if wrong == 0 {
		t.Error("deactivating without a sync goes unseen")
	}
}

// The failing journal's own points: before and after the mark, the rewrite and
// the removal, a power cut leaves every change known.
func TestI9_I11_PowerCutWhileFailing(t *testing.T) {
	for seed := range uint64(10) {
		c := newCrashRig(t, seed, mutant{})
		for i := range 30 {
			if i%3 == 0 {
				c.r.j.fail(errDisk)
			}
			c.write()
			c.crash("while failing")
			if i%5 == 4 {
				if err := c.r.j.rewriteAll(); err != nil {
					t.Fatal(err)
				}
				c.crash("between rewrite and removal")
				c.r.j.clearMarks()
			}
		}
		for _, p := range []string{BeforeImageMark, AfterImageMark, BeforeRewrite, AfterRewrite, AfterMarkRemoved} {
			if c.crashes[p] == 0 {
				t.Errorf("no crash %s", p)
			}
		}
		if t.Failed() {
			return
		}
	}
}

// A store that was reopened in the middle of an open loses nothing either.
func TestR2_R8_PowerCutDuringOpen(t *testing.T) {
	c := newCrashRig(t, 1, mutant{})
	for range 40 {
		if err := c.step(); err != nil {
			t.Fatal(err)
		}
	}
	c.r.close()
	store := c.r.store
	for _, point := range []string{AfterSessionStart, AfterDiskUnclean, "opened"} {
		store = openAndJudge(t, c, store, c.f, point)
	}
}

// openAndJudge opens a crashed copy up to point, cuts, opens the cut and judges.
func openAndJudge(t *testing.T, c *crashRig, store *memory.Store, image *modelFile, point string) *memory.Store {
	t.Helper()
	live := store.Crash()
	var cut *memory.Store
	hook := func(p string) {
		if p == point && cut == nil {
			cut = live.Crash()
		}
	}
	r := openRig(t, live, Options{Hook: hook})
	r.disk("a", image)
	if cut == nil {
		cut = live.Crash()
	}
	r2 := openRig(t, cut.Crash(), Options{})
	c.judge(fmt.Sprint("open cut ", point), r2.disk("a", image), image)
	return cut
}
