// Command vhdrelay is the appliance and its operator's tool. Everything is in the packages it wires together.
package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance"
	"github.com/vhdrelay/vhdrelay/appliance/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The second signal kills, as it does every program.
	context.AfterFunc(ctx, stop)
	exit := cli.Run(ctx, cli.Deps{
		Version: appliance.Version, Stdout: os.Stdout, Stderr: os.Stderr, Now: time.Now,
		Terminal: isTerminal(os.Stderr), Stdin: os.Stdin, Interactive: isTerminal(os.Stdin),
		Serve: func(ctx context.Context, path string, log *slog.Logger) error {
			return appliance.ServeFile(ctx, path, appliance.Options{Log: log})
		},
		Points: appliance.Points, Export: appliance.Export, Verify: appliance.Verify, Preflight: appliance.Preflight,
		JournalCheck: appliance.JournalCheck, JournalDump: appliance.JournalDump,
		ImageInfo: appliance.ImageInfo, ClearMounts: appliance.ClearMounts,
	}, os.Args[1:])
	stop()
	os.Exit(int(exit))
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
