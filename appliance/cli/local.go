package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) imageCommand() *cobra.Command {
	var asJSON bool
	info := a.command(spec{
		use: "info FILE [--json]", short: "Show what a disk image is", args: cobra.ExactArgs(1),
		long: "Reads the headers and the block table, strictly: an image that is damaged is refused with the field, its place, and what\n" +
			"was expected there. Of a differencing image the chain is shown: the parents are looked for as it names them, inside the\n" +
			"store that holds it, or its own directory if the configuration has none; and if a link is missing, which and where.",
		exits: []control.Exit{control.ExitNotFound},
		run: func(_ context.Context, args []string) error {
			c, err := a.config()
			if err != nil {
				c = nil // it only says where stores are
			}
			info, err := a.ImageInfo(c, args[0])
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
	for k, l := range i.Chain {
		name := "chain"
		if k > 0 {
			name = "  over"
		}
		err = errors.Join(err, a.print("  %-12s  %s, %s, %s, %s of %s", name, l.File, l.Format, l.ID, bytesText(l.Allocated), bytesText(l.VirtualSize)))
	}
	if i.ChainError != "" {
		err = errors.Join(err, a.print("  broken        %s", i.ChainError))
	}
	for _, n := range i.Notes {
		err = errors.Join(err, a.print("  note          %s", n))
	}
	return err
}

func (a *app) journalCommand() *cobra.Command {
	exits := []control.Exit{control.ExitConfig}
	var checkJSON bool
	var form control.DumpOptions
	check := a.command(spec{
		use: "check [--json]", short: "Prove the journal's invariants", args: cobra.NoArgs, exits: append(exits, control.ExitDiffers),
		long: "Holds all of the state directory against each other: the journal's records, the spools' manifests against their segments,\n" +
			"which are read, and the checksum tables against the spools. Asks the appliance if one runs, else reads the files itself,\n" +
			"and changes nothing. Every file that is not as it must be is named, with what is wrong and what to do.",
		run: func(ctx context.Context, _ []string) error {
			err := a.journal(ctx, control.Backend.JournalCheck, a.JournalCheck)
			if checkJSON {
				return a.printChecked(err)
			}
			if err != nil {
				return err
			}
			return a.print("the journal is consistent")
		},
	})
	jsonFlag(check, &checkJSON)
	dump := a.command(spec{
		use: "dump [--json]", short: "Print the journal", args: cobra.NoArgs, exits: exits,
		long: "Asks the appliance if one runs, else opens the journal itself. The text is for people and changes from release to release.",
		run: func(ctx context.Context, _ []string) error {
			return a.journal(ctx,
				func(b control.Backend, ctx context.Context) error { return b.JournalDump(ctx, a.Stdout, form) },
				func(ctx context.Context, c *config.Config) error { return a.JournalDump(ctx, c, a.Stdout, form) })
		},
	})
	jsonFlag(dump, &form.JSON)
	return group("journal", "Look at the journal", check, dump)
}

// checked is what journal check --json prints.
type checked struct {
	Consistent bool `json:"consistent"`
	// Findings are what is not as it must be, one a file.
	Findings []string `json:"findings"`
	Action   string   `json:"action,omitempty"`
}

// printChecked prints what a check found; one that could not be done stays an error.
func (a *app) printChecked(err error) error {
	var found *control.Error
	switch {
	case err == nil:
		return a.printJSON(checked{Consistent: true, Findings: []string{}})
	case errors.As(err, &found) && found.Exit == control.ExitDiffers:
		if err := a.printJSON(checked{Findings: strings.Split(found.Message, "\n"), Action: found.Action}); err != nil {
			return err
		}
		return silent(found.Exit)
	}
	return err
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
