// Guesttest installs the appliance in a booted Debian 12, lets systemd run it from its unit, and looks at what an
// administrator relies on: the mount is seen by the processes of virtual machines, start, stop, reload, restart, watchdog,
// order, the journal's lines. The target is an Azurite on this machine. It exits with 1 if a check failed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guesttest:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	cache := flag.String("cache", ".cache", "where the guest's image is kept")
	dir := flag.String("dir", "", "work; kept if given, else temporary and removed after success")
	flag.Parse()
	began := time.Now()
	work := *dir
	if work == "" {
		var err error
		if work, err = os.MkdirTemp("", "vhdrelay-guest-"); err != nil {
			return err
		}
	}
	fmt.Println("work in", work)
	t, err := setup(ctx, *cache, work)
	if err != nil {
		return err
	}
	failed := t.play(ctx)
	if err := t.close(); err != nil {
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
