package sim

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// comparisons are those of one VM, one after the other, as the appliance does them: what is to be found out, what is suspect,
// and replicas that somebody asked for or that others changed.
type comparisons struct {
	m    *machine
	kick chan struct{}

	mu struct { // guards the rest; no I/O
		sync.Mutex
		running runner
		stop    context.CancelFunc // of the running one, if it may be cancelled
	}
}

// runner is resync.Scanner, Deep or Match.
type runner interface {
	Pause()
	Resume()
}

// wishes are what operators want of a VM's comparisons; durable.
type wishes struct {
	Held bool                `json:"held"` // none runs
	Deep map[string]deepWish `json:"deep"` // by disk id
}

// deepWish is how far a comparison of a replica is.
type deepWish struct {
	Snapshot string           `json:"snapshot,omitempty"`
	At       extent.DiskBlock `json:"at,omitempty"`
	Found    int64            `json:"found,omitempty"` // blocks
}

func (c *comparisons) key() string { return "sim/resync/" + c.m.log.ID() }

func (c *comparisons) wishes() (w wishes) {
	_, _ = c.m.p.j.Load(c.key(), &w) // none: there is nothing but what was saved here
	if w.Deep == nil {
		w.Deep = map[string]deepWish{}
	}
	return w
}

func (c *comparisons) wish(change func(*wishes)) error {
	w := c.wishes()
	change(&w)
	return c.m.p.j.Save(c.key(), w)
}

func (c *comparisons) wake() {
	select {
	case c.kick <- struct{}{}:
	default:
	}
}

// run compares whenever there is something to compare.
func (c *comparisons) run() {
	for c.m.p.ctx.Err() == nil {
		moved := c.m.pipe.Moved()
		var again <-chan time.Time
		if err := c.turn(); err != nil {
			again = time.After(10 * time.Second)
		}
		select {
		case <-c.m.p.ctx.Done():
		case <-c.kick:
		case <-moved:
		case <-again:
		}
		select { // what a turn does may move the pipeline: time passes between two
		case <-c.m.p.ctx.Done():
		case <-time.After(500 * time.Millisecond):
		}
	}
}

func (c *comparisons) turn() error {
	var errs []error
	matching := c.m.pipe.Matching()
	for _, t := range c.m.all() {
		if c.wishes().Held {
			return errors.Join(errs...)
		}
		if slices.Contains(matching, t.disk.ID()) {
			errs = append(errs, c.match(t))
		}
		if t.disk.Suspected() {
			errs = append(errs, c.source(t))
		}
		if w, wanted := c.deepWish(t); wanted {
			errs = append(errs, c.deep(t, w))
		}
	}
	return errors.Join(errs...)
}

// deepWish tells whether a replica is to be compared: somebody asked for it, or the pipeline found that others changed it.
func (c *comparisons) deepWish(t *tracked) (deepWish, bool) {
	w, wanted := c.wishes().Deep[t.disk.ID()]
	if !c.m.pipe.Connected() {
		return w, false
	}
	for _, d := range c.m.pipe.Status().Disks {
		if d.ID == t.disk.ID() && d.Stage == shipper.StageComplete && d.Touched != "" && !d.Repairing && !d.Matching && !wanted {
			err := c.wish(func(x *wishes) { x.Deep[d.ID] = w })
			return w, err == nil
		}
	}
	return w, wanted
}

