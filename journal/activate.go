package journal

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// activator commits activations in groups: whoever waits while a commit runs is
// in the next one, so that a burst of first writes costs few syncs.
//
// The mutex is the commit lock, held over one synced store commit: activations,
// deletes of deactivation and eviction, and the rewrite of the active set
// are in one order, so a late delete cannot follow a newer put.
type activator struct {
	sync.Mutex

	q struct { // the waiting; no I/O
		sync.Mutex
		waiting []*activation
		running bool
	}
}

// activation is one change waiting for its regions.
type activation struct {
	d    *Disk
	span regionSpan
	done chan error // one answer, buffered: the waiter may have given up
}

// pinSlow returns when every region of span is active and pinned.
func (d *Disk) pinSlow(span regionSpan) error {
	for !d.regions.pinAll(span) {
		if err := d.makeActive(span); err != nil {
			return err
		}
	}
	return nil
}

// makeActive gives the regions their records, or the image its mark. A nil
// return invites to pin again; it does not promise that it will succeed.
func (d *Disk) makeActive(span regionSpan) error {
	j := d.vm.j
	if d.gone.Load() {
		d.activateUnrecorded(span)
		return nil
	}
	if j.health.failing() {
		return d.activateMarked(span)
	}
	timer := time.NewTimer(j.opts.ActivationTimeout)
	defer timer.Stop()
	if d.awaitDeparture(span, timer.C) {
		return j.giveUp(d, span, slowError{fmt.Sprintf("a region has been leaving for %v", j.opts.ActivationTimeout)})
	}
	d.makeRoom(span, timer.C)
	a := &activation{d: d, span: span, done: make(chan error, 1)}
	j.enqueue(a)
	select {
	case err := <-a.done:
		if err == nil || err == errAgain {
			return nil
		}
		return j.giveUp(d, span, err)
	case <-timer.C:
		return j.giveUp(d, span, slowError{fmt.Sprintf("an activation took more than %v", j.opts.ActivationTimeout)})
	}
}

// errAgain answers an activation that met a failing journal: its writer goes
// on under the mark, or, if the journal has recovered by then, through it.
var errAgain = errors.New("journal: try the activation again")

// giveUp makes the journal failing and goes on under the image's mark (I9).
func (j *Journal) giveUp(d *Disk, span regionSpan, err error) error {
	j.fail(err)
	return d.activateMarked(span)
}

func (j *Journal) enqueue(a *activation) {
	q := &j.commit.q
	q.Lock()
	defer q.Unlock()
	q.waiting = append(q.waiting, a)
	if !q.running {
		q.running = true
		go j.commitWaiting() // a writer must be able to give up; this loop ends when nobody waits
	}
}

func (j *Journal) commitWaiting() {
	q := &j.commit.q
	for {
		q.Lock()
		group := q.waiting
		q.waiting = nil
		q.running = len(group) > 0
		q.Unlock()
		if len(group) == 0 {
			return
		}
		err := j.commitActivations(group)
		for _, a := range group {
			a.done <- err
		}
	}
}

// commitActivations writes the records of every region of the group that has
// none, then makes them active.
func (j *Journal) commitActivations(group []*activation) error {
	j.commit.Lock()
	defer j.commit.Unlock()
	if j.health.failing() {
		return errAgain
	}
	var p pendingActivations
	for _, a := range group {
		if a.d.gone.Load() {
			a.d.activateUnrecorded(a.span)
			continue
		}
		for r := a.span.first; r < a.span.end; r++ {
			if a.d.regions.state(r) != 0 { // active, or leaving: its change comes back when it is gone
				continue
			}
			if p.batch.Full(len(activeKey(a.d.id, r))) {
				if err := p.commitLocked(j); err != nil {
					return err
				}
			}
			p.add(a.d, r)
		}
	}
	return p.commitLocked(j)
}

// pendingActivations is one batch of records and the regions they are of.
type pendingActivations struct {
	batch   kv.Batch
	disks   []*Disk
	regions []region
}

func (p *pendingActivations) add(d *Disk, r region) {
	p.batch.Put(activeKey(d.id, r), nil)
	p.disks = append(p.disks, d)
	p.regions = append(p.regions, r)
}

func (p *pendingActivations) commitLocked(j *Journal) error {
	if p.batch.Len() == 0 {
		return nil
	}
	j.hook(BeforeActivationCommit)
	if err := j.store.Apply(&p.batch); err != nil {
		return fmt.Errorf("activate %d regions: %w", p.batch.Len(), err)
	}
	j.hook(AfterActivationCommit)
	for i, r := range p.regions {
		p.disks[i].regions.activate(r)
	}
	j.stats.commits.Add(1)
	j.stats.activations.Add(int64(len(p.regions)))
	*p = pendingActivations{}
	return nil
}

// departures lets changes wait for regions that are leaving.
type departures struct {
	mu struct { // no I/O
		sync.Mutex
		over chan struct{} // closed when a batch of departures has its outcome; nil: nobody waits
	}
}

func (l *departures) wait() chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.over == nil {
		l.mu.over = make(chan struct{})
	}
	return l.mu.over
}

func (l *departures) wake() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.over != nil {
		close(l.mu.over)
		l.mu.over = nil
	}
}

// awaitDeparture waits until no region of span is leaving; true: too late.
func (d *Disk) awaitDeparture(span regionSpan, late <-chan time.Time) bool {
	for {
		over := d.left.wait() // before looking: a wake in between closes it
		if !d.anyLeaving(span) {
			return false
		}
		select {
		case <-over:
		case <-late:
			return true
		}
	}
}

func (d *Disk) anyLeaving(span regionSpan) bool {
	for r := span.first; r < span.end; r++ {
		if d.regions.state(r)&wordLeaving != 0 {
			return true
		}
	}
	return false
}
