package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

var noon = time.Date(2026, 5, 4, 12, 0, 0, 0, time.UTC)

func disksIn(stages ...shipper.Stage) []shipper.DiskStatus {
	var all []shipper.DiskStatus
	for i, s := range stages {
		all = append(all, shipper.DiskStatus{ID: fmt.Sprint(i), Name: fmt.Sprintf("disk%d.img", i), Stage: s})
	}
	return all
}

var (
	foreignDisk = shipper.DiskStatus{Name: "d.vhdx", Stage: shipper.StageWaiting, Err: &image.Error{Err: image.ErrUnsupported}}
	emptyDisk   = shipper.DiskStatus{Name: "e.img", Stage: shipper.StageWaiting, Err: &image.Error{Err: image.ErrNotYet}}

	forOperator = shipper.Trouble{Stage: "ship", Err: syscall.EACCES, Since: noon.Add(-time.Minute)}
	asked       = shipper.Trouble{Stage: "ship", Err: syscall.EACCES, Pending: true}
	passing     = shipper.Trouble{Stage: "ship", Err: syscall.ECONNREFUSED, Since: noon.Add(-time.Minute), NextTry: noon.Add(time.Minute)}
)

func TestStateOf(t *testing.T) {
	const w, i, c = shipper.StageWaiting, shipper.StageInitial, shipper.StageComplete
	running, idle := control.Resync{State: control.ResyncRunning}, control.Resync{State: control.ResyncIdle}
	whole := mark{"os.img", "the image file was replaced"}
	for name, x := range map[string]struct {
		p    shipper.Status
		r    control.Resync
		m    mark
		want lifecycle.State
	}{
		"no disk":                       {shipper.Status{}, idle, mark{}, lifecycle.Disabled},
		"nothing that can be protected": {shipper.Status{Disks: []shipper.DiskStatus{foreignDisk}}, idle, mark{}, lifecycle.Disabled},
		"not taken in":                  {shipper.Status{Disks: disksIn(w, w)}, idle, mark{}, lifecycle.Ready},
		"not begun":                     {shipper.Status{Generation: 1, Disks: disksIn(w, w)}, idle, mark{}, lifecycle.Waiting},
		"being written":                 {shipper.Status{Generation: 1, Disks: []shipper.DiskStatus{emptyDisk}}, idle, mark{}, lifecycle.Waiting},
		"first disk":                    {shipper.Status{Disks: disksIn(i, w)}, idle, mark{}, lifecycle.Initial},
		"one to go":                     {shipper.Status{Disks: disksIn(c, w)}, idle, mark{}, lifecycle.Initial},
		"all":                           {shipper.Status{Disks: disksIn(c, c)}, idle, mark{}, lifecycle.Replicating},
		"all but a foreign one":         {shipper.Status{Disks: append(disksIn(c), foreignDisk)}, idle, mark{}, lifecycle.Replicating},
		"after a crash":                 {shipper.Status{Disks: disksIn(c)}, running, mark{}, lifecycle.Replicating},
		"an outage":                     {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{passing}}, idle, mark{}, lifecycle.Replicating},
		"for an operator":               {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{passing, forOperator}}, idle, mark{}, lifecycle.Error},
		"an operator asked":             {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{asked}}, idle, mark{}, lifecycle.Replicating},
		"over quota":                    {shipper.Status{Disks: disksIn(c), CatchUp: "quota", OverQuota: true}, idle, mark{}, lifecycle.ResynchronizationRequired},
		"catching up":                   {shipper.Status{Disks: disksIn(c), CatchUp: "quota"}, idle, mark{}, lifecycle.Resynchronizing},
		"replaced":                      {shipper.Status{Disks: disksIn(c)}, idle, whole, lifecycle.ResynchronizationRequired},
		"replaced and compared":         {shipper.Status{Disks: disksIn(c)}, running, whole, lifecycle.Resynchronizing},
		"resting over quota":            {shipper.Status{Disks: disksIn(c), CatchUp: "half", Resting: true}, idle, mark{}, lifecycle.ResynchronizationRequired},
		"comparison paused":             {shipper.Status{Disks: disksIn(c)}, control.Resync{State: control.ResyncPaused}, whole, lifecycle.ResynchronizationPaused},
		"replaced in initial":           {shipper.Status{Disks: disksIn(i)}, idle, whole, lifecycle.Initial},
	} {
		if got := stateOf(x.p, x.r, x.m); got != x.want {
			t.Errorf("%s: %s, want %s", name, got, x.want)
		}
	}
}

