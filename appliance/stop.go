package appliance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// How long the parts of a stop may take; together they are StopTimeout.
const (
	stopDrain  = 15 * time.Second // guest requests under way, and once more when they were cut off
	stopSeal   = 20 * time.Second // the last epochs of all VMs
	stopStages = 20 * time.Second // the end of what runs
	stopRest   = 20 * time.Second // syncing the images and closing the journal, which have no bound of their own
)

// bounds are those of one appliance: tests are less patient.
type bounds struct{ drain, seal, stages time.Duration }

var stopBounds = bounds{drain: stopDrain, seal: stopSeal, stages: stopStages}

// errHangs: something does not end. The process may still exit: it is a crash then,
// and costs a comparison of the active regions.
var errHangs = errors.New("a part does not end: it waits for a disk or a target that hangs; the next start compares the active regions")

// shutDown stops in order: the mounts go, so that nothing changes any more; what
// changed is sealed into the spool; the stages end; the journal says clean. It does not
// wait for the target, and for nothing longer than its bounds.
func (a *Appliance) shutDown(ctx context.Context, stop context.CancelFunc, g *errgroup.Group) error {
	err := a.unmountAll(ctx)
	if errors.Is(err, errHangs) && a.anyKept() {
		return err // a change is under way that does not end: the next process does it again
	}
	a.refuseMore()
	a.sealLast(ctx)
	stop()
	waitErr := within(a.bounds.stages, g.Wait)
	if errors.Is(waitErr, errHangs) {
		return errors.Join(err, waitErr)
	}
	if errors.Is(waitErr, context.Canceled) {
		waitErr = nil
	}
	a.stopWatching()
	return errors.Join(err, waitErr, a.closeMachines(), a.journal.Close(ctx))
}

// within waits for the end of work, or for the bound: then it is errHangs, and work
// goes on.
func within(bound time.Duration, work func() error) error {
	done := make(chan error, 1)
	go func() { done <- work() }()
	late := time.NewTimer(bound)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		return fmt.Errorf("after %s: %w", bound, errHangs)
	}
}

// sealLast brings what changed into the spool, all VMs side by side.
func (a *Appliance) sealLast(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, a.bounds.seal)
	defer cancel()
	var all sync.WaitGroup
	for _, m := range a.machines() {
		all.Go(func() {
			err := within(a.bounds.seal, func() error { return m.pipeline.SealLast(ctx) })
			if err != nil {
				a.log.Warn("last epoch not spooled; its changes are kept in the journal", "vm", m.name, "code", "last-epoch-kept", "cause", err, "action", "none: the next start goes on with them")
			}
		})
	}
	all.Wait()
}

// unmountAll ends the serving of every store: for good, or for the next process where one will come.
func (a *Appliance) unmountAll(ctx context.Context) error {
	hand := a.handsOver()
	errs := make([]error, len(a.stores))
	var all sync.WaitGroup
	for i, s := range a.stores {
		all.Go(func() {
			if hand && s.srv != nil && s.srv.Kept() {
				errs[i] = s.freeze()
				return
			}
			errs[i] = s.unmount(ctx)
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// unmount ends the serving. Images that are still open are cut off, for a service
// that is told to stop must stop; their guests see I/O errors.
func (s *store) unmount(ctx context.Context) error {
	if s.srv == nil {
		return nil
	}
	s.leaving.Store(true)
	err := within(s.app.bounds.drain, s.srv.Unmount)
	if err == nil {
		s.unkeep()
		return nil
	}
	s.log.Warn("store is in use and is detached; open images see I/O errors from now on", "code", "unmount-busy", "open", s.inUse(), "cause", err,
		"action", "stop the virtual machines before the appliance")
	ctx, cancel := context.WithTimeout(ctx, s.app.bounds.drain)
	defer cancel()
	s.unkeep()
	return s.srv.Abort(ctx)
}
