package appliance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/badgerkv"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// This file is what works without the appliance: on any machine with the binary
// and a credential.

// Points lists the recovery points of a VM at a target.
func Points(ctx context.Context, c config.Target, vm string) (control.Points, error) {
	t, err := openTarget(ctx, c, false, slog.Default(), nil)
	if err != nil {
		return control.Points{}, described(err)
	}
	return pointsAt(ctx, t, vm)
}

func pointsAt(ctx context.Context, t target.Target, vm string) (control.Points, error) {
	doc, err := catalog.LoadPoints(ctx, t, vm)
	if err != nil {
		return control.Points{}, lookedUp(ctx, t, err)
	}
	points := control.Points{VM: doc.VM}
	for _, p := range doc.Points {
		out := control.RecoveryPoint{
			Point:       control.Point{ID: p.ID, Generation: p.Generation, Epoch: p.Epoch, Time: p.Time},
			Consistency: control.Consistency(p.Consistency), Snapshot: p.Snapshot, Doubted: p.Doubted,
		}
		for _, d := range p.Disks {
			out.Disks = append(out.Disks, control.PointDisk{Name: d.Name, VirtualSize: d.VirtualSize, ChangedBytes: d.ChangedBytes, StoredBytes: d.StoredBytes})
		}
		points.Points = append(points.Points, out)
	}
	return points, nil
}

// lookedUp makes what is not there exit code 5, and names what is.
func lookedUp(ctx context.Context, t target.Target, err error) error {
	switch {
	case errors.Is(err, catalog.ErrNoVM):
		vms, listErr := catalog.ListVMs(ctx, t)
		if listErr != nil || len(vms) == 0 {
			return control.NotFound("check target.url, the container and the prefix in it", "%v", err)
		}
		return control.NotFound(fmt.Sprintf("VMs at this target: %q", vms), "%v", err)
	case errors.Is(err, catalog.ErrNoPoint), errors.Is(err, restore.ErrNoDisk):
		return control.NotFound("list the points with: vhdrelay points", "%v", err)
	}
	return described(err)
}

// hold opens a session on the point that is asked for.
func hold(ctx context.Context, c config.Target, vm, disk string, point cli.PointSpec) (*restore.Session, error) {
	t, err := openTarget(ctx, c, false, slog.Default(), nil)
	if err != nil {
		return nil, described(err)
	}
	var disks []string
	if disk != "" {
		disks = []string{disk}
	}
	spec := catalog.SpecLatest
	if !point.Latest() {
		spec = point.String()
	}
	s, err := restore.Hold(ctx, t, vm, spec, disks, restore.HoldOptions{Reader: reader()})
	if err != nil {
		return nil, lookedUp(ctx, t, err)
	}
	return s, nil
}

// reader names this process in its pin.
func reader() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("%s, pid %d", host, os.Getpid())
}

// Export writes the disks of a point as files.
func Export(ctx context.Context, c config.Target, req cli.ExportRequest, progress func(control.Progress)) (cli.ExportResult, error) {
	s, err := hold(ctx, c, req.VM, req.Disk, req.Point)
	if err != nil {
		return cli.ExportResult{}, err
	}
	if req.Format == "" {
		req.Format = cli.FormatVHD
	}
	files, err := write(s, req, restore.ExportOptions{Format: req.Format, Force: req.Force, Progress: steps("exporting", progress)})
	result := cli.ExportResult{VM: req.VM, Point: s.Record().ID().String(), Time: s.Record().Time, Missing: missing(s.Record(), req.Disk)}
	for i, p := range s.Plans() {
		if st, statErr := os.Stat(files[i]); err == nil && statErr == nil {
			result.Files = append(result.Files, cli.ExportedFile{Disk: p.Disk.Name, Path: files[i], Format: req.Format, Size: st.Size()})
		}
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return result, exported(err)
	}
	return result, nil
}