// Every cause of the composed facts ends in its reason.
func TestReasonsOfComposedFacts(t *testing.T) {
	full := shipper.Status{Disks: disksIn(shipper.StageComplete), Quota: 100, Spooled: 51, Troubles: []shipper.Trouble{passing, forOperator}}
	full.Disks = append(full.Disks, foreignDisk, emptyDisk)
	f := health.Facts{VM: "web", Now: noon, Troubles: troublesOf(full), Disks: disksOf(full), Spooled: full.Spooled, Quota: full.Quota,
		Store: []control.Reason{note{path: "web/x.img", cause: syscall.EIO}.reason(), note{path: "web/y.img", refused: true}.reason()}}
	var got []string
	for _, r := range health.Judge(f) {
		got = append(got, string(r.Severity)+" "+r.Code+" "+r.Cause)
	}
	want := []string{"critical image-untracked ", "critical image-refused ", "critical cannot-send permission", "warning retrying connection-refused",
		"warning image-incomplete ", "warning initial-replication ", "warning unprotected-format ", "warning spool-over-half "}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// A reason keeps the time it was first seen until it is gone; its own time counts
// where it has one.
func TestReasonTimes(t *testing.T) {
	var times reasonTimes
	at := func(minute int, reasons ...control.Reason) []control.Reason {
		return times.date(reasons, noon.Add(time.Duration(minute)*time.Minute))
	}
	since := func(r []control.Reason, i int) int { return int(r[i].Since.Sub(noon).Minutes()) }
	warning := func(code string) control.Reason { return control.Reason{Code: code} }
	own := warning("own")
	own.Since = noon.Add(-time.Hour)
	at(0, warning("a"))
	if r := at(1, warning("a"), warning("b"), own); since(r, 0) != 0 || since(r, 1) != 1 || since(r, 2) != -60 {
		t.Errorf("%v", r)
	}
	at(2, warning("b"))
	if r := at(3, warning("a"), warning("b")); since(r, 0) != 3 || since(r, 1) != 1 {
		t.Errorf("%v", r)
	}
}

func TestDescribed(t *testing.T) {
	if described(nil) != nil {
		t.Error("no error has no description")
	}
	own := control.Refused("some-code", "do this", "no")
	if err := described(fmt.Errorf("around: %w", own)); !errors.Is(err, own) || err.Error() != "around: no" {
		t.Errorf("%v", err)
	}
	for _, c := range []struct {
		err  error
		code control.Code
	}{
		{syscall.ENOSPC, "disk-full"},
		{&shipper.Problem{Code: "fenced", Class: retry.NonRecoverable, Action: "x", Err: errors.New("y")}, "fenced"},
		{errors.New("what"), retry.CodeUnclassified},
	} {
		var e *control.Error
		if err := described(c.err); !errors.As(err, &e) || e.Code != c.code || e.Action == "" || e.Exit != control.ExitFailed || !errors.Is(err, c.err) {
			t.Errorf("%v: %+v", c.err, err)
		}
	}
}

func TestLookedUp(t *testing.T) {
	empty := fake.New(fake.Options{})
	full := fake.New(fake.Options{})
	doc := catalog.VMDoc{Version: catalog.FormatVersion, Name: "web", VMID: "0b0e9a3c-6f0a-4c8e-9a3e-0f1f5e6d7c8b", Generation: 1, Updated: noon}
	if err := catalog.CreateVM(t.Context(), full, doc); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		t      target.Target
		err    error
		exit   control.Exit
		action string
	}{
		{empty, catalog.ErrNoVM, control.ExitNotFound, "check target.url, the container and the prefix in it"},
		{full, catalog.ErrNoVM, control.ExitNotFound, `VMs at this target: ["web"]`},
		{full, fmt.Errorf("x: %w", catalog.ErrNoPoint), control.ExitNotFound, "list the points with: vhdrelay points"},
		{full, syscall.EIO, control.ExitFailed, "look into the kernel log for the device; it is tried again"},
	} {
		var e *control.Error
		if err := lookedUp(context.Background(), c.t, c.err); !errors.As(err, &e) || e.Exit != c.exit || e.Action != c.action {
			t.Errorf("%v: %+v", c.err, e)
		}
	}
}
