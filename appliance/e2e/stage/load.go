package stage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// mostPoints are exported and checked at the end of a stage.
const mostPoints = 40

// setup makes target, appliance and guest of a stage and runs the appliance. The returned function ends all of it. more
// put other things into the store before the appliance sees it.
func setup(ctx context.Context, e *Env, r *Report, name string, disks []disk, opts rig.Options, more ...func(*rig.Rig) error) (*guest, *rig.Target, func() error, error) {
	appliance, target, end, err := e.appliance(ctx, name, opts)
	if err != nil {
		return nil, nil, nil, err
	}
	g, err := newGuest(ctx, e, r, appliance, disks)
	for _, m := range more {
		err = errors.Join(err, m(appliance))
	}
	if err == nil {
		err = appliance.Start(ctx)
	}
	if err != nil {
		return nil, nil, nil, errors.Join(err, end())
	}
	return g, target, end, nil
}

// Load runs a guest's load for ten minutes at an interval of five seconds: stamped blocks, fio, a database and a tree.
func Load(ctx context.Context, e *Env, r *Report) (err error) {
	d := e.scale(10 * time.Minute)
	var x *linux
	g, _, end, err := setup(ctx, e, r, "load", standardDisks, rig.Options{},
		func(a *rig.Rig) error { return newFio(ctx, a) },
		func(a *rig.Rig) (err error) { x, err = newLinux(ctx, e, a); return err })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, x.stop(), g.stop(), end()) }()
	g.load.Rate = 10_000_000
	g.start(ctx)
	if err := x.start(ctx); err != nil {
		return err
	}
	fioDone := make(chan error, 1)
	go func() { fioDone <- fio(ctx, g.rig, d) }()
	if err := g.replicated(ctx); err != nil {
		return err
	}
	if err := underLoad(ctx, g, x, d); err != nil {
		return err
	}
	r.Check(<-fioDone, "fio")
	r.Check(errors.Join(g.stop(), x.stop()), "the load")
	r.Check(checkFio(ctx, g.rig), "VM %s", fioVM)
	r.Check(g.atRest(ctx), "at rest")
	totals := g.log.Totals()
	r.Figure("load", "%d stamped writes, %d MB; %d and %d transactions, %d files", totals.Writes, totals.Bytes/1e6, x.committed.Load(), x.rolled.Load(), x.written.Load())
	return errors.Join(g.checkAll(ctx, mostPoints), x.checkAll(ctx, r))
}

// underLoad asks for points for a while and judges each.
func underLoad(ctx context.Context, g *guest, x *linux, d time.Duration) error {
	for deadline := time.Now().Add(d); time.Now().Before(deadline); {
		point, err := g.sync(ctx)
		g.report.Check(err, "sync under load")
		g.env.say("point %s is checked, log %+v", point.ID, g.log.Totals())
		if x != nil {
			g.report.Check(x.sync(ctx), "VM %s under load", x.vm)
		}
		if err := g.pause(ctx, 10*time.Second); err != nil {
			return fmt.Errorf("the load fails: %w", err)
		}
	}
	return nil
}

// sync asks for a point under load and judges it.
func (x *linux) sync(ctx context.Context) error {
	before := x.told()
	result, err := x.rig.Sync(ctx, x.vm)
	if err != nil {
		return err
	}
	return x.check(ctx, result.Point, before)
}

// checkAll judges points that nobody asked for; the oldest may be from before the file systems.
func (x *linux) checkAll(ctx context.Context, r *Report) error {
	points, err := x.rig.Points(ctx, x.vm)
	if err != nil {
		return err
	}
	checked := 0
	for _, p := range sample(points, mostPoints/2) {
		if len(p.Disks) < len(linuxDisks) || p.Time.Before(x.made.Add(clockSlack)) {
			continue
		}
		checked++
		r.Check(x.check(ctx, p.ID, told{}), "VM %s", x.vm)
		r.Check(x.rig.Verify(ctx, x.vm, p.ID), "VM %s", x.vm)
	}
	r.Figure("ext4 points", "%d, checked %d", len(points), checked)
	return nil
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
