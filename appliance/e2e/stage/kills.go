package stage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// checkEvery is after how many kills a point is asked for and judged.
const checkEvery = 3

// Kills ends the appliance with SIGKILL a hundred times at random moments under load.
func Kills(ctx context.Context, e *Env, r *Report) error { return kills(ctx, e, r, e.count(100, 10)) }

func kills(ctx context.Context, e *Env, r *Report, n int) (err error) {
	g, _, end, err := setup(ctx, e, r, "kills", standardDisks, rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	k := &killer{guest: g, rng: e.rng(1)}
	for i := range n {
		if err := k.round(ctx, i); err != nil {
			return fmt.Errorf("kill %d: %w", i+1, err)
		}
	}
	r.Check(g.stop(), "the load after the last kill")
	r.Check(g.atRest(ctx), "at rest")
	r.Figure("kills", "%d, most suspect %d MiB of %d, longest start %v, longest until a new point %v", n, k.suspect>>20, sizeOf(g.disks)>>20,
		k.start.Round(time.Millisecond), k.newPoint.Round(time.Millisecond))
	return g.checkAll(ctx, mostPoints)
}

// killer kills and watches what comes after.
type killer struct {
	*guest
	rng             *rand.Rand
	suspect         int64
	start, newPoint time.Duration
}

func (k *killer) round(ctx context.Context, i int) error {
	wait := time.Duration(k.rng.Int64N(int64(8 * time.Second)))
	if err := k.pause(ctx, wait); err != nil {
		return fmt.Errorf("the load fails before the kill: %w", err)
	}
	if err := k.kill(); err != nil {
		return err
	}
	began := time.Now()
	if err := k.rig.Start(ctx); err != nil {
		return err
	}
	k.start = max(k.start, time.Since(began))
	k.guest.start(ctx)
	if err := k.recovered(ctx, began); err != nil {
		return err
	}
	k.env.say("kill %d after %v: suspect %d MiB", i+1, wait.Round(time.Millisecond), k.suspect>>20)
	if i%checkEvery == checkEvery-1 {
		_, err := k.sync(ctx)
		k.report.Check(err, "after kill %d", i+1)
	}
	return nil
}

// kill ends the appliance, lets the load fail with the mount, and begins the next era with what the store holds: there,
// everything that was answered.
func (k *killer) kill() error {
	if err := k.rig.Kill(); err != nil {
		return err
	}
	if err := k.guest.stop(); errors.Is(err, errStuck) {
		return err
	}
	images, err := k.readSource()
	if err != nil {
		return err
	}
	all := stamp.Bounds{After: math.MaxInt64, Before: math.MaxInt64}
	k.report.Check(k.log.Check(images, all, nil).Err(), "the store after a kill")
	return k.begin()
}

// recovered wants a new point without being asked, and only what the load wrote to be suspect.
func (k *killer) recovered(ctx context.Context, began time.Time) error {
	var vm rig.VM
	err := k.await(ctx, 2*time.Minute, "a new point after a kill", func(now rig.VM) bool {
		vm = now
		return now.LastPoint != nil && now.LastPoint.Time.After(began) && now.Resync.State == "idle"
	})
	if err != nil {
		return err
	}
	k.newPoint = max(k.newPoint, time.Since(began))
	k.suspect = max(k.suspect, vm.Recovery.SuspectBytes)
	if most := spanOf(k.disks); vm.Recovery.SuspectBytes > most {
		k.report.Fail("%d bytes are suspect after a kill, the load wrote within %d: %+v", vm.Recovery.SuspectBytes, most, vm.Recovery)
	}
	return nil
}

func sizeOf(disks []disk) (n int64) {
	for _, d := range disks {
		n += d.size
	}
	return n
}

const region = 4 << 20

// spanOf is what the load can have written, in whole regions; the footer of a VHD is in one of its own.
func spanOf(disks []disk) (n int64) {
	for _, d := range disks {
		span := d.span
		if span == 0 {
			span = d.size + region
		}
		n += (span + region - 1) / region * region
	}
	return n
}
