package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// powercutDisks are small: a cut wants regions that come to rest between two loads.
var powercutDisks = []disk{{name: "os.vhd", size: 48 << 20}, {name: "data.raw", size: 64 << 20}}

// PowerCut holds store and state on an ext4 of its own and shuts that down under load.
func PowerCut(ctx context.Context, e *Env, r *Report) error {
	return powercut(ctx, e, r, e.count(20, 4))
}

func powercut(ctx context.Context, e *Env, r *Report, n int) (err error) {
	dir, err := e.fresh("powercut")
	if err != nil {
		return err
	}
	target, err := e.target(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	host := &rig.Loop{File: filepath.Join(dir, "host.img"), Dir: filepath.Join(dir, "host")}
	if err := errors.Join(host.Format(ctx, 2<<30), host.Mount(ctx)); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Unmount()) }()
	appliance, err := rig.New(rig.Options{
		Dir: dir, Binary: e.Binary, URL: target.URL, Key: target.Key,
		Source: filepath.Join(host.Dir, "source"), State: filepath.Join(host.Dir, "state"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, appliance.Close()) }()
	g, err := newGuest(ctx, e, r, appliance, powercutDisks)
	if err != nil {
		return err
	}
	unix.Sync()                     // the images themselves are not what is cut here
	defer func() { _ = g.stop() }() // its error is that of the mount, which is gone
	return (&cutter{guest: g, host: host}).run(ctx, n)
}

// cutter cuts the power and watches what comes after.
type cutter struct {
	*guest
	host    *rig.Loop
	known   map[string]bool // points that somebody was told of
	suspect int64
	lost    int // blocks the store lost in all cuts
}

func (c *cutter) run(ctx context.Context, n int) error {
	c.known = make(map[string]bool)
	if err := c.rig.Start(ctx); err != nil {
		return err
	}
	if err := c.replicated(ctx); err != nil {
		return err
	}
	for i := range n {
		if err := c.round(ctx, i); err != nil {
			return fmt.Errorf("power cut %d: %w", i+1, err)
		}
	}
	c.report.Figure("power cuts", "%d, most suspect %d MiB of %d, the store lost %d blocks", n, c.suspect>>20, sizeOf(c.disks)>>20, c.lost)
	return c.checkAll(ctx, mostPoints)
}

// round writes, lets what was written come to rest, writes elsewhere, and cuts. In every second round nobody syncs: then
// only the appliance's own fdatasync keeps the store from falling behind the target where no region is active.
func (c *cutter) round(ctx context.Context, i int) error {
	c.load.Modes = nil
	if i%2 == 1 {
		c.load.Modes = []stamp.Mode{stamp.Direct}
	}
	c.window(i)
	c.guest.start(ctx)
	if err := c.pause(ctx, 3*time.Second); err != nil {
		return err
	}
	if i%4 < 2 {
		if err := c.rest(ctx); err != nil {
			return err
		}
		c.window(i + 1)
		c.guest.start(ctx)
		if err := c.pause(ctx, time.Duration(c.env.rng(uint64(i)).Int64N(int64(3*time.Second)))); err != nil {
			return err
		}
	}
	if err := c.note(ctx); err != nil {
		return err
	}
	if err := c.cut(ctx); err != nil {
		return err
	}
	return c.recovered(ctx, i)
}

// window gives the load of a round its own quarter of every disk.
func (c *cutter) window(i int) {
	for d := range c.load.Span {
		quarter := c.disks[d].size / stamp.BlockSize / 4
		c.load.Span[d] = stamp.Span{From: int64(i%4) * quarter, To: int64(i%4+1) * quarter}
	}
}

// rest stops the load, makes a point and waits until the regions written are left, as far as the appliance leaves them.
func (c *cutter) rest(ctx context.Context) error {
	if err := c.guest.stop(); err != nil {
		return err
	}
	if _, err := c.sync(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(2 * c.rig.Interval)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
	}
	vm, err := c.rig.VM(ctx, c.vm)
	if err != nil {
		return err
	}
	active := 0
	for _, d := range vm.Disks {
		active += d.ActiveRegions
	}
	c.env.say("at rest, %d regions active", active)
	return nil
}

// note remembers which points exist before the cut.
func (c *cutter) note(ctx context.Context) error {
	points, err := c.rig.Points(ctx, c.vm)
	for _, p := range points {
		c.known[p.ID] = true
	}
	return err
}

// cut shuts the file system down and brings it up again. What it then holds is the truth.
func (c *cutter) cut(ctx context.Context) error {
	if err := keepHeartbeat(c.rig); err != nil {
		return err
	}
	c.log.Cut()
	if err := c.host.Cut(); err != nil {
		return err
	}
	if err := c.guest.stop(); errors.Is(err, errStuck) {
		return err
	}
	if err := c.rig.Kill(); err != nil {
		return err
	}
	if err := c.host.Unmount(); err != nil {
		return err
	}
	if err := c.host.Mount(ctx); err != nil {
		return err
	}
	images, err := c.readSource()
	if err != nil {
		return err
	}
	found := c.log.CheckDurable(images)
	c.report.Check(found.Err(), "the store after a power cut")
	c.lost += found.Lost
	return c.begin()
}

// keepHeartbeat syncs the appliance's heartbeat file. A real power cut changes the boot id, which tells the appliance not
// to look at it; after this one it would find an old heartbeat, take every disk for changed behind its back, compare all
// of it, and so hide what is to be tested.
func keepHeartbeat(a *rig.Rig) error {
	return filepath.WalkDir(a.State, func(path string, entry os.DirEntry, err error) error {
		if err != nil || entry.Name() != "heartbeat" {
			return nil // files come and go
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	})
}

// recovered wants every point that somebody was told of, a store and a point that are equal, and points under load.
func (c *cutter) recovered(ctx context.Context, i int) error {
	if err := c.rig.Start(ctx); err != nil {
		return err
	}
	if err := c.atRest(ctx); err != nil {
		c.report.Fail("power cut %d: at rest: %v", i+1, err)
	}
	points, err := c.rig.Points(ctx, c.vm)
	if err != nil {
		return err
	}
	there := make(map[string]bool)
	for _, p := range points {
		there[p.ID] = true
	}
	for id := range c.known {
		if !there[id] {
			c.report.Fail("power cut %d: point %s was listed before and is gone", i+1, id)
		}
	}
	vm, err := c.rig.VM(ctx, c.vm)
	c.suspect = max(c.suspect, vm.Recovery.SuspectBytes)
	c.env.say("power cut %d: recovery %+v", i+1, vm.Recovery)
	return err
}
