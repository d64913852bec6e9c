package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) statusCommand() *cobra.Command {
	var asJSON, check bool
	cmd := a.command(spec{
		use: "status [VM] [--json] [--check]", short: "Show how replication is doing", args: cobra.MaximumNArgs(1),
		long: "State, health and its reasons, each with what to do next; the age of the newest recovery point (RPO), what waits to\n" +
			"be sent and applied, progress of long work, and the disks. The worst VM comes first.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound,
			control.ExitWarning, control.ExitCritical},
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			s, err := daemon.Status(ctx, first(args))
			if err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(s)
			} else {
				err = printStatus(a.Stdout, s, a.Now())
			}
			if err == nil && check {
				err = verdict(s)
			}
			return err
		},
	})
	jsonFlag(cmd, &asJSON)
	cmd.Flags().BoolVar(&check, "check", false, "exit with 10 if the worst health is Warning, with 11 if it is Critical")
	return cmd
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// verdict is the exit code of --check. A health this version does not know is no good news.
func verdict(s control.Status) error {
	worst := control.ExitDone
	for _, vm := range s.VMs {
		worst = max(worst, healthExit(vm.Health))
	}
	if worst == control.ExitDone {
		return nil
	}
	return silent(worst)
}

func healthExit(h control.Health) control.Exit {
	switch h {
	case control.HealthNormal:
		return control.ExitDone
	case control.HealthWarning:
		return control.ExitWarning
	default:
		return control.ExitCritical
	}
}

func (a *app) syncCommand() *cobra.Command {
	var wait, asJSON bool
	cmd := a.command(spec{
		use: "sync VM [--wait] [--json]", short: "Seal a VM now and ship it", args: cobra.ExactArgs(1),
		long: "Ends the current epoch, whatever the interval, and tries at once what waits for a retry. Prints the epoch; with\n" +
			"--wait it returns when the epoch is a recovery point at the target, and prints that too.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused},
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			m := newMeter(a.Deps)
			res, err := daemon.Sync(ctx, args[0], wait, m.update)
			m.close()
			if err != nil {
				return err
			}
			if err := a.printSync(res, asJSON); err != nil {
				return err
			}
			return pointMissing(args[0], wait, res)
		},
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the epoch is a recovery point")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printSync(res control.SyncResult, asJSON bool) error {
	if asJSON {
		return a.printJSON(res)
	}
	if res.Point == "" {
		return a.print("epoch %d", res.Epoch)
	}
	return a.print("epoch %d\npoint %s", res.Epoch, res.Point)
}

// pointMissing makes an open epoch a failure of a command that was asked to wait for a point.
func pointMissing(vm string, wait bool, res control.SyncResult) error {
	if !wait || res.Point != "" {
		return nil
	}
	return &control.Error{Code: "no_point", Exit: control.ExitFailed,
		Message: "the epoch was shipped but is no recovery point",
		Action:  "vhdrelay status " + vm + " says why; the first epoch after that is cured is a point again"}
}

func (a *app) resyncCommand() *cobra.Command {
	var opts control.ResyncOptions
	var asJSON bool
	cmd := a.command(spec{
		use: "resync VM[/DISK] [--deep] [--now] | --cancel [--json]", short: "Compare disks with what the target holds", args: cobra.ExactArgs(1),
		long: "Reads the disks, compares every block with its checksum and ships what differs with the ordinary epochs. With --deep\n" +
			"the replica at the target is compared instead: the target computes checksums, and only what differs is read back; the\n" +
			"next recovery point repairs it. Tracking goes on meanwhile. Without --now it runs in the window of the configuration\n" +
			"(resync.window). A comparison that was interrupted goes on where it was. --cancel ends it; what was compared stays so.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused},
		run: func(ctx context.Context, args []string) error {
			vm, disk, err := splitDisk(args[0])
			if err != nil {
				return err
			}
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			m := newMeter(a.Deps)
			res, err := daemon.Resync(ctx, vm, disk, opts, m.update)
			m.close()
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(res)
			}
			return a.print("%s", resyncText(res))
		},
	})
	cmd.Flags().BoolVar(&opts.Now, "now", false, "start at once")
	cmd.Flags().BoolVar(&opts.Deep, "deep", false, "compare the replica at the target")
	cmd.Flags().BoolVar(&opts.Cancel, "cancel", false, "end the comparison that runs or waits")
	cmd.MarkFlagsMutuallyExclusive("cancel", "deep")
	cmd.MarkFlagsMutuallyExclusive("cancel", "now")
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) adoptCommand() *cobra.Command {
	var asJSON bool
	cmd := a.command(spec{
		use: "adopt VM [--json]", short: "Take over a VM that another machine replicated, or a seeded replica", args: cobra.ExactArgs(1),
		long: "Makes this host the one that replicates the VM: the other one is shut out for good. The disks are compared with the\n" +
			"replicas at the target, and nothing is sent that is there already; the recovery points stay. It also takes fixed VHDs\n" +
			"that another tool put at the place of the replicas. Shut the VM down on the other host first.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused},
		run: func(ctx context.Context, args []string) error {
			daemon, err := a.daemon()
			if err != nil {
				return err
			}
			m := newMeter(a.Deps)
			res, err := daemon.Adopt(ctx, args[0], m.update)
			m.close()
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(res)
			}
			return a.print("%s", resyncText(res))
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}
