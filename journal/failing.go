package journal

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// The journal's health. Edges, each with what makes it:
//
//	ok, recovering → failing     a commit failed or took too long
//	failing → recovering         the outstanding commits have their outcome
//	recovering → ok              the whole active set is rewritten
const (
	healthOK int32 = iota
	healthFailing
	healthRecovering
)

type health struct {
	state atomic.Int32
	fails atomic.Uint64 // how often it became failing
	mu    struct {      // guards the cause and the loop; no I/O
		sync.Mutex
		cause   error
		looping bool
	}
}

func (h *health) failing() bool { return h.state.Load() == healthFailing }

// Failing returns why the store takes no commits, nil if it does. While it is
// failing, writes go on under the images' marks and points go on; only a crash
// makes the marked images suspect as a whole.
func (j *Journal) Failing() error {
	if j.health.state.Load() == healthOK {
		return nil
	}
	j.health.mu.Lock()
	defer j.health.mu.Unlock()
	return fmt.Errorf("%w: %w", ErrFailing, j.health.mu.cause)
}

// Failures counts how often the journal became failing in this run: also a failure between two looks at Failing shows.
func (j *Journal) Failures() uint64 { return j.health.fails.Load() }

// fail makes the journal failing and sees to it that somebody tries to leave that state.
func (j *Journal) fail(cause error) {
	h := &j.health
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.state.Swap(healthFailing) != healthFailing {
		h.mu.cause = cause
		h.fails.Add(1)
		j.log.Error("journal is failing: images are marked suspect until it recovers", "class", "recoverable", "code", "journal-failing", "cause", cause,
			"action", "check the state directory's disk")
	}
	if h.mu.looping {
		return
	}
	select {
	case <-j.stop:
	default:
		h.mu.looping = true
		j.wg.Add(1)
		go j.recover()
	}
}

// recover tries to leave the failing state until it succeeds or the journal closes.
func (j *Journal) recover() {
	defer j.wg.Done()
	tick := time.NewTicker(j.opts.Retry)
	defer tick.Stop()
	for {
		select {
		case <-j.stop:
			return
		case <-tick.C:
		}
		if err := j.rewriteAll(); err != nil {
			j.log.Warn("journal is still failing", "code", "journal-failing", "cause", err)
			continue
		}
		if j.clearMarks() && j.stopLooping() {
			return
		}
	}
}

// stopLooping ends the loop unless the journal failed again meanwhile.
func (j *Journal) stopLooping() bool {
	j.health.mu.Lock()
	defer j.health.mu.Unlock()
	if j.health.state.Load() != healthOK {
		return false
	}
	j.health.mu.looping = false
	j.log.Info("journal works again")
	return true
}

// rewriteAll writes the whole active set. Having the commit lock, it knows that
// every earlier commit has its outcome.
func (j *Journal) rewriteAll() error {
	j.commit.Lock()
	defer j.commit.Unlock()
	if !j.health.state.CompareAndSwap(healthFailing, healthRecovering) {
		return nil // it is not failing any more
	}
	j.hook(BeforeRewrite)
	for _, d := range j.disks() {
		if err := d.rewriteActiveLocked(); err != nil {
			j.health.state.Store(healthFailing)
			return fmt.Errorf("rewrite active set of %s: %w", d.Name(), err)
		}
	}
	j.hook(AfterRewrite)
	if !j.health.state.CompareAndSwap(healthRecovering, healthOK) {
		return ErrFailing // a commit failed meanwhile: marks stay
	}
	return nil
}

// rewriteActiveLocked makes the stored activity log of d equal the one in
// memory. The caller holds the commit lock.
func (d *Disk) rewriteActiveLocked() error {
	d.mark.Lock() // an activation under the mark that saw the old state is in the list
	active := d.regions.list()
	d.mark.Unlock()
	c := chunks{store: d.vm.j.store}
	live := make(map[region]bool, len(active))
	for _, r := range active {
		live[r] = true
		if err := c.put(activeKey(d.id, r), nil); err != nil {
			return err
		}
	}
	stale, err := d.storedActive()
	if err != nil {
		return err
	}
	for _, r := range stale {
		if live[r] {
			continue
		}
		if err := c.delete(activeKey(d.id, r)); err != nil {
			return err
		}
	}
	return c.flush()
}

// storedActive returns the regions that have a record.
func (d *Disk) storedActive() ([]region, error) {
	prefix := preActive + d.id + "/"
	var out []region
	err := d.vm.j.store.Scan([]byte(prefix), func(k, _ []byte) error {
		n, err := keyNumber(k, len(prefix))
		out = append(out, region(n))
		return err
	})
	return out, err
}

// clearMarks removes the marks of images, unless the journal fails again
// meanwhile; false: one is left and wants another attempt.
func (j *Journal) clearMarks() bool {
	done := true
	for _, d := range j.disks() {
		if err := d.clearMark(); err != nil {
			j.log.Warn("an image keeps its suspect mark", "disk", d.Name(), "cause", err)
			done = false
		}
	}
	return done
}

func (d *Disk) clearMark() error {
	d.mark.Lock()
	defer d.mark.Unlock()
	if !d.mark.set || d.vm.j.health.state.Load() != healthOK {
		return nil
	}
	if err := d.file.ClearSuspectMark(); err != nil {
		return err
	}
	d.mark.set = false
	d.vm.j.hook(AfterMarkRemoved)
	return nil
}

// imageMark says whether the image carries our mark. The lock is held over
// setting and removing it.
type imageMark struct {
	sync.Mutex
	set bool
}

// activateMarked marks the image, unless it is, and makes the regions active in
// memory. If the journal is not failing any more it does nothing: the caller
// tries the store again. ErrUntracked: the image takes no mark.
func (d *Disk) activateMarked(span regionSpan) error {
	d.mark.Lock()
	defer d.mark.Unlock()
	if !d.vm.j.health.failing() {
		return nil
	}
	if err := d.setMarkLocked(); err != nil {
		return err
	}
	for r := span.first; r < span.end; r++ {
		d.regions.activate(r)
	}
	return nil
}

func (d *Disk) setMarkLocked() error {
	if d.mark.set {
		return nil
	}
	d.vm.j.hook(BeforeImageMark)
	if err := d.file.SetSuspectMark(); err != nil {
		return fmt.Errorf("%w: journal failing, and image %s takes no mark: %w", ErrUntracked, d.Name(), err)
	}
	d.mark.set = true
	d.vm.j.hook(AfterImageMark)
	return nil
}
