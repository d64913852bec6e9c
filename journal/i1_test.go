package journal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// recorded says whether every region of c has its record, or the image its mark.
func recorded(s kv.Store, d *Disk, f *modelFile, c extent.Change) error {
	if marked, _ := f.SuspectMarked(); marked {
		return nil
	}
	span := regionsOf(c.Blocks())
	for r := span.first; r < span.end; r++ {
		if !hasRecord(s, d, r) {
			return fmt.Errorf("region %d is written without a record", r)
		}
	}
	return nil
}

func TestI1_RecordIsDurableBeforeTheChange(t *testing.T) {
	const seed, regions = 3, 64
	r := newRig(t, Options{ActivityRegions: 16})
	f := newModelFile(regions * extent.BlocksPerRegion)
	d := r.disk("a", f)
	d.OnEvict(func([]extent.Range[extent.FileBlock]) error { return nil })
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(w)))
			for range 400 {
				c := extent.Change{Off: rnd.Int64N((regions - 2) * extent.RegionSize), Len: 1 + rnd.Int64N(extent.RegionSize)}
				p, err := d.Begin(c)
				if err != nil {
					t.Error(err)
					return
				}
				if err := recorded(r.store, d, f, c); err != nil {
					t.Errorf("seed %d: %v", seed, err)
				}
				d.End(c, p, nil)
			}
		})
	}
	wg.Wait()
	if r.j.Stats().Evictions == 0 {
		t.Error("nothing was evicted: the test proves too little")
	}
	r.check()
}

func TestI1_SteadyStateCommitsNothing(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(8 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 8*extent.BlocksPerRegion, 1)
	before := r.store.Applies()
	for b := range extent.FileBlock(8 * extent.BlocksPerRegion) {
		write(t, d, f, b, 1, 2)
	}
	if n := r.store.Applies() - before; n != 0 {
		t.Errorf("%d commits in the steady state", n)
	}
	if a := testing.AllocsPerRun(100, func() { write(t, d, f, 5, 1, 3) }); a != 0 {
		t.Errorf("%v allocations a write", a)
	}
}

