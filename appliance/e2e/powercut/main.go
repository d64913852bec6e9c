// Powercut pulls the plug of a booted Debian 12 that runs the appliance from its unit, under load, at random moments, and
// proves what the machine comes up with (stage.Plug). Every cut that was looked at is a line in a file, so that an
// interrupted run goes on where it stopped. It exits with 1 if a cut failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

func main() { os.Exit(rig.Main("powercut", run)) }

func run(ctx context.Context) error {
	cache := flag.String("cache", ".cache", "where the guest's image is kept")
	dir := flag.String("dir", filepath.Join(os.TempDir(), "vhdrelay-powercut"), "work and results; on a real disk, a few GB")
	cuts := flag.Int("n", 20, "power cuts, those of interrupted runs included")
	again := flag.Bool("again", false, "begin anew")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of every random choice")
	flag.Parse()
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	ledger := filepath.Join(*dir, "cuts.jsonl")
	if *again {
		if err := os.Remove(ledger); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	done, err := stage.ReadLines[stage.Pull](ledger)
	if err != nil {
		return err
	}
	fmt.Printf("seed %d, work in %s, %d of %d cuts done before\n", *seed, *dir, len(done), *cuts)
	if len(done) < *cuts {
		e := &stage.Env{Dir: *dir, Seed: *seed, Out: os.Stdout, Azure: true}
		if err := pull(ctx, e, *cache, ledger, len(done), *cuts-len(done)); err != nil {
			return err
		}
		if done, err = stage.ReadLines[stage.Pull](ledger); err != nil {
			return err
		}
	}
	return summary(os.Stdout, done)
}

// pull makes what the guest needs and cuts.
func pull(ctx context.Context, e *stage.Env, cache, ledger string, first, n int) error {
	image, err := guest.Cached(ctx, cache, e.Out)
	if err != nil {
		return err
	}
	module, err := guest.Module()
	if err != nil {
		return err
	}
	payload := filepath.Join(e.Dir, "payload.img")
	if err := guest.Payload(ctx, module, e.Dir, payload); err != nil {
		return err
	}
	e.Binary = filepath.Join(e.Dir, "payload", "tree", "usr", "local", "bin", "vhdrelay")
	report := stage.NewReport(e.Out)
	plug := stage.Plug{Image: image, Payload: payload, First: first, Cuts: n, Done: func(p stage.Pull) error { return stage.AddLine(ledger, p) }}
	if err := plug.Run(ctx, e, report); err != nil {
		return fmt.Errorf("%w (seed %d; run it again to go on)", err, e.Seed)
	}
	for _, f := range report.Figures() {
		fmt.Printf("%s: %s\n", f.Name, f.Value)
	}
	if failures := report.Failures(); len(failures) > 0 {
		return fmt.Errorf("%d failures, seed %d, the evidence is in %s", len(failures), e.Seed, e.Dir)
	}
	return nil
}

// summary prints what all cuts did; a failed one is an error.
func summary(w io.Writer, done []stage.Pull) error {
	var failed, sectors, blocks, writes int
	var suspect int64
	for _, p := range done {
		sectors, blocks, writes, suspect = sectors+p.Sectors, blocks+p.Blocks, writes+p.Writes, max(suspect, p.Suspect)
		if len(p.Failures) > 0 {
			failed++
			fmt.Fprintf(w, "cut %d, seed %d: %q\n", p.Cut, p.Seed, p.Failures)
		}
	}
	fmt.Fprintf(w, "%d power cuts, %d failed: %d writes answered, the disk lost %d sectors, the images %d blocks; most suspect %d MiB\n",
		len(done), failed, writes, sectors, blocks, suspect>>20)
	if failed > 0 {
		return fmt.Errorf("%d of %d cuts failed", failed, len(done))
	}
	return nil
}
