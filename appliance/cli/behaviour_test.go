package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// scripted is an appliance one of whose calls does what the test says.
type scripted struct {
	backend
	sync   func(ctx context.Context, progress func(control.Progress)) (control.SyncResult, error)
	points error
	dump   func(w io.Writer) error
}

func (s *scripted) Sync(ctx context.Context, _ string, _ bool, progress func(control.Progress)) (control.SyncResult, error) {
	return s.sync(ctx, progress)
}

func (s *scripted) Points(context.Context, string) (control.Points, error) {
	return control.Points{}, s.points
}

func (s *scripted) JournalDump(_ context.Context, w io.Writer, _ control.DumpOptions) error {
	return s.dump(w)
}

// serveScripted starts it and returns what stops it.
func (r *rig) serveScripted(t *testing.T, b control.Backend) (stop func()) {
	t.Helper()
	ln, err := control.Listen(filepath.Join(r.dir, "c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := control.Serve(ctx, ln, b, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// The document on standard output is the appliance's, whole.
func TestStatusJSONIsTheAppliancesDocument(t *testing.T) {
	r := newRig(t)
	r.serve(t, fleet()...)
	if text, exit := r.run("status", "--json"); exit != control.ExitDone {
		t.Fatal(text)
	}
	var got control.Status
	if err := json.Unmarshal(r.out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if want := (control.Status{Version: "1.2.3", VMs: fleet()}).Normal(); !reflect.DeepEqual(got.Normal(), want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestPointsJSONFromTheTargetHasNoNulls(t *testing.T) {
	r := newRig(t)
	r.deps.Points = func(context.Context, config.Target, string) (control.Points, error) {
		return control.Points{VM: "a"}, nil
	}
	if text, exit := r.run("points", "a", "--json"); exit != control.ExitDone || strings.Contains(text, "null") {
		t.Error(text)
	}
	if text, exit := r.run("points", "a"); exit != control.ExitDone || !strings.Contains(text, "a has no recovery point") {
		t.Error(text)
	}
}

// Whatever keeps the appliance from answering, the target is the truth.
func TestPointsOfATroubledAppliance(t *testing.T) {
	r := newRig(t)
	r.serveScripted(t, &scripted{points: errors.New("the journal is closed")})
	if text, exit := r.run("points", "web01"); exit != control.ExitDone || r.target.URL != "dir:///mnt/nas" {
		t.Error(text)
	}
}

func TestCancelledCommandFails(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(context.Background())
	r.serveScripted(t, &scripted{sync: func(ctx context.Context, _ func(control.Progress)) (control.SyncResult, error) {
		cancel()
		<-ctx.Done()
		return control.SyncResult{}, ctx.Err()
	}})
	if exit := Run(ctx, r.deps, []string{"sync", "a", "--wait", "--config", r.config}); exit != control.ExitFailed {
		t.Errorf("exit %d: %s", exit, r.err.String())
	}
	if exit := Run(ctx, r.deps, []string{"points", "web01", "--config", r.config}); exit != control.ExitFailed {
		t.Errorf("points under a cancelled context: exit %d: %s%s", exit, r.out.String(), r.err.String())
	}
}

// An appliance that stops while a command waits is not success, and not an absent appliance either.
func TestApplianceStopsMeanwhile(t *testing.T) {
	r := newRig(t)
	begun := make(chan struct{})
	stop := r.serveScripted(t, &scripted{sync: func(ctx context.Context, _ func(control.Progress)) (control.SyncResult, error) {
		close(begun)
		<-ctx.Done()
		return control.SyncResult{}, ctx.Err()
	}})
	go func() {
		<-begun
		stop()
	}()
	text, exit := r.run("sync", "a", "--wait")
	if exit != control.ExitUnreachable || !strings.Contains(text, "the appliance is stopping") {
		t.Error(text)
	}
}

// A dump that breaks off is not begun anew from the closed journal: its reader would have two halves.
func TestBrokenDumpIsNotStartedOver(t *testing.T) {
	r := newRig(t)
	r.serveScripted(t, &scripted{dump: func(w io.Writer) error {
		if _, err := io.WriteString(w, "first half\n"); err != nil {
			return err
		}
		panic("bug")
	}})
	text, exit := r.run("journal", "dump")
	if exit != control.ExitUnreachable || strings.Contains(text, "journal of") || !strings.Contains(text, "first half") {
		t.Error(text)
	}
}

func TestTerminalGetsABarAndALineOfItsOwn(t *testing.T) {
	r := newRig(t)
	r.deps.Terminal = true
	r.serve(t)
	if text, exit := r.run("sync", "web01", "--wait"); exit != control.ExitDone {
		t.Fatal(text)
	}
	got := r.err.String()
	if !strings.Contains(got, "\rshipping os.vhd  [#######.......................]   25 %") || !strings.HasSuffix(got, "\n") {
		t.Errorf("%q", got)
	}
	if r.out.String() != "epoch 13\npoint 1-13\n" {
		t.Errorf("progress leaked into the result: %q", r.out.String())
	}
}

// The bar must not stand in front of the complaint.
func TestErrorAfterProgressStartsALine(t *testing.T) {
	r := newRig(t)
	r.deps.Terminal = true
	if text, exit := r.run("export", "exists", "--output", "x"); exit != control.ExitRefused {
		t.Fatal(text)
	}
	if !slices.Contains(strings.Split(r.err.String(), "\n"), "vhdrelay: x exists") {
		t.Errorf("%q", r.err.String())
	}
}

func TestExportRequestIsWhatWasAsked(t *testing.T) {
	at := time.Date(2026, 3, 1, 7, 0, 0, 0, time.UTC)
	for line, want := range map[string]ExportRequest{
		"export a --output d":                                {VM: "a", Output: "d", Format: "vhd"},
		"export a --output d --point latest --force":         {VM: "a", Output: "d", Format: "vhd", Force: true},
		"export a/x/y.img --output f --point 3-7":            {VM: "a", Disk: "x/y.img", Output: "f", Format: "vhd", Point: PointSpec{Generation: 3, Epoch: 7}},
		"export a/b --output f.img --point 2026-03-01T07:00": {VM: "a", Disk: "b", Output: "f.img", Format: "raw", Point: PointSpec{At: at}},
		"export a --output d --format raw":                   {VM: "a", Output: "d", Format: "raw"},
	} {
		r := newRig(t)
		var got ExportRequest
		r.deps.Export = func(_ context.Context, _ config.Target, req ExportRequest, _ func(control.Progress)) (ExportResult, error) {
			got = req
			return ExportResult{}, nil
		}
		if text, exit := r.run(strings.Fields(line)...); exit != control.ExitDone || got != want {
			t.Errorf("%s: %+v, want %+v\n%s", line, got, want, text)
		}
	}
}

func TestVerifyRequestIsWhatWasAsked(t *testing.T) {
	for line, want := range map[string]VerifyRequest{
		"verify a":                       {VM: "a"},
		"verify a/x/y.img --point 3-7":   {VM: "a", Disk: "x/y.img", Point: PointSpec{Generation: 3, Epoch: 7}},
		"verify a --point latest --json": {VM: "a"},
	} {
		r := newRig(t)
		var got VerifyRequest
		r.deps.Verify = func(_ context.Context, _ config.Target, req VerifyRequest, _ func(control.Progress)) (VerifyResult, error) {
			got = req
			return VerifyResult{}, nil
		}
		if text, exit := r.run(strings.Fields(line)...); exit != control.ExitDone || got != want {
			t.Errorf("%s: %+v, want %+v\n%s", line, got, want, text)
		}
	}
}

// Wrong arguments are found before anything is asked or opened.
func TestUsageIsJudgedFirst(t *testing.T) {
	r := newRig(t)
	r.deps.Export = func(context.Context, config.Target, ExportRequest, func(control.Progress)) (ExportResult, error) {
		t.Error("export was begun")
		return ExportResult{}, nil
	}
	r.write(t, "not: a config")
	for _, line := range []string{"export a/ --output x", "export a", "export a --output x --point 1", "export a --output x --format vmdk",
		"verify a/", "verify a --point 1", "resync a/"} {
		if text, exit := r.run(strings.Fields(line)...); exit != control.ExitUsage {
			t.Error(text)
		}
	}
}

// Any failure of serve is the command's, with its code.
func TestServeEndsAsTheApplianceDoes(t *testing.T) {
	for _, c := range []struct {
		err  error
		want control.Exit
	}{{nil, 0}, {errors.New("mount refused"), 1}, {control.Refused(control.CodeRunning, "stop it", "another appliance"), 6}} {
		r := newRig(t)
		r.deps.Serve = func(context.Context, string, *slog.Logger) error { return c.err }
		if text, exit := r.run("serve"); exit != c.want {
			t.Errorf("%v: %s", c.err, text)
		}
	}
}

func TestServeLogsDebugOnlyWhenAsked(t *testing.T) {
	for _, debug := range []bool{false, true} {
		r := newRig(t)
		r.deps.Serve = func(_ context.Context, _ string, log *slog.Logger) error {
			log.Debug("detail")
			return nil
		}
		args := []string{"serve"}
		if debug {
			args = append(args, "--debug")
		}
		if text, _ := r.run(args...); strings.Contains(text, "detail") != debug {
			t.Errorf("debug=%v: %s", debug, text)
		}
	}
}

func TestComplaints(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"plain", errors.New("it broke"), "vhdrelay: it broke\n"},
		{"with action", control.Refused("c", "mend it", "it broke"), "vhdrelay: it broke\nnext: mend it\n"},
		{"without action", control.NotFound("", "gone"), "vhdrelay: gone\n"},
		{"usage", usagef("what?"), "vhdrelay: what?\nnext: vhdrelay help, or --help after any command\n"},
		{"silent", silent(control.ExitWarning), ""},
		{"config", &config.Error{Path: "f", Line: 2, Column: 3, Key: "k", Message: "m"}, "f:2:3: k: m\n"},
	} {
		var b bytes.Buffer
		complain(&b, c.err)
		if b.String() != c.want {
			t.Errorf("%s: %q, want %q", c.name, b.String(), c.want)
		}
	}
	if silent(10).Error() != "exit 10" {
		t.Error(silent(10).Error())
	}
}

// A VM about which next to nothing is known yet must be printable.
func TestStatusOfAnEmptyVM(t *testing.T) {
	var b bytes.Buffer
	if err := printStatus(&b, control.Status{VMs: []control.VM{{Name: "a", State: "Disabled", Health: control.HealthNormal}}}, now); err != nil {
		t.Fatal(err)
	}
	want := "a: Disabled, Normal\n  RPO         no recovery point yet; interval 0.0 s\n  last point  none\n" +
		"  to ship     0 B changed, 0 B spooled\n  to apply    0 B, replica at epoch 0\n"
	if got := b.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestStatusDoesNotReorderWhatItIsGiven(t *testing.T) {
	vms := fleet()
	if err := printStatus(io.Discard, control.Status{VMs: vms}, now); err != nil {
		t.Fatal(err)
	}
	if vms[0].Name != "web01" || vms[2].Name != "db01" {
		t.Error("the caller's list was sorted")
	}
}

func TestVerdictIsTheWorst(t *testing.T) {
	vm := func(h control.Health) control.VM { return control.VM{Health: h} }
	for _, c := range []struct {
		vms  []control.VM
		want control.Exit
	}{
		{nil, 0}, {[]control.VM{vm("Normal"), vm("Normal")}, 0}, {[]control.VM{vm("Normal"), vm("Warning")}, 10},
		{[]control.VM{vm("Critical"), vm("Warning")}, 11}, {[]control.VM{vm("")}, 11},
	} {
		if got := exitOf(verdict(control.Status{VMs: c.vms})); got != c.want {
			t.Errorf("%v: %d, want %d", c.vms, got, c.want)
		}
	}
}
