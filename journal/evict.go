package journal

import (
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// evictor makes room at the cap of the activity log when no seal does.
type evictor struct {
	mu struct { // guards the round; no I/O
		sync.Mutex
		round chan struct{} // closed at the end of the running round; nil: none runs
	}
	forget func([]extent.Range[extent.FileBlock]) error // OnEvict; set before the first write
	hand   region                                       // of the CLOCK; one round runs at a time
}

// OnEvict sets the function that makes the entries of blocks durably unknown
// before their region leaves the activity log. Set it before the first write.
// It must not call back into this journal's Begin or Mark.
func (d *Disk) OnEvict(fn func(r []extent.Range[extent.FileBlock]) error) { d.evict.forget = fn }

// makeRoom sees to it that span fits under the cap. Near the cap it starts a
// round of eviction and goes on; at the cap it waits for the round, as long as
// late has not come. If nothing could go, the cap is overshot: a guest does not
// wait for what only the target can free.
func (d *Disk) makeRoom(span regionSpan, late <-chan time.Time) {
	limit := d.vm.j.opts.ActivityRegions
	count := d.countedRegions() + int(span.end-span.first)
	d.pressure(count, limit)
	if count <= limit-limit/32 {
		return
	}
	round := d.startRound(count - (limit - limit/16))
	if count <= limit {
		return
	}
	select {
	case <-round:
	case <-late:
	}
}

// pressure calls OnPressure's function once each time 7/8 of the cap are passed.
func (d *Disk) pressure(count, limit int) {
	if count < limit*7/8 {
		d.pressed.Store(false)
		return
	}
	if fn := d.vm.onPressure.Load(); fn != nil && d.pressed.CompareAndSwap(false, true) {
		go (*fn)() // the writer does not wait for whoever wants to seal
	}
}

// countedRegions is the number of active regions the cap is about. Suspect ones
// cannot be evicted, only compared; counting them would make every activation
// after a crash evict what the one before brought in.
func (d *Disk) countedRegions() int {
	n := int(d.regions.active.Load())
	if d.sus.bits.Count() == 0 {
		return n
	}
	for _, r := range d.regions.list() {
		if d.suspects(r) {
			n--
		}
	}
	return max(n, 0)
}

// startRound starts a round that evicts want regions, unless one runs, and
// returns the channel that its end closes.
func (d *Disk) startRound(want int) <-chan struct{} {
	e := &d.evict
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.round != nil {
		return e.mu.round
	}
	round := make(chan struct{})
	e.mu.round = round
	go func() {
		if err := d.evictSome(min(want, kv.MaxOps)); err != nil {
			d.vm.j.log.Warn("the activity log could not make room", "disk", d.Name(), "cause", err)
		}
		e.mu.Lock()
		e.mu.round = nil
		e.mu.Unlock()
		close(round)
	}()
	return round
}

// evictSome evicts up to want regions, the coldest first.
//
// A region may go only when everything written to it is on stable storage, as
// for a deactivation. Unknown entries for its changed blocks are not enough: a
// block captured earlier is in no set any more, and one captured later becomes
// known again; a power cut would leave either behind the table, with no record.
func (d *Disk) evictSome(want int) error {
	j, e := d.vm.j, &d.evict
	if e.forget == nil || want <= 0 || j.health.state.Load() != healthOK {
		return nil
	}
	victims := d.victims(want)
	if len(victims) == 0 {
		return nil
	}
	if err := d.syncImage(); err != nil {
		return err
	}
	defer d.left.wake()
	leaving, changed := d.departVictims(victims)
	if len(leaving) == 0 {
		return nil
	}
	if err := d.forgetEntries(changed); err != nil {
		for _, r := range leaving {
			d.regions.stay(r)
		}
		return err
	}
	j.commit.Lock()
	defer j.commit.Unlock()
	err := d.forgetLocked(leaving)
	j.hook(AfterEvictionApply)
	if err == nil {
		j.stats.evictions.Add(int64(len(leaving)))
	}
	return err
}

// victims runs the CLOCK: a region used since the hand last passed gets another turn.
func (d *Disk) victims(want int) []region {
	active := d.regions.list()
	at := 0
	for at < len(active) && active[at] < d.evict.hand {
		at++
	}
	var out []region
	taken := make(map[region]bool, want)
	for i := 0; i < 2*len(active) && len(out) < want; i++ {
		r := active[(at+i)%len(active)]
		d.evict.hand = r + 1
		if taken[r] || d.suspects(r) || d.inSealed(r) {
			continue
		}
		w := d.regions.word(r)
		v := w.Load()
		if v&wordRef != 0 {
			w.And(^uint32(wordRef))
			continue
		}
		if v != wordActive {
			continue
		}
		taken[r] = true
		out = append(out, r)
	}
	return out
}

// inSealed says whether a sealed epoch's capture list has a block of r: changed,
// or extra. An extra block that is written after the seal and evicted would become
// known with the epoch's bytes, with no record that it differs.
func (d *Disk) inSealed(r region) bool {
	s := d.vm.sealed.Load()
	if s == nil {
		return false
	}
	sd := s.disk(d)
	return sd != nil && sd.touches(r.blocks())
}

// departVictims moves victims that are still unused to leaving and returns them
// with their changed blocks. Leaving comes before the blocks are read: nobody
// can mark another one afterwards.
func (d *Disk) departVictims(victims []region) ([]region, []extent.Range[extent.FileBlock]) {
	var leaving []region
	var changed extent.Set[extent.FileBlock]
	for _, r := range victims {
		if !d.regions.depart(r) {
			continue
		}
		if d.suspects(r) || d.inSealed(r) {
			d.regions.stay(r)
			continue
		}
		leaving = append(leaving, r)
		for run := range d.vm.phase.Load().set(d.index).Ranges(r.blocks(), 0) {
			changed.Add(run)
		}
	}
	return leaving, changed.Ranges()
}

func (d *Disk) forgetEntries(changed []extent.Range[extent.FileBlock]) error {
	if len(changed) == 0 {
		return nil
	}
	d.vm.j.hook(BeforeEvictionForget)
	if err := d.evict.forget(changed); err != nil {
		return fmt.Errorf("make entries unknown for eviction: %w", err)
	}
	d.vm.j.hook(AfterEvictionForget)
	return nil
}
