package rig

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Main is the main function of a program of this name, and returns what to exit with: it runs until it is done, or told to stop
// by a signal, and prints an error. Where the program was started as a Keeper it is that.
func Main(name string, run func(ctx context.Context) error) (code int) {
	if code, is := Keeper(); is {
		return code
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, name+":", err)
		return 1
	}
	return 0
}
