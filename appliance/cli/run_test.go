package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

var update = flag.Bool("update", false, "write the golden files anew")

// now is the clock of all tests.
var now = time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC)

// backend is an appliance with fixed answers.
type backend struct {
	vms []control.VM
}

var errNoVM = control.NotFound("vhdrelay status lists the VMs", "there is no VM of that name")

func (b *backend) Status(_ context.Context, vm string) (control.Status, error) {
	s := control.Status{Version: "1.2.3"}
	for _, v := range b.vms {
		if vm == "" || v.Name == vm {
			s.VMs = append(s.VMs, v)
		}
	}
	if vm != "" && len(s.VMs) == 0 {
		return s, errNoVM
	}
	return s, nil
}

func (b *backend) Points(_ context.Context, vm string) (control.Points, error) {
	if vm != "web01" {
		return control.Points{}, errNoVM
	}
	return somePoints(vm), nil
}

func somePoints(vm string) control.Points {
	disks := []control.PointDisk{{Name: "os.vhd", VirtualSize: 1 << 30, ChangedBytes: 524288, StoredBytes: 131072},
		{Name: "data.img", VirtualSize: 2 << 30, ChangedBytes: 3 << 20, StoredBytes: 1 << 20}}
	return control.Points{VM: vm, Points: []control.RecoveryPoint{
		{Point: control.Point{ID: "1-9", Generation: 1, Epoch: 9, Time: now.Add(-time.Hour)}, Consistency: control.ConsistencyCrash, Snapshot: true, Disks: disks},
		{Point: control.Point{ID: "1-12", Generation: 1, Epoch: 12, Time: now.Add(-time.Minute)}, Consistency: control.ConsistencyCrash, Disks: disks[:1]},
	}}
}

func (b *backend) Sync(_ context.Context, vm string, wait bool, progress func(control.Progress)) (control.SyncResult, error) {
	switch vm {
	case "web01":
		progress(control.Progress{Stage: "sealing"})
		progress(control.Progress{Stage: "shipping", Item: "os.vhd", Done: 1 << 20, Total: 4 << 20})
		progress(control.Progress{Stage: "shipping", Item: "os.vhd", Done: 4 << 20, Total: 4 << 20})
		if wait {
			return control.SyncResult{Epoch: 13, Point: "1-13"}, nil
		}
		return control.SyncResult{Epoch: 13}, nil
	case "open01":
		return control.SyncResult{Epoch: 7}, nil
	case "lost01":
		return control.SyncResult{}, control.Refused("vm_fenced", "adopt it there or delete it here", "lost01 was taken over by host7")
	}
	return control.SyncResult{}, errNoVM
}

// move answers as an appliance does for which pausing and the like is done at once.
func (b *backend) move(vm, state string) (control.Moved, error) {
	switch vm {
	case "web01":
		return control.Moved{VM: vm, State: state}, nil
	case "paused01":
		return control.Moved{}, control.Refused(control.CodeRefused, "let it go on first: vhdrelay resume paused01", "VM paused01 is Paused: pause is refused")
	}
	return control.Moved{}, errNoVM
}

func (b *backend) Pause(_ context.Context, vm string) (control.Moved, error) {
	return b.move(vm, "Paused")
}

func (b *backend) Unmount(_ context.Context, store string, force bool) (control.Unmounted, error) {
	switch {
	case store == "gone":
		return control.Unmounted{}, nil
	case store != "" && store != "main":
		return control.Unmounted{}, control.NotFound("the config names the stores", "there is no store %q", store)
	case !force:
		return control.Unmounted{}, control.Refused("store-busy", "stop these first, or use --force: they see I/O errors then", "store main: files are open: web/os.img (qemu, pid 42)")
	}
	return control.Unmounted{Stores: []string{"main"}}, nil
}

func (b *backend) Resume(_ context.Context, vm string) (control.Moved, error) {
	return b.move(vm, "Replicating")
}

func (b *backend) Protect(_ context.Context, vm string) (control.Moved, error) {
	return b.move(vm, "ReadyForInitialReplication")
}

