// Torture plays random histories of the data path (package sim) one after the other on all processors, for as long as it is
// told to. The seeds that passed are remembered for the commit, so that an interrupted run goes on where it stopped. It
// exits with 1 if a history went wrong; the seeds, the steps that it took and the replay command are printed.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// batch is how many seeds one child plays: enough that its start does not count.
const batch = 10

func main() {
	os.Exit(rig.Main("torture", func(ctx context.Context) error { return run(ctx, os.Stdout) }))
}

func run(ctx context.Context, out io.Writer) error {
	dir := flag.String("dir", filepath.Join(os.TempDir(), "vhdrelay-torture"), "work and what has passed")
	seed := flag.Uint64("seed", 1, "first seed")
	duration := flag.Duration("duration", 10*time.Minute, "no history begins later")
	workers := flag.Int("workers", runtime.NumCPU(), "histories at a time")
	flag.Parse()
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	binary := filepath.Join(*dir, "sim.test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", binary, "./appliance/e2e/sim")
	build.Stdout, build.Stderr = out, os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the simulation: %w", err)
	}
	l, err := openLedger(filepath.Join(*dir, commit(ctx)+".passed"))
	if err != nil {
		return err
	}
	t := &torture{binary: binary, out: out, ledger: l, next: *seed, until: time.Now().Add(*duration)}
	return errors.Join(t.run(ctx, *workers), l.close())
}

// commit names what is tested. Changes that are not committed are of no commit, and start anew.
func commit(ctx context.Context) string {
	name, err := exec.CommandContext(ctx, "git", "describe", "--always", "--abbrev=40", "--dirty").Output()
	id := strings.TrimSpace(string(name))
	if err != nil || strings.HasSuffix(id, "-dirty") || id == "" {
		return fmt.Sprintf("uncommitted-%d", time.Now().Unix())
	}
	return id
}

// torture is one run.
type torture struct {
	binary string
	out    io.Writer
	ledger *ledger
	until  time.Time

	next uint64 // first seed of the next batch; only the handing-out loop has it
}

func (t *torture) run(ctx context.Context, workers int) error {
	began, before := time.Now(), t.ledger.count()
	seeds := make(chan uint64)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(seeds)
		for ; time.Now().Before(t.until); t.next += batch {
			select {
			case seeds <- t.next:
			case <-ctx.Done():
				return nil
			}
		}
		return nil
	})
	for range workers {
		g.Go(func() error {
			for first := range seeds {
				t.play(ctx, first)
			}
			return nil
		})
	}
	err := g.Wait()
	n, took := t.ledger.count()-before, time.Since(began)
	fmt.Fprintf(t.out, "%d histories passed in %v, %.0f an hour; %d of this commit in all\n", n, took.Round(time.Second), float64(n)/took.Hours(), t.ledger.count())
	if wrong := t.ledger.wrong(); len(wrong) > 0 {
		return errors.Join(err, fmt.Errorf("%d histories went wrong: seeds %v", len(wrong), wrong))
	}
	return err
}

// play plays the seeds of one batch that have not passed yet. A history that ends its process ends its batch; the next run
// begins after it.
func (t *torture) play(ctx context.Context, first uint64) {
	for seed := first; seed < first+batch && ctx.Err() == nil; {
		if t.ledger.has(seed) {
			seed++
			continue
		}
		seed = t.child(ctx, seed, first+batch)
	}
}

// child plays the seeds in [seed, end) in one process, and returns where to go on.
func (t *torture) child(ctx context.Context, seed, end uint64) uint64 {
	cmd := exec.CommandContext(ctx, t.binary, "-test.run", "TestHistories", "-test.v", "-test.timeout", "2h",
		"-sim.seed", fmt.Sprint(seed), "-sim.count", fmt.Sprint(end-seed))
	pipe, err := cmd.StdoutPipe()
	if err == nil {
		cmd.Stderr = cmd.Stdout
		err = cmd.Start()
	}
	if err != nil {
		t.ledger.fail(seed)
		fmt.Fprintf(t.out, "seed %d: %v\n", seed, err)
		return end
	}
	var text strings.Builder
	bad := false
	for lines := bufio.NewScanner(pipe); lines.Scan(); {
		line := lines.Text()
		fmt.Fprintln(&text, line)
		id, verdict, ok := parse(line)
		switch {
		case !ok:
		case verdict == "ok":
			t.ledger.pass(id)
			seed = id + 1
		default:
			t.ledger.fail(id)
			seed, bad = id+1, true
		}
	}
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		if !bad { // it died in the middle of a history
			t.ledger.fail(seed)
			seed++
		}
		fmt.Fprintln(t.out, text.String())
	}
	return seed
}

// parse reads the line that the simulation prints of each history.
func parse(line string) (seed uint64, verdict string, ok bool) {
	n, err := fmt.Sscanf(line, "seed %d: %s", &seed, &verdict)
	return seed, verdict, err == nil && n == 2
}
