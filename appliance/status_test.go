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
	brokenDisk  = shipper.DiskStatus{Name: "b.vhd", Stage: shipper.StageWaiting, Err: errors.New("its footer is torn")}

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
		want string
	}{
		"no disk":                       {shipper.Status{}, idle, mark{}, StateDisabled},
		"nothing that can be protected": {shipper.Status{Disks: []shipper.DiskStatus{foreignDisk}}, idle, mark{}, StateDisabled},
		"not begun":                     {shipper.Status{Disks: disksIn(w, w)}, idle, mark{}, StateWaiting},
		"being written":                 {shipper.Status{Disks: []shipper.DiskStatus{emptyDisk}}, idle, mark{}, StateWaiting},
		"first disk":                    {shipper.Status{Disks: disksIn(i, w)}, idle, mark{}, StateInitial},
		"one to go":                     {shipper.Status{Disks: disksIn(c, w)}, idle, mark{}, StateInitial},
		"all":                           {shipper.Status{Disks: disksIn(c, c)}, idle, mark{}, StateReplicating},
		"all but a foreign one":         {shipper.Status{Disks: append(disksIn(c), foreignDisk)}, idle, mark{}, StateReplicating},
		"after a crash":                 {shipper.Status{Disks: disksIn(c)}, running, mark{}, StateReplicating},
		"an outage":                     {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{passing}}, idle, mark{}, StateReplicating},
		"for an operator":               {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{passing, forOperator}}, idle, mark{}, StateError},
		"an operator asked":             {shipper.Status{Disks: disksIn(c), Troubles: []shipper.Trouble{asked}}, idle, mark{}, StateReplicating},
		"over quota":                    {shipper.Status{Disks: disksIn(c), CatchUp: "quota", OverQuota: true}, idle, mark{}, StateResyncRequired},
		"catching up":                   {shipper.Status{Disks: disksIn(c), CatchUp: "quota"}, idle, mark{}, StateResynchronizing},
		"replaced":                      {shipper.Status{Disks: disksIn(c)}, idle, whole, StateResyncRequired},
		"replaced and compared":         {shipper.Status{Disks: disksIn(c)}, running, whole, StateResynchronizing},
		"replaced in initial":           {shipper.Status{Disks: disksIn(i)}, idle, whole, StateInitial},
	} {
		if got := stateOf(x.p, x.r, x.m); got != x.want {
			t.Errorf("%s: %s, want %s", name, got, x.want)
		}
	}
}

