package stage

import (
	"context"
	"errors"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// mostPoints are exported and checked at the end of a stage.
const mostPoints = 40

// setup makes target, appliance and guest of a stage and runs the appliance. The returned function ends all of it.
func setup(ctx context.Context, e *Env, r *Report, name string, disks []disk) (*guest, *rig.Target, func() error, error) {
	dir, err := e.fresh(name)
	if err != nil {
		return nil, nil, nil, err
	}
	target, err := e.target(ctx, dir)
	if err != nil {
		return nil, nil, nil, err
	}
	appliance, err := rig.New(rig.Options{Dir: dir, Binary: e.Binary, URL: target.URL, Key: target.Key})
	if err != nil {
		return nil, nil, nil, errors.Join(err, target.Close())
	}
	end := func() error { return errors.Join(appliance.Close(), target.Close()) }
	g, err := newGuest(ctx, e, r, appliance, disks)
	if err == nil {
		err = appliance.Start(ctx)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, end())
	}
	return g, target, end, nil
}

// Load runs the stamped load for ten minutes at an interval of five seconds.
func Load(ctx context.Context, e *Env, r *Report) (err error) {
	g, _, end, err := setup(ctx, e, r, "load", standardDisks)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	e.say("the first point is there, the load goes on")
	for deadline := time.Now().Add(e.scale(10 * time.Minute)); time.Now().Before(deadline); {
		if err := g.failed(); err != nil {
			return err
		}
		point, err := g.sync(ctx)
		r.Check(err, "sync under load")
		e.say("point %s is checked, log %+v", point.ID, g.log.Totals())
		if err := g.pause(ctx, 15*time.Second); err != nil {
			return err
		}
	}
	r.Check(g.stop(), "the load")
	r.Check(g.atRest(ctx), "at rest")
	totals := g.log.Totals()
	r.Figure("load", "%d writes, %d MB", totals.Writes, totals.Bytes/1e6)
	return g.checkAll(ctx, mostPoints)
}

// pause lets time pass while the load goes on.
func (g *guest) pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case err := <-g.running.done:
		g.running.done <- err
		return err
	case <-timer.C:
		return nil
	}
}
