package cli

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) unmountCommand() *cobra.Command {
	var u unmounting
	cmd := a.command(spec{
		use: "unmount [STORE] [--force] [--release] [--json]", short: "Take the mount of a store away", args: cobra.MaximumNArgs(1),
		long: "Without STORE, of all stores. It is refused while files are open there, and says who has them; with --force they see\n" +
			"I/O errors. What changed is still shipped. The store is served again after a restart of the appliance; until then its\n" +
			"mount point is closed, so that no virtual machine starts beside it.\n\n" +
			"Without an appliance it clears away what a crashed one left mounted. --release gives the mount point back to other uses:\n" +
			"not immutable any more, and with the mode it had.",
		exits: []control.Exit{control.ExitConfig, control.ExitNotFound, control.ExitRefused},
		run: func(ctx context.Context, args []string) error {
			if len(args) > 0 {
				u.store = args[0]
			}
			gone, err := a.unmount(ctx, u)
			switch {
			case err != nil:
				return err
			case u.asJSON:
				return a.printJSON(gone)
			case len(gone.Stores) == 0:
				return a.print("nothing was mounted")
			}
			return a.print("unmounted: %s", strings.Join(gone.Stores, ", "))
		},
	})
	cmd.Flags().BoolVar(&u.force, "force", false, "also while files are open: they see I/O errors")
	cmd.Flags().BoolVar(&u.release, "release", false, "make the mount point an ordinary directory again")
	jsonFlag(cmd, &u.asJSON)
	return cmd
}

// unmounting is the command line of unmount.
type unmounting struct {
	store                  string // "" for all
	force, release, asJSON bool
}

// unmount asks the appliance, and does what is left without it.
func (a *app) unmount(ctx context.Context, u unmounting) (control.Unmounted, error) {
	c, err := a.config()
	if err != nil {
		return control.Unmounted{}, err
	}
	gone, err := control.NewClient(c.ControlSocket).Unmount(ctx, u.store, u.force)
	alone := errors.Is(err, &control.Error{Code: control.CodeUnreachable})
	if err != nil && !alone || err == nil && !u.release {
		return gone, err
	}
	cleared, err := a.ClearMounts(c, u.store, u.release)
	if alone {
		return cleared, err
	}
	return gone, err
}