func TestI1_WaitingActivationsShareACommit(t *testing.T) {
	gate, entered := make(chan struct{}), make(chan struct{}, 100)
	r := newRig(t, Options{ActivationTimeout: time.Hour})
	f := newModelFile(64 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	before := r.store.Applies()
	r.store.Before = func(n int, _ *kv.Batch) memory.Fault {
		entered <- struct{}{}
		<-gate
		return memory.None
	}
	var wg sync.WaitGroup
	begin := func(i extent.FileBlock) {
		wg.Go(func() { write(t, d, f, i*extent.BlocksPerRegion, 1, 1) })
	}
	begin(0)
	<-entered
	for i := range extent.FileBlock(40) {
		begin(1 + i)
	}
	for queued := 0; queued < 40; {
		r.j.commit.q.Lock()
		queued = len(r.j.commit.q.waiting)
		r.j.commit.q.Unlock()
	}
	close(gate)
	wg.Wait()
	if n := r.store.Applies() - before; n != 2 {
		t.Errorf("%d commits for 1 and 40 waiting activations", n)
	}
}

// Fail the k-th store operation for every k, with both outcomes: no write
// fails, none goes ahead without a record or a mark, and the journal recovers.
func TestI9_EveryStoreOperationMayFail(t *testing.T) {
	for _, fault := range []memory.Fault{memory.Lost, memory.Landed} {
		for k := 1; ; k++ {
			ran := false
			synctest.Test(t, func(t *testing.T) { ran = failKth(t, k, fault) })
			if t.Failed() {
				t.Fatalf("operation %d, fault %d", k, fault)
			}
			if !ran {
				t.Logf("fault %d: %d operations", fault, k-1)
				break
			}
		}
	}
}

// failKth runs a small life of a journal whose k-th commit fails; false: there was none.
func failKth(t *testing.T, k int, fault memory.Fault) bool {
	hit := false
	store := &memory.Store{Before: func(n int, _ *kv.Batch) memory.Fault {
		if n == k {
			hit = true
			return fault
		}
		return memory.None
	}}
	j, err := Open(store, Options{ActivityRegions: 4, Saved: t.TempDir(), Boot: func() Boot { return modelBoot }})
	if err != nil {
		return reported(t, hit, err)
	}
	vm, err := j.VM("vm")
	if err != nil {
		return reported(t, hit, err)
	}
	f := newModelFile(16 * extent.BlocksPerRegion)
	d, err := vm.AddDisk("a", f, Identity{Ino: 1})
	if err != nil {
		return reported(t, hit, err)
	}
	d.OnEvict(func([]extent.Range[extent.FileBlock]) error { return nil })
	for i := range extent.FileBlock(8) {
		c := extent.Change{Off: off(i * extent.BlocksPerRegion), Len: extent.BlockSize}
		p, err := d.Begin(c)
		if err != nil {
			t.Errorf("a write failed: %v", err)
			return false
		}
		if err := recorded(store, d, f, c); err != nil {
			t.Error(err)
		}
		d.End(c, p, nil)
	}
	if s, err := vm.Seal(SealRequest{SavedLimit: 1}); err == nil {
		if err := errors.Join(s.Wait(t.Context()), s.Spooled()); err != nil {
			t.Error(err)
		}
		rest(vm)
		_, err = vm.Deactivate(t.Context())
		if err != nil && !hit {
			t.Error(err)
		}
	} else if !hit {
		t.Error(err)
	}
	lapse(5 * DefaultRetry) // fake time of the bubble: the recovery loop has its turns
	if err := j.Failing(); err != nil {
		t.Errorf("not recovered: %v", err)
	}
	if err := j.Check(); err != nil {
		t.Error(err)
	}
	if marked, _ := f.SuspectMarked(); marked {
		t.Error("the image keeps its mark")
	}
	if err := j.Close(t.Context()); err != nil {
		return reported(t, hit, err)
	}
	return hit
}

// reported accepts an error if a fault was injected.
func reported(t *testing.T, hit bool, err error) bool {
	if !hit {
		t.Errorf("without a fault: %v", err)
	}
	return hit
}

func TestI9_SlowActivationGoesOnUnderTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := newRig(t, Options{})
		f := newModelFile(64 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		write(t, d, f, 0, 1, 1)
		r.store.Before = func(int, *kv.Batch) memory.Fault { <-hang; return memory.None }
		began := time.Now()
		write(t, d, f, extent.BlocksPerRegion, 1, 1)
		if took := time.Since(began); took != DefaultActivationTimeout {
			t.Errorf("the write took %v", took)
		}
		began = time.Now()
		for i := range extent.FileBlock(10) {
			write(t, d, f, (2+i)*extent.BlocksPerRegion, 1, 1)
		}
		if time.Since(began) != 0 || f.mu.marks != 1 {
			t.Errorf("later writes took %v and %d marks", time.Since(began), f.mu.marks)
		}
		rest(r.vm)
		if _, err := r.vm.Deactivate(t.Context()); !errors.Is(err, ErrFailing) {
			t.Errorf("deactivate: %v", err)
		}
		close(hang)
		lapse(3 * DefaultRetry) // fake time of the bubble
		if marked, _ := f.SuspectMarked(); marked || r.j.Failing() != nil {
			t.Errorf("marked %v, failing %v", marked, r.j.Failing())
		}
		for i := range region(12) {
			if !hasRecord(r.store, d, i) {
				t.Errorf("region %d has no record", i)
			}
		}
		r.check()
		r.close()
	})
}

// The mark is removed only when every active region has its record, whatever
// order commits, failures and new activations come in.
func TestI9_MarkIsRemovedAfterTheRewrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		f := newModelFile(64 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		var bad atomic.Bool
		bad.Store(true)
		rnd := rand.New(rand.NewPCG(9, 9))
		r.store.Before = func(n int, _ *kv.Batch) memory.Fault {
			if !bad.Load() {
				return memory.None
			}
			return []memory.Fault{memory.None, memory.Lost, memory.None, memory.Landed, memory.Lost}[n*n%5]
		}
		f.mu.onClear = func() {
			for _, g := range d.regions.list() {
				if !hasRecord(r.store, d, g) {
					t.Errorf("mark removed while region %d has no record", g)
				}
			}
		}
		for i := range extent.FileBlock(60) {
			write(t, d, f, i*extent.BlocksPerRegion, 1, 1)
			lapse(time.Duration(rnd.IntN(900)) * time.Millisecond) // fake time of the bubble
		}
		bad.Store(false)
		lapse(5 * DefaultRetry)
		if r.j.Failing() != nil || f.mu.marks < 2 {
			t.Errorf("failing %v, %d marks", r.j.Failing(), f.mu.marks)
		}
		r.check()
		r.close()
	})
}