func TestReasonsOf(t *testing.T) {
	complete := disksIn(shipper.StageComplete)
	point := catalog.PointID{Generation: 1, Epoch: 3}
	old := shipper.Status{Disks: complete, LastPoint: point, LastPointAt: noon.Add(-61 * time.Minute), Pending: 1, Quota: 100}
	fresh := old
	fresh.LastPointAt = noon.Add(-time.Minute)
	idle := old
	idle.Pending = 0
	full := fresh
	full.Spooled = 51
	for name, x := range map[string]struct {
		f    facts
		want []string
	}{
		"nothing":             {facts{pipeline: fresh}, nil},
		"idle for long":       {facts{pipeline: idle}, nil},
		"no point for long":   {facts{pipeline: old}, []string{"warning rpo-exceeded"}},
		"a long interval":     {facts{pipeline: old, interval: 20 * time.Minute}, nil},
		"half the spool":      {facts{pipeline: full}, []string{"warning spool-over-half"}},
		"no disks":            {facts{}, []string{"warning no-disks"}},
		"initial":             {facts{pipeline: shipper.Status{Disks: disksIn(shipper.StageInitial)}}, []string{"warning initial-replication"}},
		"being written":       {facts{pipeline: shipper.Status{Disks: []shipper.DiskStatus{emptyDisk}}}, []string{"warning initial-replication"}},
		"a broken image":      {facts{pipeline: shipper.Status{Disks: []shipper.DiskStatus{brokenDisk}}}, []string{"critical bad-image", "warning initial-replication"}},
		"a foreign image":     {facts{pipeline: shipper.Status{Disks: append(complete, foreignDisk)}}, []string{"warning unprotected-format"}},
		"a foreign file":      {facts{pipeline: fresh, unsupported: []string{"web/x.qcow2"}}, []string{"warning unprotected-format"}},
		"journal":             {facts{pipeline: fresh, journal: syscall.ENOSPC}, []string{"warning journal-failing"}},
		"a failed comparison": {facts{pipeline: fresh, comparison: syscall.EIO}, []string{"warning comparison-failed"}},
		"overflow":            {facts{pipeline: shipper.Status{Disks: complete, CatchUp: "quota"}}, []string{"critical resynchronization-required"}},
		"replaced":            {facts{pipeline: fresh, mark: mark{"d", "replaced"}}, []string{"critical resynchronization-required"}},
		"being compared": {facts{pipeline: fresh, mark: mark{"d", "replaced"}, resync: control.Resync{State: control.ResyncRunning}},
			[]string{"warning resynchronizing"}},
		"troubles, the worst first": {facts{pipeline: shipper.Status{Disks: complete, Troubles: []shipper.Trouble{passing, forOperator}}},
			[]string{"critical permission", "warning connection-refused"}},
		"untracked": {facts{pipeline: full, untracked: []control.Reason{note{path: "web/x.img", cause: syscall.EIO}.reason()}},
			[]string{"critical image-untracked", "warning spool-over-half"}},
		"refused": {facts{pipeline: fresh, untracked: []control.Reason{note{path: "web/x.img", refused: true}.reason()}}, []string{"critical image-refused"}},
	} {
		x.f.vm, x.f.now = "web", noon
		var got []string
		for _, r := range reasonsOf(x.f) {
			got = append(got, string(r.Severity)+" "+r.Code)
			if r.Message == "" || r.Action == "" {
				t.Errorf("%s: %+v says too little", name, r)
			}
		}
		if !slices.Equal(got, x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
		}
	}
}

func TestTroubleReason(t *testing.T) {
	r := troubleReason(passing)
	want := "ship: connection refused (recoverable; next try 2026-05-04T12:01:00Z)"
	if r.Message != want || r.Severity != control.SeverityWarning || !r.Since.Equal(passing.Since) || r.Action == "" {
		t.Errorf("%+v", r)
	}
	if r := troubleReason(forOperator); r.Severity != control.SeverityCritical || r.Code != "permission" {
		t.Errorf("%+v", r)
	}
}

func TestHealthOf(t *testing.T) {
	w, c := warning("a", "b", "c"), critical("a", "b", "c")
	for _, x := range []struct {
		reasons []control.Reason
		want    control.Health
	}{
		{nil, control.HealthNormal}, {[]control.Reason{w}, control.HealthWarning}, {[]control.Reason{c}, control.HealthCritical},
		{[]control.Reason{w, c}, control.HealthCritical}, {[]control.Reason{c, w}, control.HealthCritical},
	} {
		if got := healthOf(x.reasons); got != x.want {
			t.Errorf("%v: %s, want %s", x.reasons, got, x.want)
		}
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
	own := warning("own", "", "")
	own.Since = noon.Add(-time.Hour)
	at(0, warning("a", "", ""))
	if r := at(1, warning("a", "", ""), warning("b", "", ""), own); since(r, 0) != 0 || since(r, 1) != 1 || since(r, 2) != -60 {
		t.Errorf("%v", r)
	}
	at(2, warning("b", "", ""))
	if r := at(3, warning("a", "", ""), warning("b", "", "")); since(r, 0) != 3 || since(r, 1) != 1 {
		t.Errorf("%v", r)
	}
	if got := times.of("x", noon); !got.Equal(noon) {
		t.Errorf("%v", got)
	}
	if got := times.of("x", noon.Add(time.Hour)); !got.Equal(noon) {
		t.Errorf("the state has been x since %v", got)
	}
	if got := times.of("y", noon.Add(time.Hour)); !got.Equal(noon.Add(time.Hour)) {
		t.Errorf("%v", got)
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
