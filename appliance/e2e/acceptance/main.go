// Acceptance runs the long tests of the appliance (package stage), one after the other, unattended. A stage that has
// passed leaves a file and is not run again, so that an interrupted run goes on where it stopped. It exits with 1 if a
// stage failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

func main() { os.Exit(rig.Main("acceptance", run)) }

func run(ctx context.Context) error {
	dir := flag.String("dir", filepath.Join(os.TempDir(), "vhdrelay-acceptance"), "work and results; on a real disk, a few GB")
	only := flag.String("run", "", "regular expression: only stages whose name matches")
	short := flag.Bool("short", false, "about a tenth of the time")
	again := flag.Bool("again", false, "run what has passed too")
	target := flag.String("target", "azurite", "azurite or dir")
	binary := flag.String("binary", "", "appliance to test; without it, it is built")
	at := flag.String("at", "", "regular expression: only failpoints whose name matches")
	seed := flag.Uint64("seed", uint64(time.Now().UnixNano()), "of every random choice")
	ends := flag.Int("ends", 0, "how often stage handover ends the process that serves; 0: 200, or 20 with -short")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(*dir, 0o700); err != nil {
		return err
	}
	e := &stage.Env{Dir: *dir, Binary: *binary, Short: *short, Seed: *seed, Ends: *ends, Out: os.Stdout, Azure: *target == "azurite"}
	if *at != "" {
		if e.At, err = regexp.Compile(*at); err != nil {
			return err
		}
	}
	if e.Binary == "" {
		if e.Binary, err = rig.Build(ctx, *dir); err != nil {
			return err
		}
	}
	fmt.Printf("seed %d, work in %s\n", *seed, *dir)
	return runStages(ctx, e, match, *again)
}
