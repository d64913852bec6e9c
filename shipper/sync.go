package shipper

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Progress of a long request.
type Progress struct {
	Stage string // what is being done: "initial replication", "seal", "ship"
	Done  int64  // bytes
	Total int64  // bytes
}

// Sync asks for an epoch that starts no earlier than now and, with wait, returns
// the recovery point that holds everything answered before the call. progress
// may be nil.
func (v *VM) Sync(ctx context.Context, wait bool, progress func(Progress)) (epoch uint64, point catalog.PointID, err error) {
	before, generation := v.want(), v.state.get().Generation
	v.wakeAll()
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for {
		moved := v.movement()
		if now := v.state.get().Generation; now != generation {
			before, generation = v.want(), now // a takeover's cut may have any number, and holds nothing of ours
		}
		if epoch = v.newestManifest(); epoch > before && !wait {
			return epoch, point, nil
		}
		if p := v.state.get().Recorded; p.Epoch > before {
			return p.Epoch, p, nil
		}
		if err := v.blocked(); err != nil {
			return 0, point, err
		}
		if progress != nil {
			progress(v.progress())
		}
		select {
		case <-ctx.Done():
			return epoch, point, ctx.Err()
		case <-moved:
		case <-tick.C:
		}
	}
}

// progressEvery is how often somebody who waits is told how far it is.
const progressEvery = time.Second

// want asks for an epoch and returns the newest number that will not do.
func (v *VM) want() uint64 {
	before := v.deps.Volume.LastEpoch()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.wanted = max(v.mu.wanted, before+1)
	return before
}

// blocked is the error of a stage on the way to a point that only an operator can help.
func (v *VM) blocked() error {
	for _, s := range []*stage{v.connect, v.initial, v.capture, v.ship} {
		if t := s.trouble(); t != nil && t.NextTry.IsZero() && !t.Pending {
			return fmt.Errorf("%s: %w", t.Stage, t.Err)
		}
	}
	return nil
}

// wakeAll ends every wait: somebody is looking.
func (v *VM) wakeAll() {
	for _, s := range v.stages() {
		s.ask()
	}
}

// TryAgain ends every wait: what was wrong on this host has been mended.
func (v *VM) TryAgain() { v.wakeAll() }

func (v *VM) stages() []*stage {
	return []*stage{v.connect, v.capture, v.ship, v.apply, v.initial, v.prune}
}

// progress is what a waiting operator sees.
func (v *VM) progress() Progress {
	for _, d := range v.Status().Disks {
		if d.Stage != StageComplete {
			return Progress{Stage: "initial replication of " + d.Name, Done: d.InitialDone, Total: d.InitialTotal}
		}
	}
	if why := v.waitsFor(); why != "" {
		return Progress{Stage: why}
	}
	var total int64
	for _, m := range v.deps.Spool.Manifests() {
		if m.Epoch > v.state.get().Recorded.Epoch {
			total += m.SegmentBytes()
		}
	}
	return Progress{Stage: "ship", Done: min(v.sent.Load(), total), Total: total}
}

// waitsFor says what keeps the next point from being made, "" if nothing does. It says
// the same as long as that is the same.
func (v *VM) waitsFor() string {
	for _, s := range []*stage{v.connect, v.capture, v.ship} {
		if t := s.trouble(); t != nil && !t.NextTry.IsZero() && !t.Pending {
			return fmt.Sprintf("%s is tried again at %s: %v", t.Stage, t.NextTry.UTC().Format(time.TimeOnly+"Z"), t.Err)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.mu.overQuota {
		return "waiting for room in the spool (" + v.mu.catchUp + ")"
	}
	return ""
}

// SealLast brings what changed into the spool, once nothing changes any more.
// What does not fit stays in the change sets, which a clean stop writes out.
func (v *VM) SealLast(ctx context.Context) error {
	if v.state.get().Generation == 0 || v.Status().Pending == 0 {
		return nil
	}
	return v.captureStep(ctx)
}

// Close closes the tables; no stage may run any more.
func (v *VM) Close() error {
	v.closeRemoved()
	var errs []error
	for _, d := range v.disks() {
		errs = append(errs, d.closeTable())
	}
	return errors.Join(errs...)
}
