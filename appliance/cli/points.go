package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func (a *app) pointsCommand() *cobra.Command {
	var asJSON bool
	var url string
	cmd := a.command(spec{
		use: "points VM [--json] [--target URL]", short: "List the recovery points of a VM", args: cobra.ExactArgs(1),
		long: "Asks the appliance if one runs here and knows the VM, else the target itself: this works on any machine with a\n" +
			"credential. Of the configuration it needs only target.",
		exits: []control.Exit{control.ExitConfig, control.ExitNotFound},
		run: func(ctx context.Context, args []string) error {
			p, err := a.points(ctx, args[0], url)
			if err != nil {
				return err
			}
			if asJSON {
				return a.printJSON(p.Normal())
			}
			return printPoints(a.Stdout, p)
		},
	})
	jsonFlag(cmd, &asJSON)
	targetFlag(cmd, &url)
	return cmd
}

// points asks the appliance first, because it knows without a request to the target. Whatever keeps it from answering, the
// target is the truth.
func (a *app) points(ctx context.Context, vm, url string) (control.Points, error) {
	if url == "" {
		if c, err := config.Load(a.configPath); err == nil {
			p, err := control.NewClient(c.ControlSocket).Points(ctx, vm)
			if err == nil || ctx.Err() != nil {
				return p, err
			}
		}
	}
	t, err := a.target(url)
	if err != nil {
		return control.Points{}, err
	}
	return a.Points(ctx, t, vm)
}

func printPoints(w io.Writer, p control.Points) error {
	var b bytes.Buffer
	if len(p.Points) == 0 {
		fmt.Fprintf(&b, "%s has no recovery point\n", p.VM)
	} else {
		t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "POINT\tTIME\tCONSISTENCY\tSNAPSHOT\tCHANGED\tSTORED\tDISKS")
		for _, point := range p.Points {
			var changed, stored int64
			for _, d := range point.Disks {
				changed, stored = changed+d.ChangedBytes, stored+d.StoredBytes
			}
			snapshot := "-"
			if point.Snapshot {
				snapshot = "yes"
			}
			consistency := string(point.Consistency)
			if point.Doubted {
				consistency += ", replica in doubt"
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", point.ID, point.Time.UTC().Format(timeForm), consistency,
				snapshot, bytesText(changed), bytesText(stored), len(point.Disks))
		}
		// A tabwriter over a bytes.Buffer cannot fail.
		_ = t.Flush()
	}
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("writing the points: %w", err)
	}
	return nil
}