func (b *backend) Unprotect(_ context.Context, vm string, o control.UnprotectOptions) (control.Moved, error) {
	if o.DeleteReplica {
		return b.move(vm, "Disabled, replica deleted")
	}
	return b.move(vm, "Disabled")
}

func (b *backend) Resync(_ context.Context, vm, disk string, o control.ResyncOptions, progress func(control.Progress)) (control.Resync, error) {
	if vm != "web01" {
		return control.Resync{}, errNoVM
	}
	if o.Cancel {
		return control.Resync{}, control.Refused("nothing-to-cancel", "vhdrelay status web01 says what runs", "VM web01 has no comparison that could be cancelled")
	}
	if !o.Now {
		return control.Resync{State: control.ResyncWaiting, TotalBytes: 1 << 30, Reason: "asked for " + disk}, nil
	}
	progress(control.Progress{Stage: "comparing", Item: disk, Done: 1 << 29, Total: 1 << 30})
	if o.Deep {
		return control.Resync{State: control.ResyncIdle, Deep: true, ComparedBytes: 1 << 30, TotalBytes: 1 << 30, DifferingBytes: 8192, Requests: 260, DownloadedBytes: 2 << 20}, nil
	}
	return control.Resync{State: control.ResyncIdle, ComparedBytes: 1 << 30, TotalBytes: 1 << 30, DifferingBytes: 8192}, nil
}

func (b *backend) Adopt(_ context.Context, vm string, progress func(control.Progress)) (control.Resync, error) {
	if vm != "web01" {
		return control.Resync{}, errNoVM
	}
	progress(control.Progress{Stage: "comparing", Done: 1 << 29, Total: 1 << 30})
	return control.Resync{State: control.ResyncIdle, ComparedBytes: 1 << 30, TotalBytes: 1 << 30, Reason: "asked for by an operator"}, nil
}

func (b *backend) JournalCheck(context.Context) error { return nil }

func (b *backend) JournalDump(_ context.Context, w io.Writer, o control.DumpOptions) error {
	if o.JSON {
		_, err := io.WriteString(w, "[\n{\"key\":\"session\",\"value\":7}\n]\n")
		return err
	}
	_, err := io.WriteString(w, "session 7 (asked the appliance)\n")
	return err
}

// rig is a configuration, and an appliance behind its socket if there is one.
type rig struct {
	dir, config string
	deps        Deps
	out, err    bytes.Buffer
	target      config.Target
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{dir: t.TempDir()}
	r.config = filepath.Join(r.dir, "c.yaml")
	r.write(t, "state_dir: "+r.dir+"/state\ncontrol_socket: "+r.dir+"/c.sock\n"+
		"stores: [{name: main, source: /srv/vhd, mount: /vhd}]\ntarget: {url: 'dir:///mnt/nas'}\n")
	clock := now
	r.deps = Deps{Version: "1.2.3", Stdout: &r.out, Stderr: &r.err, Now: func() time.Time { clock = clock.Add(2 * time.Second); return clock },
		Serve: func(_ context.Context, path string, log *slog.Logger) error {
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			log.Info("serving", "stores", len(c.Stores))
			return nil
		},
		Points: r.points, Export: r.export, Verify: r.verify, ImageInfo: imageInfo,
		JournalCheck: func(context.Context, *config.Config) error {
			return &control.Error{Code: "state-inconsistent", Message: "spool/1: no segment\ntables/2: too short", Action: "keep a copy", Exit: control.ExitDiffers}
		},
		ClearMounts: func(_ *config.Config, store string, release bool) (control.Unmounted, error) {
			if release {
				return control.Unmounted{Stores: []string{store + " released"}}, nil
			}
			return control.Unmounted{Stores: []string{}}, nil
		},
		JournalDump: func(_ context.Context, c *config.Config, w io.Writer, _ control.DumpOptions) error {
			_, err := fmt.Fprintf(w, "journal of %s\n", filepath.Base(c.StateDir))
			return err
		},
	}
	return r
}

