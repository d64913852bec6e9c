package appliance

import (
	"context"
	"log/slog"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/preflight"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Preflight checks every prerequisite without an appliance; vm "" checks all VMs.
func Preflight(ctx context.Context, c *config.Config, vm string, progress func(control.Progress)) (control.Preflight, error) {
	return preflight.Run(ctx, preflightOptions(c, vm, progress))
}

func preflightOptions(c *config.Config, vm string, progress func(control.Progress)) preflight.Options {
	return preflight.Options{
		Config: c, VM: vm, Belongs: belongs, Progress: progress,
		Open: func(ctx context.Context) (target.Target, error) {
			return openTarget(ctx, c.Target, false, slog.New(slog.DiscardHandler), nil)
		},
	}
}

// Preflight implements control.Backend: as without an appliance, and what the target has already need not be moved.
func (a *Appliance) Preflight(ctx context.Context, vm string, progress func(control.Progress)) (control.Preflight, error) {
	o := preflightOptions(a.config(), vm, progress)
	o.Now = a.now
	for _, s := range a.stores {
		o.Served = append(o.Served, s.conf.Mount)
	}
	o.Missing = a.missingAt
	return preflight.Run(ctx, o)
}

// missingAt is how many bytes of a disk the target lacks, as far as its pipeline knows.
func (a *Appliance) missingAt(vm, disk string) (int64, bool) {
	m, err := a.find(vm)
	if err != nil {
		return 0, false
	}
	for _, d := range m.pipeline.Status().Disks {
		if d.Name == disk && d.Stage != shipper.StageWaiting {
			return max(d.Unknown, d.Pending), true
		}
	}
	return 0, false
}
