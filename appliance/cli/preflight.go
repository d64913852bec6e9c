package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) preflightCommand() *cobra.Command {
	var asJSON bool
	cmd := a.command(spec{
		use: "preflight [VM] [--json]", short: "Check every prerequisite before a byte moves", args: cobra.MaximumNArgs(1),
		long: "Host, kernel, permissions, clock, the stores, the state disk, the target with every right tried on a scratch blob that\n" +
			"is removed again, and each disk with its limits; how much has to be moved and how long that takes at the measured\n" +
			"rate. Each check passes, warns or fails, with what to do next. Runs beside an appliance and without one. Exits with 1\n" +
			"if a check fails.",
		exits: []control.Exit{control.ExitConfig, control.ExitNotFound},
		run: func(ctx context.Context, args []string) error {
			m := newMeter(a.Deps)
			p, err := a.preflight(ctx, first(args), m.update)
			m.close()
			if err != nil {
				return err
			}
			if asJSON {
				err = a.printJSON(p)
			} else {
				err = printPreflight(a.Stdout, p)
			}
			if err == nil && p.Worst() == control.CheckFail {
				err = silent(control.ExitFailed)
			}
			return err
		},
	})
	jsonFlag(cmd, &asJSON)
	return cmd
}

// preflight asks the appliance, which knows what the target has already, or looks itself if none answers.
func (a *app) preflight(ctx context.Context, vm string, progress func(control.Progress)) (control.Preflight, error) {
	c, err := a.config()
	if err != nil {
		return control.Preflight{}, err
	}
	p, err := control.NewClient(c.ControlSocket).Preflight(ctx, vm, progress)
	if errors.Is(err, &control.Error{Code: control.CodeUnreachable}) {
		p, err = a.Preflight(ctx, c, vm, progress)
		p = p.Normal()
	}
	return p, err
}

func printPreflight(w io.Writer, p control.Preflight) error {
	var b bytes.Buffer
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	count := map[control.CheckResult]int{}
	for _, c := range p.Checks {
		count[c.Result]++
		about := c.Code
		if c.VM != "" {
			about = strings.TrimSuffix(c.VM+"/"+c.Disk, "/")
		}
		fmt.Fprintf(t, "%s\t%s\t%s\n", strings.ToUpper(string(c.Result)), about, c.Message)
		if c.Action != "" && c.Result != control.CheckPass {
			fmt.Fprintf(t, "\t\tnext: %s\n", c.Action)
		}
	}
	for _, m := range p.Moves {
		fmt.Fprintf(t, "MOVE\t%s\t%s\n", m.VM, moveText(m))
	}
	// A tabwriter over a bytes.Buffer cannot fail.
	_ = t.Flush()
	fmt.Fprintf(&b, "%d passed, %d warnings, %d failed\n", count[control.CheckPass], count[control.CheckWarn], count[control.CheckFail])
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("writing the checks: %w", err)
	}
	return nil
}

func moveText(m control.Move) string {
	text := fmt.Sprintf("%s of %s to send", bytesText(m.Bytes), bytesText(m.VirtualBytes))
	if m.Seconds != nil {
		text += fmt.Sprintf(", %s at %s/s", age(time.Duration(*m.Seconds*float64(time.Second))), bytesText(m.RateBytesPerSecond))
	}
	return text
}
