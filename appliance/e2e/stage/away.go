package stage

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

const (
	// backWithin is how soon after the target's return a new point must be there.
	backWithin = 5 * time.Second
	// budget is how long a request is repeated before its cycle has failed (BEHAVIOUR §Retry).
	budget = 30 * time.Second
	// scheduleSlack is what the times of a busy machine may be off.
	scheduleSlack = 3 * time.Second
)

// schedule are the waits after failed cycles (BEHAVIOUR §Retry).
var schedule = []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 10 * time.Minute}

// Away6 takes the target away for six minutes under a light load.
func Away6(ctx context.Context, e *Env, r *Report) error {
	away := 6 * time.Minute
	if e.Short {
		away = 75 * time.Second // the first cycle has failed, and waits
	}
	return away6(ctx, e, r, away)
}

func away6(ctx context.Context, e *Env, r *Report, away time.Duration) (err error) {
	g, target, end, err := setup(ctx, e, r, "away6", standardDisks, rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.load.Rate = 30_000 // in six minutes less than half of any disk, which would be a reason of its own
	g.start(ctx)
	normal := func(vm rig.VM) bool { return vm.Health == "Normal" && vm.State == "Replicating" && vm.LastPoint != nil }
	if err := errors.Join(g.replicated(ctx), g.await(ctx, time.Minute, "health Normal", normal)); err != nil {
		return err
	}
	w := &outageWatch{guest: g}
	target.Proxy.Set(rig.Refuse)
	began := time.Now()
	if err := w.watch(ctx, began.Add(away)); err != nil {
		return err
	}
	before := w.last
	target.Proxy.Set(rig.Pass)
	back := time.Now()
	err = g.await(ctx, time.Minute, "a new point", func(vm rig.VM) bool { return vm.LastPoint != nil && vm.LastPoint.Epoch > before })
	took := time.Since(back)
	r.Figure("replicating again", "%v after the target's return", took.Round(10*time.Millisecond))
	if took > backWithin {
		r.Fail("the first point came %v after the target's return", took)
	}
	if err := errors.Join(err, g.await(ctx, 5*time.Minute, "health Normal again", normal)); err != nil {
		return err
	}
	r.Figure("Normal again", "%v after the target's return", time.Since(back).Round(time.Second))
	w.judge(r)
	failures, err := shipFailures(g.rig.LogFile(), began)
	r.Check(err, "the appliance's log")
	judgeSchedule(r, failures, began, back)
	r.Check(g.stop(), "the load: a guest's error")
	r.Check(g.atRest(ctx), "at rest")
	return g.checkAll(ctx, mostPoints)
}

// outageWatch looks at the VM once a second while its target is away.
type outageWatch struct {
	*guest
	healths, states, codes []string // each once, in the order they came
	last                   uint64   // newest point
}

func (w *outageWatch) watch(ctx context.Context, until time.Time) error {
	for time.Now().Before(until) {
		if err := w.pause(ctx, time.Second); err != nil {
			return fmt.Errorf("the guest got an error while the target was away: %w", err)
		}
		vm, err := w.rig.VM(ctx, w.vm)
		if err != nil {
			return err
		}
		w.look(vm)
	}
	return nil
}

func (w *outageWatch) look(vm rig.VM) {
	note := func(list *[]string, s string) {
		if !slices.Contains(*list, s) {
			*list = append(*list, s)
		}
	}
	note(&w.healths, vm.Health)
	note(&w.states, vm.State)
	for _, reason := range vm.Reasons {
		note(&w.codes, reason.Code)
	}
	if vm.LastPoint != nil {
		w.last = vm.LastPoint.Epoch
	}
}

// judge wants Warning, with the reason, and nothing worse.
func (w *outageWatch) judge(r *Report) {
	r.Figure("while away", "health %v, state %v, reasons %v", w.healths, w.states, w.codes)
	if slices.Contains(w.healths, "Critical") || w.healths[len(w.healths)-1] != "Warning" || !slices.Contains(w.codes, "retrying") {
		r.Fail("while the target was away health was %v with %v, and should have become Warning, retrying", w.healths, w.codes)
	}
	if len(w.states) != 1 || w.states[0] != "Replicating" {
		r.Fail("while the target was away the state was %v", w.states)
	}
}

// failure is a failed cycle of the ship stage, and how long it said it would wait.
type failure struct {
	at   time.Time
	wait time.Duration
}

var failedShip = regexp.MustCompile(`^time=(\S+) level=WARN msg="stage failed" .*stage=ship .*retry_in=(\S+)`)

// shipFailures reads the failed cycles after a time from the appliance's log.
func shipFailures(log string, after time.Time) (all []failure, err error) {
	f, err := os.Open(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := failedShip.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		at, err := time.Parse(time.RFC3339, m[1])
		if err != nil {
			return nil, err
		}
		wait, err := time.ParseDuration(m[2])
		if err != nil {
			return nil, err
		}
		if at.After(after) {
			all = append(all, failure{at, wait})
		}
	}
	return all, lines.Err()
}

// judgeSchedule: a cycle fails when its request was repeated for half a minute, and the next is tried after the wait of
// its turn, and not before.
func judgeSchedule(r *Report, failures []failure, began, back time.Time) {
	var text []string
	due, i := began, 0
	for ; due.Before(back.Add(-budget - scheduleSlack)); i++ {
		if i == len(failures) {
			r.Fail("cycle %d has not failed, %v after it was due", i+1, back.Sub(due).Round(time.Second))
			return
		}
		f := failures[i]
		text = append(text, f.at.Sub(began).Round(time.Second).String())
		// The first begins with the next epoch, so up to an interval later.
		if took := f.at.Sub(due); took < budget/2 || took > budget+scheduleSlack+10*time.Second {
			r.Fail("cycle %d failed %v after it was due", i+1, took)
		}
		if want := schedule[min(i, len(schedule)-1)]; f.wait != want {
			r.Fail("after cycle %d it waits for %v, and should for %v", i+1, f.wait, want)
		}
		due = f.at.Add(f.wait)
	}
	if len(failures) > i+1 {
		r.Fail("%d cycles failed, %d were due", len(failures), i)
	}
	r.Figure("cycles failed after", "%v", text)
}
