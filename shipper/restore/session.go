package restore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// DefaultPinTTL is how long a pin holds when its reader has died; it is
// refreshed three times as often.
const DefaultPinTTL = 15 * time.Minute

// unpinTimeout bounds the deletion of a pin when everything else has ended.
const unpinTimeout = 10 * time.Second

// HoldOptions of a session. Zero values are the defaults.
type HoldOptions struct {
	Options
	Reader string // who reads, for the operator; e.g. "export on host7"
	PinTTL time.Duration
	// Unpinned writes no pin: for a credential that may only read. The point may
	// then be pruned while it is read, which shows as an error, never as wrong bytes.
	Unpinned bool
	Now      func() time.Time
}

// Session holds one point of a VM for reading.
type Session struct {
	ctx    context.Context
	cancel context.CancelCauseFunc
	t      target.Target
	opts   HoldOptions
	record catalog.Record
	plans  []Plan
	pin    catalog.Pin
	etag   string
	done   sync.WaitGroup
}

// Hold finds a point ("latest", an id, or an RFC 3339 time), plans its disks,
// pins what they need, and then reads the record and vm.json again: only what
// is still there then is held. disks are names or ids, none for all complete
// ones. Close ends it.
func Hold(ctx context.Context, t target.Target, vm, spec string, disks []string, opts HoldOptions) (*Session, error) {
	if opts.PinTTL == 0 {
		opts.PinTTL = DefaultPinTTL
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	doc, records, err := catalog.Load(ctx, t, vm)
	if err != nil && !errors.Is(err, catalog.ErrChain) {
		return nil, err // a broken chain matters only where a fold crosses it
	}
	record, err := catalog.FindPoint(doc, records, spec)
	if err != nil {
		return nil, err
	}
	s := &Session{t: t, opts: opts, record: record}
	if s.plans, err = planAll(ctx, t, doc, records, record, disks); err != nil {
		return nil, err
	}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	if err := s.hold(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// planAll plans the chosen disks; all of them before the first is read.
func planAll(ctx context.Context, t target.Target, doc catalog.VMDoc, records []catalog.Record, record catalog.Record, names []string) ([]Plan, error) {
	disks, err := choose(record, names)
	if err != nil {
		return nil, err
	}
	plans := make([]Plan, len(disks))
	for i, disk := range disks {
		snapshots, err := catalog.Snapshots(ctx, t, doc.Name, disk.ID)
		if err != nil {
			return nil, err
		}
		if plans[i], err = MakePlan(doc, records, snapshots, record.ID(), disk.ID); err != nil {
			return nil, err
		}
	}
	return plans, nil
}

func choose(record catalog.Record, names []string) ([]catalog.RecordDisk, error) {
	var chosen []catalog.RecordDisk
	if len(names) == 0 {
		for _, d := range record.Disks {
			if d.State == catalog.StateComplete {
				chosen = append(chosen, d)
			}
		}
	}
	for _, name := range names {
		found := false
		for _, d := range record.Disks {
			if (d.Name == name || d.ID == name) && d.State == catalog.StateComplete {
				chosen, found = append(chosen, d), true
				break
			}
		}
		if !found {
			return nil, fmt.Errorf("%w: %s at %s of %s", ErrNoDisk, name, record.ID(), record.VM)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("%w: %s of %s has no complete disk", ErrNoDisk, record.ID(), record.VM)
	}
	return chosen, nil
}

func (s *Session) hold() error {
	if !s.opts.Unpinned {
		now := s.opts.Now()
		s.pin = catalog.Pin{ID: catalog.NewPinID(), VM: s.record.VM, Point: s.record.ID(), Reader: s.opts.Reader,
			Created: now, Until: now.Add(s.opts.PinTTL)}
		for _, p := range s.plans {
			s.pin.Needs = append(s.pin.Needs, p.Need())
		}
		etag, err := catalog.CreatePin(s.ctx, s.t, s.pin)
		if err != nil {
			return fmt.Errorf("pin %s: %w", s.record.ID(), err)
		}
		s.etag = etag
		s.done.Add(1)
		go s.refresh()
	}
	return s.recheck()
}

// recheck is the second look, after the pin.
func (s *Session) recheck() error {
	again, err := catalog.LoadRecord(s.ctx, s.t, s.record.VM, s.record.ID())
	if errors.Is(err, target.ErrNotFound) {
		return fmt.Errorf("point %s: %w: %w", s.record.ID(), ErrPruned, catalog.ErrNoPoint)
	}
	if err != nil {
		return err
	}
	doc, _, err := catalog.LoadVM(s.ctx, s.t, s.record.VM)
	if err != nil {
		return err
	}
	if again.Void || again.EpochUUID != s.record.EpochUUID || !doc.Counts(s.record.ID()) {
		return fmt.Errorf("point %s was cut off by a takeover: %w", s.record.ID(), catalog.ErrNoPoint)
	}
	return nil
}

// refresh keeps the pin until the session ends. When it cannot, everything that
// reads under it ends with ErrPinLost.
func (s *Session) refresh() {
	defer s.done.Done()
	tick := time.NewTicker(s.opts.PinTTL / 3)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		now := s.opts.Now()
		next := s.pin
		next.Until = now.Add(s.opts.PinTTL)
		etag, err := catalog.ReplacePin(s.ctx, s.t, next, s.etag)
		switch {
		case err == nil:
			s.pin, s.etag = next, etag
		case errors.Is(err, catalog.ErrPinGone) || now.After(s.pin.Until):
			s.cancel(fmt.Errorf("%w: %w", ErrPinLost, err))
			return
		}
	}
}

// Record is the point's.
func (s *Session) Record() catalog.Record { return s.record }

// Plans are the disks chosen, in the record's order.
func (s *Session) Plans() []Plan { return s.plans }

// Context ends when the session does, or its pin is lost.
func (s *Session) Context() context.Context { return s.ctx }

// Open prepares one of Plans for reading.
func (s *Session) Open(p Plan) (*Disk, error) { return OpenPlan(s.ctx, s.t, p, s.opts.Options) }

// cause replaces the error of a request that ended because the session did.
func (s *Session) cause(err error) error {
	if lost := context.Cause(s.ctx); err != nil && errors.Is(lost, ErrPinLost) {
		return lost
	}
	return err
}

// Close ends all reads and deletes the pin.
func (s *Session) Close() error {
	s.cancel(context.Canceled)
	s.done.Wait()
	if s.pin.ID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), unpinTimeout)
	defer cancel()
	return catalog.DeletePin(ctx, s.t, s.pin.VM, s.pin.ID)
}

// Verify proves every disk of the session; the errors of those that differ, or
// could not be read, are joined. progress is told of all disks together.
func (s *Session) Verify(progress Progress) error {
	var failed error
	for _, step := range s.steps(progress) {
		d, err := s.Open(step.plan)
		if err == nil {
			err = d.Verify(s.ctx, step.progress)
		}
		if err = s.cause(err); err != nil {
			failed = errors.Join(failed, fmt.Errorf("verify %s: %w", step.plan.Disk.Name, err))
		}
		if s.ctx.Err() != nil {
			break
		}
	}
	return failed
}

// step is one disk of several, with its share of the progress.
type step struct {
	plan     Plan
	progress Progress
}

func (s *Session) steps(progress Progress) []step {
	var total, before int64
	for _, p := range s.plans {
		total += p.Disk.VirtualSize
	}
	var steps []step
	for _, p := range s.plans {
		offset := before
		steps = append(steps, step{p, func(done, _ int64) {
			if progress != nil {
				progress(offset+done, total)
			}
		}})
		before += p.Disk.VirtualSize
	}
	return steps
}
