package journal

import (
	"runtime"
	"sync/atomic"
)

// phase is the time between two seals of a VM, with its change sets.
//
// Its claims:
//  1. A writer that is counted in, and found the phase still current after
//     that, belongs to it: the seal that ends it will see the count.
//  2. When writers (high half) is zero after the phase was replaced, its change
//     sets are complete: every writer marks before it takes itself off.
//  3. When the low half is zero after that, every write of the phase was answered.
//
// A writer that finds the phase replaced takes itself off without marking, so
// it may disturb the counts for a moment and never the sets. An RWMutex lost
// here: its writer waits for every reader and stalls those that come after.
type phase struct {
	_       [64]byte
	writers atomic.Uint64 // high half: counted in, not marked; low half: counted in
	_       [56]byte
	over    atomic.Bool
	drained chan struct{} // closed when claim 3 holds
	sets    atomic.Pointer[[]*blockMap]
}

const (
	phaseIn     = 1<<32 | 1 // counted in, not marked
	phaseMarked = 1 << 32   // taken off when marked
	phaseOut    = 1         // taken off at the end
)

func newPhase(disks int) *phase {
	p := &phase{drained: make(chan struct{})}
	sets := make([]*blockMap, disks)
	for i := range sets {
		sets[i] = new(blockMap)
	}
	p.sets.Store(&sets)
	return p
}

// grow gives the phase room for disks change sets. The caller holds vm.mu.
func (p *phase) grow(disks int) {
	old := *p.sets.Load()
	sets := make([]*blockMap, disks)
	for i := range sets {
		if sets[i] = new(blockMap); i < len(old) {
			sets[i] = old[i]
		}
	}
	p.sets.Store(&sets)
}

func (p *phase) set(disk int) *blockMap { return (*p.sets.Load())[disk] }

// enter counts the caller into the current phase.
func (vm *VM) enter() *phase {
	for {
		p := vm.phase.Load()
		p.writers.Add(phaseIn)
		if vm.phase.Load() == p {
			return p
		}
		vm.leave(p, phaseIn)
	}
}

// leave takes n off the phase's count; the last writer out of a replaced phase
// reports it drained. The seal looks too, after its switch, so one of the two
// sees the other.
func (vm *VM) leave(p *phase, n uint64) {
	if uint32(p.writers.Add(-n)) == 0 {
		vm.emptied(p)
	}
}

// emptied reports p drained if it was replaced and nobody is in it. It looks at
// the count again, after the phase: the zero its caller saw says nothing about a
// writer that entered since, while the phase was still current. Once it is
// replaced, everybody who belongs to it is in the count.
func (vm *VM) emptied(p *phase) {
	if vm.phase.Load() != p && p.writersIn() == 0 {
		p.drain()
	}
}

func (p *phase) drain() {
	if p.over.CompareAndSwap(false, true) {
		close(p.drained)
	}
}

// awaitMarked returns when the change sets of a replaced phase are complete. No
// writer does I/O between being counted in and marking, so it spins.
func (p *phase) awaitMarked() {
	for p.writers.Load()>>32 != 0 {
		runtime.Gosched()
	}
}

func (p *phase) writersIn() int { return int(uint32(p.writers.Load())) }
