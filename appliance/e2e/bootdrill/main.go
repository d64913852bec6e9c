// Bootdrill boots Debian guests whose disk lies in the mount of an appliance, from their own boot loader, and takes the host away
// under them: the guest works and is killed while it writes, the appliance with it, store and state are removed, and the newest
// point, exported as a fixed VHD from the target alone, must boot as a machine that lost its power does. The drill untar kills
// the appliance under such a guest instead, again and again, and the guest must not notice.
//
// A drill that passed is a line in a file and is not run again, so that an interrupted run goes on where it stopped. It exits
// with 1 if a drill failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

func main() { os.Exit(rig.Main("bootdrill", run)) }

// options are the flags.
type options struct {
	cache, dir, binary string
	azure              bool
	seed               uint64
	kills              int
	spoil              string
	match              *regexp.Regexp
	again              bool
}

func parse() (o options, err error) {
	flag.StringVar(&o.cache, "cache", ".cache", "where the guest's image is kept")
	flag.StringVar(&o.dir, "dir", filepath.Join(os.TempDir(), "vhdrelay-bootdrill"), "work and results; on a real disk, a few GB")
	flag.StringVar(&o.binary, "binary", "", "appliance to test; without it, it is built")
	only := flag.String("run", "^vhdx?$", "regular expression: only drills whose name matches; they are vhd, vhdx, untar")
	target := flag.String("target", "azurite", "azurite or dir")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of every random choice")
	flag.IntVar(&o.kills, "kills", 200, "how often drill untar kills the appliance")
	flag.StringVar(&o.spoil, "spoil", "", "prove that a drill can fail: older (export an older point), byte (change one in the database), alone (drill untar: nobody keeps the mount)")
	flag.BoolVar(&o.again, "again", false, "run what has passed too")
	flag.Parse()
	o.azure = *target == "azurite"
	o.match, err = regexp.Compile(*only)
	return o, err
}

func run(ctx context.Context) error {
	o, err := parse()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	if o.binary == "" {
		if o.binary, err = rig.Build(ctx, o.dir); err != nil {
			return err
		}
	}
	fmt.Printf("seed %d, work in %s\n", o.seed, o.dir)
	return runDrills(ctx, o, drills, runDrill)
}

// result is a line of the file of results.
type result struct {
	Drill    string         `json:"drill"`
	Azure    bool           `json:"azure"`
	Kills    int            `json:"kills"`
	Seed     uint64         `json:"seed"`
	Took     time.Duration  `json:"took"`
	Figures  []stage.Figure `json:"figures"`
	Failures []string       `json:"failures"`
}

// passed says whether an earlier run proves what this one asks for.
func passed(done []result, d drill, o options) bool {
	for _, r := range done {
		if r.Drill == d.name && r.Azure == o.azure && len(r.Failures) == 0 && (!d.handover || r.Kills >= o.kills) {
			return true
		}
	}
	return false
}

// runDrills runs what has not passed yet.
func runDrills(ctx context.Context, o options, drills []drill, run func(context.Context, options, drill) result) error {
	ledger := filepath.Join(o.dir, "drills.jsonl")
	done, err := stage.ReadLines[result](ledger)
	if err != nil {
		return err
	}
	var failed error
	for _, d := range drills {
		if !o.match.MatchString(d.name) || ctx.Err() != nil {
			continue
		}
		if !o.again && o.spoil == "" && passed(done, d, o) {
			fmt.Printf("\n== %s: passed before\n", d.name)
			continue
		}
		fmt.Printf("\n== %s: %s\n", d.name, d.about)
		r := run(ctx, o, d)
		if ctx.Err() != nil {
			return errors.New("interrupted; run it again to go on")
		}
		if len(r.Failures) > 0 {
			failed = errors.Join(failed, fmt.Errorf("drill %s failed, seed %d, the evidence is in %s", d.name, o.seed, filepath.Join(o.dir, d.name)))
		}
		if o.spoil == "" {
			failed = errors.Join(failed, stage.AddLine(ledger, r))
		}
	}
	return failed
}

func runDrill(ctx context.Context, o options, d drill) result {
	began := time.Now()
	report := stage.NewReport(os.Stdout)
	x := &exercise{options: o, drill: d, report: report, dir: filepath.Join(o.dir, d.name)}
	if err := x.run(ctx); err != nil {
		report.Fail("%v", err)
	}
	r := result{Drill: d.name, Azure: o.azure, Kills: o.kills, Seed: o.seed, Took: time.Since(began), Figures: report.Figures(), Failures: report.Failures()}
	for _, f := range r.Figures {
		fmt.Printf("%s: %s\n", f.Name, f.Value)
	}
	fmt.Printf("%s: %d failures, %v\n", d.name, len(r.Failures), r.Took.Round(time.Second))
	return r
}