func (a *app) exportCommand() *cobra.Command {
	var point, url string
	var asJSON, background bool
	var req ExportRequest
	cmd := a.command(spec{
		use:   "export VM[/DISK] --point latest|ID|TIME --output FILE|DIR [--format vhd|raw|vhdx] [--force] [--target URL] [--background] [--json]",
		short: "Bring a VM or a disk back from the target as files", args: cobra.ExactArgs(1),
		long: "Writes the disks as they were at a recovery point: one disk into a file, a whole VM into a directory. TIME means the\n" +
			"newest point at or before it. Needs no appliance and no local state, of the configuration only target; without a\n" +
			"configuration --target says where, and the AZURE_* environment how. An interrupted export goes on where it stopped\n" +
			"when it is started again; a file gets its name when it is complete. With --background the appliance does it, as a\n" +
			"job that goes on after a restart.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused, control.ExitDiffers},
		run: func(ctx context.Context, args []string) error {
			var err error
			if req.VM, req.Disk, err = splitDisk(args[0]); err != nil {
				return err
			}
			if err := checkExport(&req); err != nil {
				return err
			}
			if req.Point, err = ParsePoint(point); err != nil {
				return err
			}
			if background {
				return a.exportInBackground(ctx, req, point, asJSON)
			}
			t, err := a.target(url)
			if err != nil {
				return err
			}
			m := newMeter(a.Deps)
			res, err := a.Export(ctx, t, req, m.update)
			m.close()
			if err != nil {
				return err
			}
			return a.printExport(res, asJSON)
		},
	})
	cmd.Flags().StringVar(&point, "point", "latest", "recovery point: latest, an id, or a time")
	cmd.Flags().StringVar(&req.Output, "output", "", "file to write, or directory for a whole VM")
	cmd.Flags().StringVar(&req.Format, "format", "", "vhd or raw; without it vhd, or raw if the file's name ends in .raw or .img")
	cmd.Flags().BoolVar(&req.Force, "force", false, "overwrite files that exist")
	targetFlag(cmd, &url)
	backgroundFlag(cmd, &background)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func backgroundFlag(cmd *cobra.Command, dst *bool) {
	cmd.Flags().BoolVar(dst, "background", false, "have the appliance do it, with its own target, and print the job")
	cmd.MarkFlagsMutuallyExclusive("background", "target")
}

func (a *app) exportInBackground(ctx context.Context, req ExportRequest, point string, asJSON bool) error {
	output, err := filepath.Abs(req.Output)
	if err != nil {
		return fmt.Errorf("finding the output: %w", err)
	}
	return a.background(ctx, control.JobRequest{Kind: control.JobExport, VM: req.VM, Disk: req.Disk, Point: point, Output: output,
		Format: req.Format, Force: req.Force}, asJSON)
}

// checkExport fills in the format. What the output is called says what is wanted, unless --format does: a fixed VHD in a
// file called .raw would be found out much later.
func checkExport(req *ExportRequest) error {
	if req.Output == "" {
		return usagef("--output is missing: a file, or a directory for a whole VM")
	}
	switch req.Format {
	case FormatVHD, FormatRaw, FormatVHDX:
		return nil
	case "":
		req.Format = FormatVHD
		switch ext := strings.ToLower(filepath.Ext(req.Output)); {
		case req.Disk == "":
		case ext == ".raw" || ext == ".img":
			req.Format = FormatRaw
		case ext == ".vhdx" || ext == ".avhdx":
			req.Format = FormatVHDX
		}
		return nil
	default:
		return usagef("--format %q is neither vhd, raw nor vhdx", req.Format)
	}
}

// warnMissing says what a point lacks, where nobody takes it for output.
func (a *app) warnMissing(point string, disks []string) {
	for _, d := range disks {
		fmt.Fprintf(a.Stderr, "warning: point %s does not hold disk %s, which was in initial replication then\n", point, d)
	}
}

func (a *app) printExport(res ExportResult, asJSON bool) error {
	if asJSON {
		return a.printJSON(res)
	}
	a.warnMissing(res.Point, res.Missing)
	for _, f := range res.Files {
		if err := a.print("%s  %s, %s", f.Path, f.Format, bytesText(f.Size)); err != nil {
			return err
		}
	}
	return a.print("%s as of %s (point %s)", res.VM, res.Time.UTC().Format(timeForm), res.Point)
}

func (a *app) verifyCommand() *cobra.Command {
	var point, url string
	var asJSON, background bool
	cmd := a.command(spec{
		use:   "verify VM[/DISK] [--point latest|ID|TIME] [--target URL] [--background] [--json]",
		short: "Prove a recovery point", args: cobra.ExactArgs(1),
		long: "Reads the disks of a point from the target, every byte, and compares their CRC-64 with the ones in the point's record.\n" +
			"Needs no appliance and no local state, of the configuration only target. With --background the appliance does it, as\n" +
			"a job that begins again after a restart.",
		exits: []control.Exit{control.ExitConfig, control.ExitUnreachable, control.ExitNotFound, control.ExitRefused, control.ExitDiffers},
		run: func(ctx context.Context, args []string) error {
			var req VerifyRequest
			var err error
			if req.VM, req.Disk, err = splitDisk(args[0]); err != nil {
				return err
			}
			if req.Point, err = ParsePoint(point); err != nil {
				return err
			}
			if background {
				return a.background(ctx, control.JobRequest{Kind: control.JobVerify, VM: req.VM, Disk: req.Disk, Point: point}, asJSON)
			}
			t, err := a.target(url)
			if err != nil {
				return err
			}
			m := newMeter(a.Deps)
			res, err := a.Verify(ctx, t, req, m.update)
			m.close()
			// What was found is worth printing when it differs, most of all.
			if err != nil && !errors.Is(err, &control.Error{Code: control.CodeDiffers}) {
				return err
			}
			return errors.Join(a.printVerify(res, asJSON), err)
		},
	})
	cmd.Flags().StringVar(&point, "point", "latest", "recovery point: latest, an id, or a time")
	targetFlag(cmd, &url)
	backgroundFlag(cmd, &background)
	jsonFlag(cmd, &asJSON)
	return cmd
}

func (a *app) printVerify(res VerifyResult, asJSON bool) error {
	if asJSON {
		return a.printJSON(res)
	}
	a.warnMissing(res.Point, res.Missing)
	for _, d := range res.Disks {
		text := "ok, CRC-64 " + d.Found
		switch {
		case d.Problem != "":
			text = "DIFFERS: " + d.Problem
		case !d.Match:
			text = fmt.Sprintf("DIFFERS, CRC-64 %s, the record says %s", d.Found, d.Recorded)
		}
		if err := a.print("%s  %s  %s", d.Disk, bytesText(d.Size), text); err != nil {
			return err
		}
	}
	return a.print("%s as of %s (point %s)", res.VM, res.Time.UTC().Format(timeForm), res.Point)
}
