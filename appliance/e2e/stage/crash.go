package stage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// crashDisks are small, so that a crash costs seconds. The load leaves most of the wide one alone: a full scan is told from
// a comparison of what was active.
var crashDisks = []disk{{name: "os.vhd", size: 12 << 20}, {name: "data.raw", size: 12 << 20}, {name: "wide.raw", size: 64 << 20, span: 12 << 20}}

// crashHost is the size of the file system of store and state; the file is sparse.
const crashHost = 1 << 30

// crasher crashes an appliance whose store and state are on a file system of their own, and judges what comes after against
// the ledgers: of the writes, and of the points that somebody was told of.
type crasher struct {
	*guest
	host   *rig.Loop
	rng    *rand.Rand
	window atomic.Int64 // which part of the disks the load writes to
	asking *asking
	off    bool                        // the power was cut, and is not back
	whole  bool                        // disks may be compared whole after a crash: they were marked
	begun  func(context.Context) error // what is done after a start; nil: nothing
	told   map[string]bool             // points

	kills, cuts int
	suspect     int64         // most
	lost        int           // blocks that the store lost in all cuts
	longest     time.Duration // start
}

// newCrasher makes disks and file system and starts the appliance. The returned function ends all of it.
func newCrasher(ctx context.Context, e *Env, r *Report, name string, opts rig.Options) (*crasher, func() error, error) {
	dir, err := e.fresh(name)
	if err != nil {
		return nil, nil, err
	}
	target, err := rig.DirTarget(filepath.Join(dir, "replicas"))
	if err != nil {
		return nil, nil, err
	}
	host := &rig.Loop{File: filepath.Join(dir, "host.img"), Dir: filepath.Join(dir, "host")}
	if err := errors.Join(host.Format(ctx, crashHost), host.Mount(ctx)); err != nil {
		return nil, nil, err
	}
	opts.Dir, opts.Binary, opts.URL = dir, e.Binary, target.URL
	opts.Source, opts.State = filepath.Join(host.Dir, "source"), filepath.Join(host.Dir, "state")
	appliance, err := rig.New(opts)
	if err != nil {
		return nil, nil, errors.Join(err, host.Unmount())
	}
	c := &crasher{host: host, rng: e.rng(1), told: map[string]bool{}}
	end := func() error {
		_ = c.asking.stop() // its error is that of the appliance, which ends
		err := appliance.Close()
		_ = c.stop()
		return errors.Join(err, host.Unmount())
	}
	c.guest, err = newGuest(ctx, e, r, appliance, crashDisks)
	if err == nil {
		unix.Sync() // the images themselves are not what is cut here
		c.load.Rate, c.load.Where = 8_000_000, c.where
		err = c.rig.Start(ctx)
	}
	if err == nil {
		err = c.replicated(ctx)
	}
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return c, end, nil
}

// stop lets the load come to rest; none, or no guest yet, is no error.
func (c *crasher) stop() error {
	if c.guest == nil {
		return nil
	}
	return c.guest.stop()
}

// where gives the load a half of every disk, of which the other one can come to rest. They have a region in common.
func (c *crasher) where(d int) stamp.Span {
	blocks := c.disks[d].size / stamp.BlockSize
	if span := c.disks[d].span; span > 0 {
		blocks = span / stamp.BlockSize
	}
	if c.window.Load()%2 == 0 {
		return stamp.Span{To: blocks / 2}
	}
	return stamp.Span{From: blocks / 2, To: blocks}
}

// work starts load and asking. Every third time nobody syncs: then nothing but the appliance's own syncs keeps the store
// from falling behind the target.
func (c *crasher) work(ctx context.Context) {
	c.load.Modes = nil
	if c.rng.IntN(3) == 0 {
		c.load.Modes = []stamp.Mode{stamp.Direct}
	}
	c.start(ctx)
	c.asking = ask(ctx, c.guest)
}

// asking asks for one point after the other.
type asking struct {
	cancel context.CancelFunc
	done   chan struct{}
	acked  []acked // read after done
	err    error
}

// acked is a point that somebody was told of, and what is known of its seal.
type acked struct {
	id     string
	bounds stamp.Bounds
}

func ask(ctx context.Context, g *guest) *asking {
	ctx, cancel := context.WithCancel(ctx)
	a := &asking{cancel: cancel, done: make(chan struct{})}
	log := g.log
	go func() {
		defer close(a.done)
		for ctx.Err() == nil {
			after := log.Tick()
			result, err := g.rig.Sync(ctx, g.vm)
			if err != nil {
				a.err = err
				return
			}
			a.acked = append(a.acked, acked{result.Point, stamp.Bounds{After: after, Before: log.Tick()}})
		}
	}()
	return a
}