// begin shows a comparison that runs, and returns its context.
func (c *comparisons) begin(r runner, cancellable bool) (context.Context, func()) {
	ctx, cancel := context.WithCancel(c.m.p.ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.running = r
	if cancellable {
		c.mu.stop = cancel
	}
	return ctx, func() {
		cancel()
		c.mu.Lock()
		defer c.mu.Unlock()
		c.mu.running, c.mu.stop = nil, nil
	}
}

// hold has comparisons wait, the running one in the middle; false: none runs.
func (c *comparisons) hold() (bool, error) {
	err := c.wish(func(w *wishes) { w.Held = true })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.running != nil {
		c.mu.running.Pause()
	}
	return c.mu.running != nil, err
}

func (c *comparisons) resume() error {
	err := c.wish(func(w *wishes) { w.Held = false })
	c.mu.Lock()
	if c.mu.running != nil {
		c.mu.running.Resume()
	}
	c.mu.Unlock()
	c.wake()
	return err
}

// cancel ends the running comparison; false: none runs that may be cancelled.
func (c *comparisons) cancel() (bool, error) {
	err := c.wish(func(w *wishes) { w.Held, w.Deep = true, nil })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.stop == nil {
		return false, err
	}
	c.mu.stop()
	return true, err
}

// source is source × table.
func (c *comparisons) source(t *tracked) error {
	table, layout, ok := c.m.pipe.Table(t.disk.ID())
	if !ok {
		return nil
	}
	s := resync.New(resync.Deps{Source: comparedSource{t.disk, t.image}, Table: table, Layout: layout}, c.options())
	ctx, end := c.begin(s, true)
	defer end()
	report, err := s.Run(ctx)
	if report.Differing > 0 {
		c.struck("comparison found a difference")
	}
	if err == nil {
		c.m.pipe.SealSoon()
	}
	return err
}

// match is source × target: it finds out a table that a takeover or a loss left without knowledge.
func (c *comparisons) match(t *tracked) error {
	id := t.disk.ID()
	table, layout, ok := c.m.pipe.MatchTable(id)
	if !ok {
		return nil
	}
	view, err := c.m.pipe.OpenView(c.m.p.ctx, id, "")
	if err != nil {
		return err
	}
	r := resync.NewMatch(resync.MatchDeps{Source: t.image, Layout: layout, Table: table, Replica: view,
		Passed: func(at extent.DiskBlock) error { return c.m.pipe.NoteMatched(id, at) }}, c.options())
	ctx, end := c.begin(r, false)
	defer end()
	_, err = r.Run(ctx, c.m.pipe.MatchedTo(id))
	if err = errors.Join(err, view.Close(context.WithoutCancel(ctx))); err != nil {
		return err
	}
	c.struck("table found out")
	return c.m.pipe.EndMatch(id)
}

// deep is target × table: nothing if the replica is as we left it, else its newest snapshot, from where the last try ended.
func (c *comparisons) deep(t *tracked, from deepWish) error {
	pipe, id := c.m.pipe, t.disk.ID()
	table, _, ok := pipe.Table(id)
	if !ok {
		return nil
	}
	same, err := pipe.Unchanged(c.m.p.ctx, id)
	if err != nil {
		return err
	}
	if same {
		c.struck("replica is as it was left")
		return c.forget(t)
	}
	view, err := pipe.OpenView(c.m.p.ctx, id, from.Snapshot)
	if errors.Is(err, shipper.ErrUnderWay) {
		return nil // the pipeline moves when the round is over
	}
	if err != nil {
		return err
	}
	if view.Snapshot() != from.Snapshot {
		from = deepWish{Snapshot: view.Snapshot(), Found: from.Found}
	}
	r := resync.NewDeep(resync.DeepDeps{Replica: view, Table: table,
		Forget: func(rs ...extent.Range[extent.DiskBlock]) error {
			from.Found += extent.Of(rs...).Blocks()
			return pipe.ForgetBlocks(id, rs...)
		},
		Passed: func(at extent.DiskBlock) error { from.At = at; return c.keep(t, from) },
	}, c.options())
	ctx, end := c.begin(r, true)
	defer end()
	_, err = r.Run(ctx, from.At)
	after := context.WithoutCancel(ctx)
	if errors.Is(err, target.ErrNotFound) { // pruned: the newest one from the start
		return errors.Join(c.keep(t, deepWish{Found: from.Found}), view.Close(after))
	}
	if err == nil {
		err = pipe.EndDeep(ctx, view, from.Found, true)
	}
	if err = errors.Join(err, view.Close(after)); err != nil {
		return errors.Join(err, c.keep(t, from))
	}
	c.struck("replica compared")
	if from.Found > 0 {
		c.struck("replica found damaged")
	}
	pipe.SealSoon()
	return c.forget(t)
}

// keep remembers how far the comparison of a replica is, unless it was cancelled.
func (c *comparisons) keep(t *tracked, d deepWish) error {
	if _, wanted := c.wishes().Deep[t.disk.ID()]; !wanted {
		return nil
	}
	return c.wish(func(w *wishes) { w.Deep[t.disk.ID()] = d })
}

func (c *comparisons) forget(t *tracked) error {
	return c.wish(func(w *wishes) { delete(w.Deep, t.disk.ID()) })
}

// options have a comparison take its time, so that it is under way when something strikes.
func (c *comparisons) options() resync.Options {
	return resync.Options{Yield: func(context.Context, int) error {
		c.m.p.life.pause(c.m.p.w.slowness(c.m.p.w.fate.slowImage.Load(), "comparison of "+c.m.name))
		c.midway()
		return nil
	}}
}

func (c *comparisons) struck(kind string) {
	if c.m.p.life.isAlive() {
		c.m.p.w.struck(kind)
	}
}
