package cli

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) imageCommand() *cobra.Command {
	var asJSON bool
	info := a.command(spec{
		use: "info FILE [--json]", short: "Show what a disk image is", args: cobra.ExactArgs(1),
		long: "Reads the headers and the block table, strictly: an image that is damaged is refused with the field, its place, and what\n" +
			"was expected there. Of a differencing image the parent is shown as the image names it; it is not looked for.",
		exits: []control.Exit{control.ExitNotFound},
		run: func(_ context.Context, args []string) error {
			info, err := a.ImageInfo(args[0])
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(info)
			}
			return a.printImage(info)
		},
	})
	jsonFlag(info, &asJSON)
	return group("image", "Look at disk images", info)
}

func (a *app) printImage(i ImageInfo) error {
	err := a.print("%s\n  format        %s\n  file size     %d (%s)\n  virtual size  %d (%s)", i.File, i.Format,
		i.FileSize, bytesText(i.FileSize), i.VirtualSize, bytesText(i.VirtualSize))
	err = errors.Join(err, a.print("  allocated     %d (%s)", i.Allocated, bytesText(i.Allocated)))
	if i.BlockSize != 0 {
		err = errors.Join(err, a.print("  block size    %d (%s)", i.BlockSize, bytesText(i.BlockSize)))
	}
	if i.ID != "" {
		err = errors.Join(err, a.print("  id            %s", i.ID))
	}
	if i.Parent != nil {
		err = errors.Join(err, a.print("  parent        %s", i.Parent.ID))
		for _, l := range i.Parent.Locators {
			err = errors.Join(err, a.print("                %s (%s)", l.Path, l.Kind))
		}
	}
	for _, n := range i.Notes {
		err = errors.Join(err, a.print("  note          %s", n))
	}
	return err
}

func (a *app) journalCommand() *cobra.Command {
	exits := []control.Exit{control.ExitConfig}
	check := a.command(spec{
		use: "check", short: "Prove the journal's invariants", args: cobra.NoArgs, exits: append(exits, control.ExitDiffers),
		long: "Holds all of the state directory against each other: the journal's records, the spools' manifests against their segments,\n" +
			"which are read, and the checksum tables against the spools. Asks the appliance if one runs, else reads the files itself,\n" +
			"and changes nothing. Every file that is not as it must be is named, with what is wrong and what to do.",
		run: func(ctx context.Context, _ []string) error {
			err := a.journal(ctx, control.Backend.JournalCheck, a.JournalCheck)
			if err != nil {
				return err
			}
			return a.print("the journal is consistent")
		},
	})
	dump := a.command(spec{
		use: "dump", short: "Print the journal", args: cobra.NoArgs, exits: exits,
		long: "Asks the appliance if one runs, else opens the journal itself. The text is for people and changes from release to release.",
		run: func(ctx context.Context, _ []string) error {
			return a.journal(ctx,
				func(b control.Backend, ctx context.Context) error { return b.JournalDump(ctx, a.Stdout) },
				func(ctx context.Context, c *config.Config) error { return a.JournalDump(ctx, c, io.Writer(a.Stdout)) })
		},
	})
	return group("journal", "Look at the journal", check, dump)
}

// journal asks the appliance, which has the journal open, or opens it if none answers.
func (a *app) journal(ctx context.Context, ask func(control.Backend, context.Context) error,
	open func(context.Context, *config.Config) error) error {
	c, err := a.config()
	if err != nil {
		return err
	}
	err = ask(control.NewClient(c.ControlSocket), ctx)
	if !errors.Is(err, &control.Error{Code: control.CodeUnreachable}) {
		return err
	}
	if err := open(ctx, c); err != nil {
		return fmt.Errorf("opening the journal without an appliance: %w", err)
	}
	return nil
}
