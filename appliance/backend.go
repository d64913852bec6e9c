package appliance

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

func (a *Appliance) find(vm string) (*machine, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.mu.machines[vm]; m != nil {
		return m, nil
	}
	return nil, a.noVM(vm)
}

// Sync implements control.Backend.
func (a *Appliance) Sync(ctx context.Context, vm string, wait bool, progress func(control.Progress)) (control.SyncResult, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.SyncResult{}, err
	}
	epoch, point, err := m.pipeline.Sync(ctx, wait, func(p shipper.Progress) {
		if progress != nil {
			progress(control.Progress{Stage: p.Stage, Done: p.Done, Total: p.Total})
		}
	})
	result := control.SyncResult{Epoch: epoch}
	if !point.IsZero() {
		result.Point = point.String()
	}
	return result, described(err)
}

// Resync implements control.Backend: the disks are compared whole with the
// checksum table.
func (a *Appliance) Resync(ctx context.Context, vm, disk string, opts control.ResyncOptions, progress func(control.Progress)) (control.Resync, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.Resync{}, err
	}
	if opts.Deep || opts.Cancel {
		return m.resync.status(), control.Refused("not-available", "run it without the flag: the source is compared with the checksum table",
			"comparing with the target, and cancelling a comparison, are not in this version")
	}
	found := false
	for _, d := range m.store.disksOf(m) {
		if disk != "" && d.disk.Name() != disk {
			continue
		}
		found = true
		if err := d.disk.SetSuspect("asked for by an operator"); err != nil {
			return m.resync.status(), fmt.Errorf("disk %s: %w", d.disk.Name(), err)
		}
	}
	if !found {
		return control.Resync{}, control.NotFound("list them with: vhdrelay status "+vm, "VM %s has no disk %q", vm, disk)
	}
	m.resync.wake()
	return m.resync.await(ctx, progress)
}

// JournalCheck implements control.Backend.
func (a *Appliance) JournalCheck(context.Context) error { return a.journal.Check() }

// JournalDump implements control.Backend.
func (a *Appliance) JournalDump(_ context.Context, w io.Writer) error { return a.journal.Dump(w) }

// described gives an error its code and next action (I12).
func described(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := err.(*control.Error); ok {
		return err
	}
	_, code, cause, action := retry.Describe(err)
	return &control.Error{Code: control.Code(strings.ReplaceAll(code, "-", "_")), Message: cause, Action: action, Exit: control.ExitFailed, Err: err}
}

// disksOf lists the tracked images of a VM.
func (s *store) disksOf(m *machine) []*attached {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*attached
	for _, a := range s.mu.images {
		if a.vm == m {
			all = append(all, a)
		}
	}
	return all
}

// distrust makes every image of the store suspect as a whole.
func (s *store) distrust(reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.mu.images {
		if err := a.disk.SetSuspect(reason); err != nil {
			return fmt.Errorf("%s: %w", a.path, err)
		}
	}
	return nil
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
