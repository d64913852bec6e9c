package appliance

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/resync"
)

// compareRetry is how long a comparison that failed waits for its next try.
const compareRetry = 10 * time.Second

// A comparison that fails is tried again, and says so everywhere.
const (
	codeComparison   = "comparison-failed"
	actionComparison = "look at the image and at the disk of the state directory; it is tried again"
)

// resyncer compares what is suspect on the disks of one VM with their tables, one
// disk after the other.
type resyncer struct {
	m    *machine
	kick chan struct{}

	mu struct {
		sync.Mutex // never held over I/O
		running    *resync.Scanner
		reason     string         // of the running comparison
		last       control.Resync // the running round or the last: every disk that was compared in it
		err        error          // why the newest round ended early
		failures   int            // rounds that did
	}
}

// compared is one disk ready for its comparison.
type compared struct {
	source resync.Source
	table  resync.Table
	layout resync.Layout
}

func newResyncer(m *machine) *resyncer {
	r := &resyncer{m: m, kick: make(chan struct{}, 1)}
	r.mu.last.State = control.ResyncIdle
	return r
}

func (r *resyncer) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// run compares whenever something is suspect, until ctx ends. A disk without a
// table waits for one: the pipeline's movement wakes it.
func (r *resyncer) run(ctx context.Context) {
	for {
		moved := r.m.pipeline.Moved()
		err := r.compareAll(ctx)
		r.note(err)
		var again <-chan time.Time
		if err != nil {
			again = time.After(compareRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
		case <-moved:
		case <-again:
		}
	}
}

func (r *resyncer) note(err error) {
	r.mu.Lock()
	first := err != nil && r.mu.err == nil
	r.mu.err = err
	if err != nil {
		r.mu.failures++
	}
	r.mu.Unlock()
	if first {
		r.m.app.log.Warn("comparison failed; it is tried again", "vm", r.m.name, "code", codeComparison, "cause", err, "action", actionComparison)
	}
}

// compareAll is one round. A disk that has no table yet, or is one no more, waits
// for another.
func (r *resyncer) compareAll(ctx context.Context) error {
	begun := false
	for _, a := range r.m.store.disksOf(r.m) {
		if !a.disk.Suspected() {
			continue
		}
		c, ready := r.m.comparison(a.disk, a)
		if !ready {
			continue
		}
		if !begun {
			r.begin()
			r.m.resyncBegan(a.disk.Recovery().Reason)
			begun = true
		}
		if err := r.compare(ctx, a, c); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if !r.m.store.tracks(a) {
				continue
			}
			return fmt.Errorf("compare %s: %w", a.at(), err)
		}
	}
	if begun {
		r.m.resyncCompared()
	}
	return nil
}

// begin forgets the last round.
func (r *resyncer) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.last = control.Resync{State: control.ResyncIdle}
}

// compare runs one comparison and says what it found.
func (r *resyncer) compare(ctx context.Context, a *attached, c compared) error {
	reason := a.disk.Recovery().Reason
	s := resync.New(resync.Deps{Source: c.source, Table: c.table, Layout: c.layout}, resync.Options{Reason: reason})
	r.mu.Lock()
	r.mu.running, r.mu.reason = s, reason
	r.mu.Unlock()
	report, err := s.Run(ctx)
	r.mu.Lock()
	r.mu.running = nil
	r.mu.last = sum(r.mu.last, report.Progress, reason)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	r.m.app.log.Info("compared with the checksum table", "vm", r.m.name, "disk", a.disk.Name(), "reason", reason,
		"compared_bytes", report.Compared, "differing_bytes", report.Differing)
	r.m.pipeline.SealSoon()
	return nil
}

// status is the running comparison or the last one.
func (r *resyncer) status() control.Resync {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.running == nil {
		return r.mu.last
	}
	now := sum(r.mu.last, r.mu.running.Progress(), r.mu.reason)
	now.State = control.ResyncRunning
	return now
}

// failure is why the newest round ended early, and how many did.
func (r *resyncer) failure() (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.failures, r.mu.err
}

// sum adds one disk's comparison to a round.
func sum(r control.Resync, p resync.Progress, reason string) control.Resync {
	r.ComparedBytes += p.Compared
	r.TotalBytes += p.Total
	r.DifferingBytes += p.Differing
	if reason != "" {
		r.Reason = reason
	}
	return r
}

// await returns when nothing of the VM is suspect any more, or a round failed.
func (r *resyncer) await(ctx context.Context, progress func(control.Progress)) (control.Resync, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	before, _ := r.failure()
	for {
		now := r.status()
		if n, err := r.failure(); n != before && err != nil {
			return now, &control.Error{Code: codeComparison, Message: err.Error(), Action: actionComparison, Exit: control.ExitFailed, Err: err}
		}
		if now.State == control.ResyncIdle && !r.suspect() {
			return now, nil
		}
		if progress != nil {
			progress(control.Progress{Stage: "comparing", Done: now.ComparedBytes, Total: now.TotalBytes})
		}
		select {
		case <-ctx.Done():
			return now, ctx.Err()
		case <-tick.C:
		}
	}
}

func (r *resyncer) suspect() bool {
	for _, a := range r.m.store.disksOf(r.m) {
		if a.disk.Suspected() {
			return true
		}
	}
	return false
}
