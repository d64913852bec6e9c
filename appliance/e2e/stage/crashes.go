package stage

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// batch is how many crashes are made in one directory; an interrupted run begins its batch anew.
const batch = 20

// Crashed is what a batch of crashes did: a line in the ledger.
type Crashed struct {
	Seed    uint64  `json:"seed"`
	Version string  `json:"version"` // of the appliance
	Kills   int     `json:"kills"`
	Cuts    int     `json:"cuts"`
	Points  int     `json:"points"`  // that somebody was told of
	Lost    int     `json:"lost"`    // blocks of the store, in the cuts
	Suspect int64   `json:"suspect"` // bytes, most
	Longest float64 `json:"longest"` // seconds, of a start
	Took    float64 `json:"took"`    // seconds
	Failure string  `json:"failure,omitempty"`
}

// Crashes are random: SIGKILL and power cuts at any moment under load, a point judged after each. Batches are noted in a
// ledger, so that an interrupted run goes on where it stopped.
func Crashes(ctx context.Context, e *Env, r *Report) error {
	return crashes(ctx, e, r, e.count(500, 2))
}

func crashes(ctx context.Context, e *Env, r *Report, n int) error {
	ledger := filepath.Join(e.Dir, "crashes.jsonl")
	done, err := ReadLines[Crashed](ledger)
	if err != nil {
		return err
	}
	version, err := versionOf(ctx, e.Binary)
	if err != nil {
		return err
	}
	for sum := total(done); sum.Kills < n || sum.Cuts < n; sum = total(done) {
		b := crashBatch(ctx, e, r, version, e.Seed+uint64(len(done)), n-sum.Kills, n-sum.Cuts)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := AddLine(ledger, b); err != nil {
			return err
		}
		if b.Failure != "" {
			return errors.New(b.Failure) // what it left is the evidence
		}
		done = append(done, b)
		e.say("crashes: %+v", total(done))
	}
	sum := total(done)
	r.Figure("crashes", "%d kills, %d power cuts, %d points told of, most suspect %d MiB of %d, the store lost %d blocks, longest start %.1f s",
		sum.Kills, sum.Cuts, sum.Points, sum.Suspect>>20, sizeOf(crashDisks)>>20, sum.Lost, sum.Longest)
	return nil
}

// crashBatch makes crashes, so many of each kind at most.
func crashBatch(ctx context.Context, e *Env, r *Report, version string, seed uint64, kills, cuts int) (b Crashed) {
	began := time.Now()
	b = Crashed{Seed: seed, Version: version}
	one := *e
	one.Seed = seed
	c, end, err := newCrasher(ctx, &one, r, "crashes", rig.Options{ApplyInterval: 2 * time.Second})
	if err == nil {
		for range batch {
			if c.kills >= kills && c.cuts >= cuts || err != nil {
				break
			}
			err = c.round(ctx, c.cuts < cuts && (c.kills >= kills || c.rng.IntN(2) == 0))
		}
		if err == nil {
			err = c.ended(ctx)
		}
		b.Kills, b.Cuts, b.Points, b.Lost, b.Suspect, b.Longest = c.kills, c.cuts, len(c.told), c.lost, c.suspect, c.longest.Seconds()
		err = errors.Join(err, end())
	}
	b.Took = time.Since(began).Seconds()
	if err != nil {
		b.Failure = fmt.Sprintf("seed %d, crash %d: %v", seed, b.Kills+b.Cuts, err)
	}
	return b
}

// round is load, crash, and the proof.
func (c *crasher) round(ctx context.Context, cut bool) error {
	began := time.Now()
	c.window.Add(1)
	c.work(ctx)
	wait := time.Duration(c.rng.Int64N(int64(1500 * time.Millisecond)))
	if wait > time.Second {
		if err := c.pause(ctx, wait/2); err != nil {
			return fmt.Errorf("the load fails before the crash: %w", err)
		}
		c.window.Add(1) // the other half comes to rest
		wait /= 2
	}
	if err := c.pause(ctx, wait); err != nil {
		return fmt.Errorf("the load fails before the crash: %w", err)
	}
	if err := c.asking.failed(); err != nil {
		return fmt.Errorf("a sync fails before the crash: %w", err)
	}
	told, err := c.crash(ctx, cut)
	if err == nil {
		err = c.recovered(ctx, told)
	}
	c.env.say("cut %t after %v: %d points told of, %v", cut, wait.Round(time.Millisecond), len(told), time.Since(began).Round(time.Millisecond))
	return err
}

// failed is the error that ended the asking by itself.
func (a *asking) failed() error {
	select {
	case <-a.done:
		return a.err
	default:
		return nil
	}
}

// ended stops the appliance cleanly after the last crash and judges points that nobody asked for.
func (c *crasher) ended(ctx context.Context) error {
	before := len(c.report.Failures())
	if err := c.checkAll(ctx, c.env.count(2*batch, 10)); err != nil {
		return err
	}
	if f := c.report.Failures(); len(f) > before {
		return errors.New(f[before])
	}
	return c.rig.Stop()
}

// versionOf is what the binary says it was built from.
func versionOf(ctx context.Context, binary string) (string, error) {
	out, err := output(ctx, binary, "version")
	line, _, _ := strings.Cut(out, "\n")
	return line, err
}

// total adds up what passed.
func total(all []Crashed) (sum Crashed) {
	for _, b := range all {
		if b.Failure != "" {
			continue
		}
		sum.Kills, sum.Cuts, sum.Points, sum.Lost, sum.Took = sum.Kills+b.Kills, sum.Cuts+b.Cuts, sum.Points+b.Points, sum.Lost+b.Lost, sum.Took+b.Took
		sum.Suspect, sum.Longest = max(sum.Suspect, b.Suspect), max(sum.Longest, b.Longest)
	}
	return sum
}
