package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// loseStateEvery is after how many rounds the state directory is lost as well.
const loseStateEvery = 5

// Storm lets things happen together: the target comes and goes in every way, the spool is small, the appliance is killed
// in the middle and starts while the target is away, and now and then its state directory is gone.
func Storm(ctx context.Context, e *Env, r *Report) error { return storm(ctx, e, r, e.count(30, 5)) }

func storm(ctx context.Context, e *Env, r *Report, n int) (err error) {
	g, target, end, err := setup(ctx, e, r, "storm", standardDisks, rig.Options{SpoolLimit: 24 << 20})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.load.Rate = 8_000_000
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	s := &stormer{killer: &killer{guest: g, rng: e.rng(3)}, target: target}
	for i := range n {
		if err := s.round(ctx, i); err != nil {
			return fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	r.Check(g.stop(), "the load")
	r.Check(g.atRest(ctx), "at rest")
	r.Figure("rounds", "%d, longest start %v, longest until a new point %v", n, s.start.Round(time.Millisecond), s.newPoint.Round(time.Millisecond))
	return g.checkAll(ctx, mostPoints)
}

type stormer struct {
	*killer
	target *rig.Target
}

// round is: a fault, a kill in it, a start in another, calm; then points must come, and the one asked for be right.
func (s *stormer) round(ctx context.Context, i int) error {
	if err := s.fault(ctx); err != nil {
		return err
	}
	if err := s.kill(); err != nil {
		return err
	}
	lost := i%loseStateEvery == loseStateEvery-1
	if lost {
		if err := s.loseState(); err != nil {
			return err
		}
	} else {
		s.set(rig.Fault(s.rng.IntN(4)))
	}
	began := time.Now()
	if err := s.rig.Start(ctx); err != nil {
		return err
	}
	s.start = max(s.start, time.Since(began))
	s.guest.start(ctx)
	if err := s.fault(ctx); err != nil {
		return err
	}
	s.set(rig.Pass)
	calm := time.Now()
	err := s.await(ctx, 3*time.Minute, "a new point after a storm", func(vm rig.VM) bool {
		return vm.LastPoint != nil && vm.LastPoint.Time.After(calm) && vm.State == "Replicating"
	})
	if err != nil {
		return err
	}
	s.newPoint = max(s.newPoint, time.Since(calm))
	_, err = s.sync(ctx)
	s.report.Check(err, "round %d", i+1)
	s.env.say("round %d: calm after %v, state lost %v", i+1, time.Since(calm).Round(time.Millisecond), lost)
	return nil
}

// fault lets the load run under a random fault for a random while.
func (s *stormer) fault(ctx context.Context) error {
	s.set(rig.Fault(s.rng.IntN(4)))
	return s.pause(ctx, time.Duration(s.rng.Int64N(int64(6*time.Second))))
}

// set changes the fault; a directory has none.
func (s *stormer) set(f rig.Fault) {
	if s.target.Proxy != nil {
		s.target.Proxy.Set(f)
	}
}

// loseState empties the state directory; what is at the target and in the store must be enough.
func (s *stormer) loseState() error {
	s.set(rig.Pass)
	entries, err := os.ReadDir(s.rig.State)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(s.rig.State, e.Name())))
	}
	return err
}
