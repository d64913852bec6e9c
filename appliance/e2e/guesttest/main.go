// Guesttest installs the appliance in a booted Debian 12, lets systemd run it from its unit, and looks at what an
// administrator relies on: the mount is seen by the processes of virtual machines, start, stop, reload, restart, watchdog,
// order, the journal's lines; then, in another machine, what guests see of restarts, kills and an upgrade (stage.Service).
// The target is an Azurite on this machine. It exits with 1 if a check failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

func main() { os.Exit(rig.Main("guesttest", run)) }

// options are the flags that say what is done.
type options struct {
	kernel          string
	restarts, kills int
	steps           bool
	seed            uint64
}

func run(ctx context.Context) error {
	cache := flag.String("cache", ".cache", "where the guest's image is kept")
	dir := flag.String("dir", "", "work; kept if given, else temporary and removed after success")
	var o options
	flag.StringVar(&o.kernel, "kernel", "stock", "the guest's: stock (6.1) or backports (6.9 and later)")
	flag.IntVar(&o.restarts, "restarts", 20, "of the unit, under load")
	flag.IntVar(&o.kills, "kills", 6, "SIGKILLs of its main process, between the restarts")
	flag.BoolVar(&o.steps, "steps", true, "false: restarts and kills only")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of the moments of restarts and kills")
	flag.Parse()
	began := time.Now()
	work := *dir
	if work == "" {
		var err error
		if work, err = os.MkdirTemp("", "vhdrelay-guest-"); err != nil {
			return err
		}
	}
	fmt.Printf("work in %s, %s kernel, seed %d\n", work, o.kernel, o.seed)
	t := &test{dir: work, results: map[string]error{}}
	if err := t.prepare(ctx, *cache, o.kernel); err != nil {
		return err
	}
	failed, err := t.all(ctx, o)
	if err != nil {
		return err
	}
	fmt.Printf("%d checks, %d failed, %v\n", len(t.results), failed, time.Since(began).Round(time.Second))
	if failed > 0 {
		return fmt.Errorf("%d checks failed; the logs are in %s", failed, filepath.Clean(work))
	}
	if *dir == "" {
		return os.RemoveAll(work)
	}
	return nil
}