// write exports one disk to a file, or the disks of the session into a directory,
// and returns the paths in the order of its plans.
func write(s *restore.Session, req cli.ExportRequest, opts restore.ExportOptions) ([]string, error) {
	if st, err := os.Stat(req.Output); req.Disk != "" && (err != nil || !st.IsDir()) {
		return []string{req.Output}, s.Export(req.Output, opts)
	}
	files, err := s.Files(req.Output, req.Format)
	if err != nil {
		return make([]string, len(s.Plans())), err
	}
	return files, s.ExportAll(req.Output, opts)
}

func exported(err error) error {
	var d *restore.DiffersError
	switch {
	case errors.As(err, &d):
		return &control.Error{Code: control.CodeDiffers, Message: err.Error(), Action: d.ErrorAction(), Exit: control.ExitDiffers, Err: err}
	case errors.Is(err, restore.ErrExists):
		return control.Refused("output-exists", "choose another output, or overwrite it with --force", "%v", err)
	case errors.Is(err, restore.ErrOtherExport):
		return control.Refused("other-export", "finish that export, or drop it with --force", "%v", err)
	}
	return described(err)
}

func steps(stage string, progress func(control.Progress)) restore.Progress {
	return func(done, total int64) {
		if progress != nil {
			progress(control.Progress{Stage: stage, Done: done, Total: total})
		}
	}
}

// missing are the disks that a point of a whole VM names and does not hold.
func missing(r catalog.Record, disk string) []string {
	var names []string
	for _, d := range r.Disks {
		if disk == "" && d.State != catalog.StateComplete {
			names = append(names, d.Name)
		}
	}
	return names
}

// Verify proves the disks of a point against the checksums in its record.
func Verify(ctx context.Context, c config.Target, req cli.VerifyRequest, progress func(control.Progress)) (cli.VerifyResult, error) {
	s, err := hold(ctx, c, req.VM, req.Disk, req.Point)
	if err != nil {
		return cli.VerifyResult{}, err
	}
	result := cli.VerifyResult{VM: req.VM, Point: s.Record().ID().String(), Time: s.Record().Time, Missing: missing(s.Record(), req.Disk)}
	for _, p := range s.Plans() {
		v, verifyErr := verifyDisk(s, p, progress)
		err = errors.Join(err, verifyErr)
		result.Disks = append(result.Disks, v)
	}
	if err := errors.Join(err, s.Close()); err != nil {
		return result, exported(err)
	}
	return result, nil
}

func verifyDisk(s *restore.Session, p restore.Plan, progress func(control.Progress)) (cli.VerifiedDisk, error) {
	v := cli.VerifiedDisk{Disk: p.Disk.Name, Size: p.Disk.VirtualSize, Recorded: p.Disk.Sum}
	d, err := s.Open(p)
	if err != nil {
		return v, err
	}
	err = d.Verify(s.Context(), steps("verifying "+p.Disk.Name, progress))
	var differs *restore.DiffersError
	switch {
	case err == nil:
		v.Found, v.Match = v.Recorded, true
	case errors.As(err, &differs):
		v.Found = catalog.FormatSum(differs.Got)
	}
	return v, err
}

// JournalCheck proves the invariants of a state directory that no appliance has open.
func JournalCheck(_ context.Context, c *config.Config) error {
	return withJournal(c, func(s kv.Store) error { return checkState(s, c.StateDir) })
}

// JournalDump writes a journal that no appliance has open.
func JournalDump(_ context.Context, c *config.Config, w io.Writer, o control.DumpOptions) error {
	dump := journal.Dump
	if o.JSON {
		dump = journal.DumpJSON
	}
	return withJournal(c, func(s kv.Store) error { return dump(s, w) })
}

func withJournal(c *config.Config, do func(kv.Store) error) error {
	dir := filepath.Join(c.StateDir, "journal")
	if _, err := os.Stat(dir); err != nil {
		return control.NotFound("check state_dir in the config", "there is no journal: %v", err)
	}
	lock, err := lockState(c.StateDir)
	if err != nil {
		return described(err)
	}
	defer lock.Close()
	s, err := badgerkv.Open(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		return described(err)
	}
	return errors.Join(do(s), s.Close())
}
