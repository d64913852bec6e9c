// Mortal is the appliance as the tests of crashes run it: `mortal CONFIG` serves as `vhdrelay serve` does, and ends where its
// harness wants it to (package failpoint). MORTAL_REGIONS is the cap of its activity log, to be reached by small disks.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/vhdrelay/vhdrelay/appliance"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
)

// The file descriptors that a harness hands over.
const (
	orders = 3
	events = 4
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "mortal:", err)
		os.Exit(1)
	}
}

func serve() error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conf, err := config.Load(os.Args[1])
	if err != nil {
		return err
	}
	child := failpoint.NewChild(os.NewFile(events, "events"))
	if err := child.Obey(os.NewFile(orders, "orders")); err != nil {
		return err
	}
	regions, _ := strconv.Atoi(os.Getenv("MORTAL_REGIONS")) // "": the product's
	return appliance.Serve(ctx, conf, appliance.Options{
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Hook: child.Hook, ActivityRegions: regions,
	})
}