// stop ends the asking and returns why it had ended by itself.
func (a *asking) stop() error {
	if a == nil {
		return nil
	}
	var err error
	select {
	case <-a.done:
		err = a.err
	default:
	}
	a.cancel()
	<-a.done
	return err
}

// crash ends the appliance, which may be dead already, with the power or without, and judges the store: after a kill it has
// everything that was answered, after a cut everything that was answered as durable. A cut begins the next era; a kill does
// not, for what it left may be in memory only, and the next cut may take it. It returns the points that somebody was told of.
func (c *crasher) crash(ctx context.Context, cut bool) ([]acked, error) {
	if cut && !c.off {
		if err := c.powerOff(); err != nil {
			return nil, err
		}
	}
	if err := c.rig.Kill(); err != nil {
		return nil, err
	}
	_ = c.asking.stop() // the appliance is gone
	if err := c.stop(); errors.Is(err, errStuck) {
		return nil, err
	}
	var told []acked
	if c.asking != nil {
		told = c.asking.acked
	}
	c.asking = nil
	if !cut {
		return told, c.killed()
	}
	if err := c.cutOff(ctx); err != nil {
		return nil, err
	}
	return told, c.begin()
}

// powerOff ends what can be written. The appliance lives and meets errors.
func (c *crasher) powerOff() error {
	c.off = true
	if err := keepHeartbeat(c.rig); err != nil {
		return err
	}
	c.log.Cut()
	return c.host.Cut()
}

// killed judges the store after a kill.
func (c *crasher) killed() error {
	c.kills++
	images, err := c.readSource()
	if err != nil {
		return err
	}
	return wrapped("the store after a kill", c.log.Check(images, stamp.Bounds{After: math.MaxInt64, Before: math.MaxInt64}, nil).Err())
}

// cutOff brings the file system up again after a cut and judges the store.
func (c *crasher) cutOff(ctx context.Context) error {
	c.cuts++
	c.off = false
	if err := errors.Join(c.host.Unmount(), c.host.Mount(ctx)); err != nil {
		return err
	}
	images, err := c.readSource()
	if err != nil {
		return err
	}
	found := c.log.CheckDurable(images)
	c.lost += found.Lost
	return wrapped("the store after a power cut", found.Err())
}

func wrapped(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// recovered starts the appliance and wants everything in order: a point that equals the store bit by bit, every point that
// somebody was told of listed, the newest of them and another one right, the state without contradictions, and nothing
// suspect where the load never wrote.
func (c *crasher) recovered(ctx context.Context, told []acked) error {
	began := time.Now()
	if err := c.rig.Start(ctx); err != nil {
		return err
	}
	c.longest = max(c.longest, time.Since(began))
	if c.begun != nil {
		if err := c.begun(ctx); err != nil {
			return err
		}
	}
	if err := wrapped("at rest", c.atRest(ctx)); err != nil {
		return err
	}
	vm, err := c.rig.VM(ctx, c.vm)
	if err != nil {
		return err
	}
	c.suspect = max(c.suspect, vm.Recovery.SuspectBytes)
	if vm.Recovery.SuspectBytes > spanOf(c.disks) && !c.whole {
		return fmt.Errorf("no more was active than %d bytes: %+v", spanOf(c.disks), vm.Recovery)
	}
	return errors.Join(c.judgeTold(ctx, told), c.rig.CheckState(ctx))
}

func (c *crasher) judgeTold(ctx context.Context, told []acked) error {
	for _, a := range told {
		c.told[a.id] = true
	}
	points, err := c.rig.Points(ctx, c.vm)
	if err != nil {
		return err
	}
	there := map[string]rig.Point{}
	for _, p := range points {
		there[p.ID] = p
	}
	for id := range c.told {
		if c.rig.Dense != "" {
			break // they are pruned
		}
		if _, ok := there[id]; !ok {
			return fmt.Errorf("somebody was told of point %s, and it is gone", id)
		}
	}
	told = slices.DeleteFunc(slices.Clone(told), func(a acked) bool { _, ok := there[a.id]; return !ok })
	if len(told) == 0 {
		return nil
	}
	newest, other := told[len(told)-1], told[c.rng.IntN(len(told))]
	err = c.check(ctx, there[newest.id], newest.bounds)
	if other.id != newest.id {
		err = errors.Join(err, c.check(ctx, there[other.id], other.bounds))
	}
	return err
}