func (r *rig) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(r.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// serve starts an appliance for the rig's configuration.
func (r *rig) serve(t *testing.T, vms ...control.VM) {
	t.Helper()
	ln, err := control.Listen(filepath.Join(r.dir, "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- control.Serve(ctx, ln, &backend{vms}, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) points(_ context.Context, t config.Target, vm string) (control.Points, error) {
	r.target = t
	if vm != "web01" && vm != "elsewhere" {
		return control.Points{}, control.NotFound("check the prefix", "no such VM at the target")
	}
	return somePoints(vm), nil
}

func (r *rig) export(_ context.Context, t config.Target, req ExportRequest, progress func(control.Progress)) (ExportResult, error) {
	r.target = t
	progress(control.Progress{Stage: "exporting", Item: req.VM, Done: 1 << 30, Total: 1 << 30})
	if req.VM == "exists" && !req.Force {
		return ExportResult{}, control.Refused("output_exists", "--force overwrites it", "%s exists", req.Output)
	}
	return ExportResult{VM: req.VM, Point: req.Point.String(), Time: now,
		Files: []ExportedFile{{req.Disk, req.Output, req.Format, 1<<30 + 512}}}, nil
}

func (r *rig) verify(_ context.Context, t config.Target, req VerifyRequest, _ func(control.Progress)) (VerifyResult, error) {
	r.target = t
	res := VerifyResult{VM: req.VM, Point: "1-12", Time: now, Disks: []VerifiedDisk{{Disk: "os.vhd", Size: 1 << 30, Recorded: "00aa", Found: "00aa", Match: true}}}
	if req.VM == "rotten" {
		res.Disks = append(res.Disks, VerifiedDisk{Disk: "b.img", Size: 1 << 20, Recorded: "01", Found: "02"},
			VerifiedDisk{Disk: "c.img", Size: 1 << 20, Recorded: "03", Problem: "a segment is missing"})
		return res, &control.Error{Code: control.CodeDiffers, Exit: control.ExitDiffers, Message: "2 disks differ", Action: "use an older point"}
	}
	if req.VM == "away" {
		return VerifyResult{}, errors.New("the target does not answer")
	}
	return res, nil
}

func imageInfo(_ *config.Config, path string) (ImageInfo, error) {
	if path == "snapshot.vhd" {
		return ImageInfo{File: path, Format: "vhd-differencing", FileSize: 4<<20 + 512, VirtualSize: 1 << 30, Allocated: 3 << 20, BlockSize: 2 << 20,
			ID: "0022", Parent: &ImageParent{ID: "0011", Locators: []ImageLocator{{"W2ru", `.\os.vhd`}}},
			Chain: []ImageLink{
				{File: "web01/snapshot.vhd", Format: "vhd-differencing", ID: "0022", FileSize: 4<<20 + 512, VirtualSize: 1 << 30, Allocated: 3 << 20, BlockSize: 2 << 20},
				{File: "web01/os.vhd", Format: "vhd-differencing", ID: "0011", FileSize: 9 << 20, VirtualSize: 1 << 30, Allocated: 8 << 20, BlockSize: 2 << 20},
			},
			ChainError: "web01/os.vhd: the parent image is missing"}, nil
	}
	if path != "os.vhd" {
		return ImageInfo{}, control.NotFound("", "%s does not exist", path)
	}
	return ImageInfo{File: path, Format: "vhd-fixed", FileSize: 1<<30 + 512, VirtualSize: 1 << 30, Allocated: 1 << 20, ID: "0011", Notes: []string{"made by qemu"}}, nil
}

// run executes a command line with the rig's configuration and returns everything that can be seen of it.
func (r *rig) run(args ...string) (transcript string, exit control.Exit) {
	r.out.Reset()
	r.err.Reset()
	exit = Run(context.Background(), r.deps, append(args, "--config", r.config))
	var b strings.Builder
	fmt.Fprintf(&b, "$ vhdrelay %s\n%s", strings.Join(args, " "), r.out.String())
	for line := range strings.Lines(r.err.String()) {
		b.WriteString("! " + line)
	}
	fmt.Fprintf(&b, "exit %d\n\n", exit)
	return strings.ReplaceAll(b.String(), r.dir, "DIR"), exit
}

// golden compares with a file of testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s\n(go test -update writes it anew)", path, got, want)
	}
}
