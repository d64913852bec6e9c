package cli

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// moveExits are the exit codes of the commands that move a VM from one state to another.
var moveExits = []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused}

// moveCommand is a command that asks the appliance for a move and prints the state after it.
func (a *app) moveCommand(name, short, long string, ask func(context.Context, *control.Client, string) (control.Moved, error)) *cobra.Command {
	var asJSON bool
	cmd := a.command(spec{use: name + " VM [--json]", short: short, long: long, args: cobra.ExactArgs(1), exits: moveExits,
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			m, err := ask(ctx, daemon, args[0])
			if err != nil {
				return err
			}
			return a.printMoved(m, asJSON)
		}})
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printMoved(m control.Moved, asJSON bool) error {
	if asJSON {
		return a.printJSON(m)
	}
	return a.print("%s: %s", m.VM, m.State)
}

func (a *app) pauseCommand() *cobra.Command {
	return a.moveCommand("pause", "Stop sending a VM's changes",
		"Tracking and sealing go on, within the quota of the spool; nothing is shipped, applied or copied until\n"+
			"vhdrelay resume. It holds over restarts.",
		func(ctx context.Context, c *control.Client, vm string) (control.Moved, error) {
			return c.Pause(ctx, vm)
		})
}

func (a *app) resumeCommand() *cobra.Command {
	return a.moveCommand("resume", "Let a VM go on that is paused, or in error",
		"Ends a pause. Of a VM in state Error it tries again at once what an operator had to mend.",
		func(ctx context.Context, c *control.Client, vm string) (control.Moved, error) {
			return c.Resume(ctx, vm)
		})
}

func (a *app) protectCommand() *cobra.Command {
	return a.moveCommand("protect", "Take a VM back in that was unprotected",
		"Its images are tracked again, open ones too, and replicated anew. A replica that is still at the target is taken\n"+
			"over with a new generation; its older points stay.",
		func(ctx context.Context, c *control.Client, vm string) (control.Moved, error) {
			return c.Protect(ctx, vm)
		})
}

func (a *app) unprotectCommand() *cobra.Command {
	var opts control.UnprotectOptions
	var yes, asJSON bool
	cmd := a.command(spec{use: "unprotect VM [--delete-replica] [--yes] [--json]", short: "Stop protecting a VM", args: cobra.ExactArgs(1), exits: moveExits,
		long: "The VM's images are served as before and not tracked any more; what the state directory keeps of it is removed.\n" +
			"The replica and its points stay at the target, unless --delete-replica deletes them: the points first, then the\n" +
			"rest. It asks before it begins; a script says --yes. What was interrupted goes on by itself.",
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			if err := a.confirmed(ctx, daemon, args[0], opts, yes); err != nil {
				return err
			}
			m, err := daemon.Unprotect(ctx, args[0], opts)
			if err != nil {
				return err
			}
			return a.printMoved(m, asJSON)
		}})
	cmd.Flags().BoolVar(&opts.DeleteReplica, "delete-replica", false, "delete the recovery points and the replica at the target too")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	jsonFlag(cmd, &asJSON)
	return cmd
}

// confirmed says what an unprotect does and asks, unless yes was said.
func (a *app) confirmed(ctx context.Context, daemon *control.Client, vm string, opts control.UnprotectOptions, yes bool) error {
	if yes {
		return nil
	}
	s, err := daemon.Status(ctx, vm)
	if err != nil {
		return err
	}
	fmt.Fprintf(a.Stderr, "VM %s will not be protected any more; its images are served untracked.\n", vm)
	fmt.Fprintf(a.Stderr, "Removed here: its change log, checksum tables and %s of spooled changes.\n", bytesText(spooledOf(s)))
	if opts.DeleteReplica {
		fmt.Fprintln(a.Stderr, a.deleted(ctx, daemon, vm))
	} else {
		fmt.Fprintln(a.Stderr, "The replica and its recovery points stay at the target.")
	}
	if !a.Interactive {
		return usagef("unprotect asks, and there is no terminal to ask on: say --yes if you mean it")
	}
	fmt.Fprintf(a.Stderr, "To go on, type the name of the VM: ")
	answer, _ := bufio.NewReader(a.Stdin).ReadString('\n') // an early end is no consent
	if strings.TrimSpace(answer) != vm {
		return &control.Error{Code: "not_confirmed", Exit: control.ExitFailed, Message: "nothing was changed: the answer was not " + vm}
	}
	return nil
}

func spooledOf(s control.Status) (bytes int64) {
	for _, vm := range s.VMs {
		bytes += vm.SpooledBytes
	}
	return bytes
}

// deleted says what --delete-replica deletes, as far as the target can be asked.
func (a *app) deleted(ctx context.Context, daemon *control.Client, vm string) string {
	p, err := daemon.Points(ctx, vm)
	if err != nil {
		return fmt.Sprintf("DELETED at the target: every recovery point and replica of %s (they cannot be counted: %v).", vm, err)
	}
	if len(p.Points) == 0 {
		return fmt.Sprintf("DELETED at the target: the replica of %s; it has no recovery point.", vm)
	}
	oldest, newest := p.Points[0], p.Points[len(p.Points)-1]
	return fmt.Sprintf("DELETED at the target, for good: %d recovery points of %s, from %s to %s, and the replica of %d disks.",
		len(p.Points), vm, oldest.Time.UTC().Format(timeForm), newest.Time.UTC().Format(timeForm), len(newest.Disks))
}