func TestI9_OnlyAnUnmarkableImageFailsTheWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		f := newModelFile(64 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		write(t, d, f, 0, 1, 1)
		f.set(func() { f.mu.markErr = errDisk })
		r.store.Before = func(int, *kv.Batch) memory.Fault { return memory.Lost }
		c := extent.Change{Off: extent.RegionSize - 10, Len: 20}
		if _, err := d.Begin(c); !errors.Is(err, ErrUntracked) || !errors.Is(err, errDisk) {
			t.Errorf("begin: %v", err)
		}
		write(t, d, f, 0, 1, 2) // active already: costs nothing, needs nothing
		if d.regions.pinned() {
			t.Error("a refused change keeps a pin")
		}
		if err := r.j.Close(t.Context()); !errors.Is(err, ErrFailing) {
			t.Errorf("close: %v", err)
		}
	})
}

func TestI9_ALeavingRegionThatHangsIsWrittenUnderTheMark(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := newRig(t, Options{})
		f := newModelFile(4 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		write(t, d, f, 0, 1, 1)
		spooled(t, r.sealed(SealRequest{}))
		r.store.Before = func(int, *kv.Batch) memory.Fault { <-hang; return memory.None }
		done := make(chan error)
		go func() {
			rest(r.vm)
			_, err := r.vm.Deactivate(t.Context())
			done <- err
		}()
		synctest.Wait()
		if d.regions.state(0) != wordLeaving {
			t.Fatal("the region is not leaving")
		}
		began := time.Now()
		write(t, d, f, 0, 1, 2)
		if took := time.Since(began); took != DefaultActivationTimeout {
			t.Errorf("the write took %v", took)
		}
		if marked, _ := f.SuspectMarked(); !marked {
			t.Error("no mark")
		}
		close(hang)
		<-done
		if d.regions.state(0) != wordActive {
			t.Error("the late delete made the region inactive")
		}
		lapse(3 * DefaultRetry) // fake time of the bubble
		if !hasRecord(r.store, d, 0) {
			t.Error("the late delete took the record of an active region")
		}
		r.check()
		r.close()
	})
}

func TestI1_WriteToALeavingRegionWaitsForTheDelete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := newRig(t, Options{})
		f := newModelFile(4 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		write(t, d, f, 0, 1, 1)
		spooled(t, r.sealed(SealRequest{}))
		r.store.Before = func(int, *kv.Batch) memory.Fault { <-hang; return memory.None }
		rest(r.vm)
		go r.vm.Deactivate(t.Context())
		synctest.Wait()
		wrote := make(chan struct{})
		go func() {
			write(t, d, f, 0, 1, 2)
			close(wrote)
		}()
		synctest.Wait()
		select {
		case <-wrote:
			t.Fatal("written while leaving")
		default:
		}
		close(hang)
		<-wrote
		if !hasRecord(r.store, d, 0) || d.regions.state(0) != wordActive {
			t.Error("the region has no record after the write")
		}
		r.check()
		r.close()
	})
}

// It waits from the moment in which the region is leaving, before anything is deleted.
func TestI1_WriteWaitsForARegionThatIsAboutToLeave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		r := newRig(t, Options{Hook: func(p string) {
			if p == BeforeDeactivationApply {
				<-hang
			}
		}})
		f := newModelFile(4 * extent.BlocksPerRegion)
		d := r.disk("a", f)
		write(t, d, f, 0, 1, 1)
		spooled(t, r.sealed(SealRequest{}))
		rest(r.vm)
		left := make(chan struct{})
		go func() { defer close(left); _, _ = r.vm.Deactivate(t.Context()) }()
		synctest.Wait()
		wrote := make(chan struct{})
		go func() { defer close(wrote); write(t, d, f, 0, 1, 2) }()
		synctest.Wait()
		select {
		case <-wrote:
			t.Error("written while the region was leaving")
		default:
		}
		close(hang)
		<-wrote
		<-left
		r.check()
		r.close()
	})
}
