package appliance

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

func (a *Appliance) find(vm string) (*machine, error) {
	a.mu.Lock()
	m := a.mu.machines[vm]
	a.mu.Unlock()
	if m == nil {
		return nil, a.noVM(vm)
	}
	return m, nil
}

// Sync implements control.Backend.
func (a *Appliance) Sync(ctx context.Context, vm string, wait bool, progress func(control.Progress)) (control.SyncResult, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.SyncResult{}, a.unlessUnprotected(vm, lifecycle.Sync, err)
	}
	if !slices.ContainsFunc(m.pipelineStatus().Disks, protectable) {
		return control.SyncResult{}, control.Refused("nothing-to-protect", "put a fixed VHD or a raw image into it", "VM %s has no disk that can be protected", vm)
	}
	if err := m.permits(lifecycle.Sync); err != nil {
		return control.SyncResult{}, err
	}
	show := func(p shipper.Progress) {
		if progress != nil {
			progress(control.Progress{Stage: p.Stage, Done: p.Done, Total: p.Total})
		}
	}
	if wait {
		if err := m.awaitComplete(ctx, show); err != nil {
			return control.SyncResult{}, described(err)
		}
	}
	epoch, point, err := m.pipeline.Sync(ctx, wait, show)
	result := control.SyncResult{Epoch: epoch}
	if !point.IsZero() {
		result.Point = point.String()
	}
	return result, described(err)
}

// awaitComplete waits for the initial replication of every disk: a point without one
// of them does not hold what the caller wrote. When what copies them is in trouble it
// returns at once, for the caller wakes the stages and hears of it.
func (m *machine) awaitComplete(ctx context.Context, progress func(shipper.Progress)) error {
	m.pipeline.Wake()
	for {
		moved := m.pipeline.Moved()
		p := m.pipelineStatus()
		i := slices.IndexFunc(p.Disks, incomplete)
		if i < 0 || slices.ContainsFunc(p.Troubles, settled) {
			return nil
		}
		d := p.Disks[i]
		progress(shipper.Progress{Stage: "initial replication of " + d.Name, Done: d.InitialDone, Total: d.InitialTotal})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-moved:
		case <-time.After(time.Second): // for the progress
		}
	}
}

// settled tells a trouble on the way of an initial replication that will not be gone in
// a moment: what waited for an operator and is being tried again now may be. Others, such
// as an apply's, do not keep a disk from being copied.
func settled(t shipper.Trouble) bool {
	return (t.Stage == shipper.StageNameConnect || t.Stage == shipper.StageNameInitial) && (!t.Pending || !t.NextTry.IsZero())
}

// incomplete tells a disk whose initial replication will end by itself.
func incomplete(d shipper.DiskStatus) bool { return d.Err == nil && d.Stage != shipper.StageComplete }

// JournalCheck implements control.Backend.
func (a *Appliance) JournalCheck(context.Context) error { return a.checkLive() }

// JournalDump implements control.Backend.
func (a *Appliance) JournalDump(_ context.Context, w io.Writer, o control.DumpOptions) error {
	if o.JSON {
		return a.journal.DumpJSON(w)
	}
	return a.journal.Dump(w)
}

// described gives an error its code and next action (I12): the code that status and
// log have for the same cause.
func described(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*control.Error](err); ok {
		return err
	}
	_, code, cause, action := retry.Describe(err)
	return &control.Error{Code: control.Code(code), Message: cause, Action: action, Exit: control.ExitFailed, Err: err}
}

var _ control.Backend = (*Appliance)(nil)

// Points implements control.Backend.
func (a *Appliance) Points(ctx context.Context, vm string) (control.Points, error) {
	if _, err := a.find(vm); err != nil {
		return control.Points{}, err
	}
	t, err := a.openTarget(ctx)
	if err != nil {
		return control.Points{}, described(err)
	}
	return pointsAt(ctx, t, vm)
}
