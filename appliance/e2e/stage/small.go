package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// smallDisks are quick to read, and smallPoints few.
var smallDisks = []disk{{name: "os.vhd", size: 16 << 20}, {name: "data.raw", size: 24 << 20}, {name: "wide.raw", size: 64 << 20, span: 8 << 20}}

const smallPoints = 15

// Small is what a test has time for: each field that is not zero is one part, in the order of the fields.
type Small struct {
	Load  time.Duration // stamped load with points asked for
	Kills int
	Away  time.Duration // an outage of the target, which must be Azurite
	Cuts  int           // power cuts, with an appliance of their own
}

// Run plays the parts and checks every point.
func (s Small) Run(ctx context.Context, e *Env, r *Report) error {
	if s.Cuts > 0 {
		return powercut(ctx, e, r, s.Cuts)
	}
	return s.play(ctx, e, r)
}

func (s Small) play(ctx context.Context, e *Env, r *Report) (err error) {
	g, target, end, err := setup(ctx, e, r, "small", smallDisks, rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	if err := underLoad(ctx, g, nil, s.Load); err != nil {
		return err
	}
	k := &killer{guest: g, rng: e.rng(1)}
	for i := range s.Kills {
		if err := k.round(ctx, i); err != nil {
			return fmt.Errorf("kill %d: %w", i+1, err)
		}
	}
	if s.Away > 0 {
		o := &outages{guest: g, target: target, quota: sizeOf(g.disks) / 2}
		if err := errors.Join(o.away(ctx, s.Away), o.back(ctx)); err != nil {
			return err
		}
		o.judgeSpool(r)
	}
	r.Check(g.stop(), "the load")
	r.Check(g.atRest(ctx), "at rest")
	return errors.Join(g.checkAll(ctx, smallPoints), g.cleanStop(ctx))
}

// cleanStop stops the appliance as systemd does and starts it again: nothing is suspect then.
func (g *guest) cleanStop(ctx context.Context) error {
	if err := g.rig.Stop(); err != nil {
		return err
	}
	if err := g.rig.Start(ctx); err != nil {
		return err
	}
	vm, err := g.rig.VM(ctx, g.vm)
	if err == nil && vm.Recovery.SuspectBytes != 0 {
		err = fmt.Errorf("after a clean stop %d bytes are suspect: %s", vm.Recovery.SuspectBytes, vm.Recovery.Reason)
	}
	return errors.Join(err, g.atRest(ctx), g.rig.Stop())
}
