package stage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// comesWithin is how long a point may be in coming.
const comesWithin = 40 * time.Second

// Failpoints kills the appliance at every failpoint of the data path, and cuts its power there.
func Failpoints(ctx context.Context, e *Env, r *Report) error {
	all := slices.Clone(roads)
	if e.Short {
		all = sampled(e, all)
	}
	return failAt(ctx, e, r, all)
}

// sampled is a handful of points, one of a road, but two of what a load comes to.
func sampled(e *Env, all []road) []road {
	rng := e.rng(7)
	var some []road
	for _, w := range all {
		if !w.quick {
			continue
		}
		points := slices.Clone(w.points)
		rng.Shuffle(len(points), func(i, j int) { points[i], points[j] = points[j], points[i] })
		n := 1
		if len(some) == 0 {
			n = 2
		}
		w.points = points[:n]
		some = append(some, w)
	}
	return some
}

// failAt comes to the points of every road, once for a kill and once for a power cut. Ways that follow each other with the same
// options share an appliance.
func failAt(ctx context.Context, e *Env, r *Report, all []road) error {
	mortal, err := rig.BuildMortal(ctx, e.Dir)
	if err != nil {
		return err
	}
	kills, cuts := 0, 0
	for _, w := range all {
		if e.At != nil {
			w.points = slices.DeleteFunc(slices.Clone(w.points), func(p string) bool { return !e.At.MatchString(p) })
		}
		if len(w.points) == 0 {
			continue
		}
		x, end, err := newFailer(ctx, e, r, w, mortal)
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		err = x.all(ctx)
		kills, cuts = kills+x.struck[failpoint.Kill], cuts+x.struck[failpoint.Hold]
		if err = errors.Join(err, end()); err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
	}
	r.Figure("failpoints", "%d kills, %d power cuts", kills, cuts)
	return nil
}

// failer crashes an appliance at failpoints.
type failer struct {
	*crasher
	road   road
	struck map[failpoint.Deed]int
	extra  int // VMs made besides
}

func newFailer(ctx context.Context, e *Env, r *Report, w road, mortal string) (*failer, func() error, error) {
	opts := w.opts
	opts.Mortal = mortal
	if opts.ApplyInterval == 0 {
		opts.ApplyInterval = time.Second
	}
	c, end, err := newCrasher(ctx, e, r, "failpoints", opts)
	if err != nil {
		return nil, nil, err
	}
	x := &failer{crasher: c, road: w, struck: map[failpoint.Deed]int{}}
	c.whole = w.whole
	if w.begun != nil {
		c.begun = func(ctx context.Context) error { return w.begun(ctx, x) }
	}
	return x, end, nil
}

func (x *failer) all(ctx context.Context) error {
	for _, point := range x.road.points {
		for _, deed := range []failpoint.Deed{failpoint.Kill, failpoint.Hold} {
			began := time.Now()
			o := failpoint.Order{Point: point, Passage: 1 + x.rng.IntN(max(1, x.road.passages)), Do: deed}
			if err := x.strike(ctx, o); err != nil {
				return fmt.Errorf("%s at passage %d of %q: %w", deed, o.Passage, point, err)
			}
			x.env.say("%s at passage %d of %q, %s: %v", deed, o.Passage, point, x.road.name, time.Since(began).Round(time.Millisecond))
		}
	}
	return nil
}

// strike comes to a point, crashes there, and wants everything in order afterwards.
func (x *failer) strike(ctx context.Context, o failpoint.Order) error {
	for {
		err := x.road.bring(ctx, x, o)
		if err == nil {
			break
		}
		if !errors.Is(err, errNeverCame) || o.Passage == 1 {
			return err
		}
		o.Passage = 1 // it comes, but not so often
	}
	told, err := x.crash(ctx, o.Do == failpoint.Hold || x.road.cuts)
	if err != nil {
		return err
	}
	x.rig.Orders = nil
	if x.road.spoils {
		told = nil
	}
	if err := x.recovered(ctx, told); err != nil {
		return err
	}
	x.struck[o.Do]++
	if x.road.after != nil {
		return x.road.after(ctx, x)
	}
	return nil
}

var errNeverCame = errors.New("it never came there")

// until waits until the appliance has died or stays at a point, and does something every now and then meanwhile.
func (x *failer) until(ctx context.Context, every func() error) error {
	timeout := time.NewTimer(comesWithin)
	defer timeout.Stop()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-x.rig.Exited():
			return nil
		case <-x.rig.Held():
			return nil
		case <-timeout.C:
			return errNeverCame
		case <-tick.C:
			if err := every(); err != nil {
				return err
			}
		}
	}
}

// move has the load write to the other half of every disk.
func (x *failer) move() error {
	x.window.Add(1)
	return nil
}
