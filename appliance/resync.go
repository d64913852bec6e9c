package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/resync"
)

// compareRetry is how long a comparison that failed waits for its next try.
const compareRetry = 10 * time.Second

// resyncer compares what is suspect on the disks of one VM with their tables, one
// disk after the other.
type resyncer struct {
	m    *machine
	kick chan struct{}

	mu struct {
		sync.Mutex // never held over I/O
		running    *resync.Scanner
		last       control.Resync
		err        error
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
	r.mu.Unlock()
	if first {
		r.m.app.log.Warn("comparison failed; it is tried again", "vm", r.m.name, "code", "comparison-failed", "cause", err, "action", "look at the image and the state directory")
	}
}

func (r *resyncer) compareAll(ctx context.Context) error {
	for _, a := range r.m.store.disksOf(r.m) {
		if len(a.disk.Suspect()) == 0 {
			continue
		}
		c, ready := r.m.comparison(a.disk, a)
		if !ready {
			continue
		}
		if err := r.compare(ctx, a, c); err != nil {
			if ctx.Err() != nil || errors.Is(err, context.Canceled) {
				return nil
			}
			return fmt.Errorf("compare %s: %w", a.path, err)
		}
	}
	return nil
}

// compare runs one comparison and says what it found.
func (r *resyncer) compare(ctx context.Context, a *attached, c compared) error {
	reason := a.disk.Recovery().Reason
	s := resync.New(resync.Deps{Source: c.source, Table: c.table, Layout: c.layout}, resync.Options{Reason: reason})
	r.mu.Lock()
	r.mu.running = s
	r.mu.Unlock()
	report, err := s.Run(ctx)
	r.mu.Lock()
	r.mu.running = nil
	r.mu.last = resyncDocument(report.Progress, control.ResyncIdle, reason)
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
	return resyncDocument(r.mu.running.Progress(), control.ResyncRunning, "")
}

func resyncDocument(p resync.Progress, state control.ResyncState, reason string) control.Resync {
	return control.Resync{State: state, ComparedBytes: p.Compared, TotalBytes: p.Total, DifferingBytes: p.Differing, Reason: reason}
}

// await returns when nothing of the VM is suspect any more.
func (r *resyncer) await(ctx context.Context, progress func(control.Progress)) (control.Resync, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		now := r.status()
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
		if len(a.disk.Suspect()) > 0 {
			return true
		}
	}
	return false
}
