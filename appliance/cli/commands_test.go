package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// fleet has a VM in every health, the healthy one first.
func fleet() []control.VM {
	rpo, old := 12.5, 7500.0
	return []control.VM{
		{Name: "web01", State: "Replicating", StateSince: now.Add(-50 * time.Hour), Health: control.HealthNormal, IntervalSeconds: 30, Generation: 1,
			LastPoint: &control.Point{ID: "1-12", Generation: 1, Epoch: 12, Time: now.Add(-12 * time.Second)}, DurableRPOSeconds: &rpo,
			PendingBytes: 4096, AppliedEpoch: 10, ApplyBacklogBytes: 3 << 20, Resync: control.Resync{State: control.ResyncIdle},
			Disks: []control.Disk{{Name: "os.vhd", Format: "vhd-fixed", VirtualSize: 1 << 30, PendingBytes: 4096},
				{Name: "snap.avhd", Format: "vhd-differencing", Chain: []string{"web01/snap.avhd", "web01/base.vhd"}, ChainError: "web01/base.vhd: the parent image is missing"},
				{Name: "data/logs.img", Format: "raw", VirtualSize: 24 << 30}},
			Recovery: control.Recovery{SuspectBytes: 8 << 20, ComparedBytes: 8 << 20, DifferingBytes: 4096, Reason: "unclean stop"}},
		{Name: "new01", State: "InitialReplication", Health: control.HealthWarning, IntervalSeconds: 300,
			Reasons: []control.Reason{{Code: "initial_replication", Severity: control.SeverityWarning, Message: "initial replication is not finished",
				Action: "wait: 2 h at this rate", Since: now.Add(-time.Minute)}},
			Resync: control.Resync{State: control.ResyncIdle},
			Disks: []control.Disk{{Name: "new01.vhd", Format: "vhd-fixed", VirtualSize: 10 << 30,
				InitialReplication: control.Transfer{DoneBytes: 1 << 30, TotalBytes: 4 << 30}}},
			Jobs: []control.Job{{ID: "3", Kind: control.JobProtect, State: control.JobRunning, DoneBytes: 1 << 30, TotalBytes: 4 << 30, Message: "new01.vhd"}}},
		{Name: "db01", State: "Error", StateSince: now.Add(-2 * time.Hour), Health: control.HealthCritical, IntervalSeconds: 30,
			Reasons: []control.Reason{
				{Code: "target_auth", Severity: control.SeverityCritical, Message: "the target refuses the credential: AuthenticationFailed (403)",
					Action: "renew the SAS in /etc/vhdrelay/sas; then vhdrelay sync db01", Since: now.Add(-2 * time.Hour)},
				{Code: "spool_half", Severity: control.SeverityWarning, Message: "the spool is over half its quota", Since: now.Add(-9 * time.Second)}},
			LastPoint: &control.Point{ID: "2-100", Generation: 2, Epoch: 100, Time: now.Add(-7500 * time.Second)}, DurableRPOSeconds: &old,
			SpooledBytes: 5 << 30, AppliedEpoch: 100,
			Resync: control.Resync{State: control.ResyncRunning, ComparedBytes: 1 << 30, TotalBytes: 4 << 30, Reason: "tracking was lost"},
			Disks:  []control.Disk{{Name: "db01.vhd", Format: "vhd-fixed", VirtualSize: 4 << 30}}},
	}
}

// session runs command lines one after the other and returns their transcript.
func (r *rig) session(lines ...string) string {
	var b strings.Builder
	for _, line := range lines {
		text, _ := r.run(strings.Fields(line)...)
		b.WriteString(text)
	}
	return b.String()
}

func TestStatusCommand(t *testing.T) {
	r := newRig(t)
	r.serve(t, fleet()...)
	r.deps.Now = func() time.Time { return now }
	golden(t, "status", r.session("status", "status web01", "status web01 --json", "status web01 --check", "status new01 --check --json",
		"status --check", "status nobody"))
}

func TestStatusOfNothing(t *testing.T) {
	r := newRig(t)
	r.serve(t)
	golden(t, "status-empty", r.session("status --check", "status --json"))
}

func TestSyncAndResyncCommands(t *testing.T) {
	r := newRig(t)
	r.serve(t)
	golden(t, "sync", r.session("sync web01", "sync web01 --wait", "sync web01 --wait --json", "sync open01", "sync open01 --wait",
		"sync lost01", "sync nobody", "resync web01/sub/os.vhd", "resync web01 --now", "resync web01/a --now --json", "resync nobody/x", "resync web01/",
		"resync web01/a --deep --now", "resync web01 --cancel", "resync web01 --cancel --now", "adopt web01", "adopt web01 --json", "adopt nobody", "adopt"))
}

func TestPointsExportVerifyCommands(t *testing.T) {
	r := newRig(t)
	golden(t, "points", r.session("points web01", "points web01 --json", "points nobody",
		"export web01 --point latest --output out", "export web01/a/b.vhd --point 1-12 --output b.raw --json",
		"export web01/a.vhd --point 2026-03-01T07:00:00Z --output a.bin --format raw", "export exists --output x", "export exists --output x --force",
		"export web01", "export web01 --output x --format vhdx", "export web01 --output x --point yesterday",
		"verify web01", "verify rotten/os.vhd --point 1-12", "verify rotten --json", "verify away", "verify web01 --point 0-0"))
}

func TestLocalCommands(t *testing.T) {
	r := newRig(t)
	golden(t, "local", r.session("image info os.vhd", "image info os.vhd --json", "image info snapshot.vhd", "image info snapshot.vhd --json", "image info nothing", "journal check", "journal check --json", "journal dump", "check-config", "check-config --json"))
	r.serve(t)
	golden(t, "journal", r.session("journal check", "journal check --json", "journal dump", "journal dump --json"))
}

func TestUsageErrors(t *testing.T) {
	r := newRig(t)
	golden(t, "usage", r.session("frobnicate", "stat", "status --frobnicate", "status a b", "sync", "image", "journal", "journal frob", "resync /x",
		"status --json=maybe"))
}

func TestUnreachableAppliance(t *testing.T) {
	r := newRig(t)
	golden(t, "unreachable", r.session("status", "sync web01 --wait", "resync web01"))
}

func TestConfigErrors(t *testing.T) {
	r := newRig(t)
	r.write(t, "stores: [{name: a, sorce: /x, mount: /m}]\ntarget: {url: 'dir:///mnt'}\nresync: {threshold: 7}\n")
	golden(t, "config", r.session("check-config", "check-config --json", "serve", "status", "sync a", "journal check", "points web01"))
}

func TestCheckConfigPrintIsAConfig(t *testing.T) {
	r := newRig(t)
	if _, exit := r.run("check-config", "--print"); exit != control.ExitDone {
		t.Fatal(r.err.String())
	}
	c, err := config.Parse("printed", r.out.Bytes())
	if err != nil {
		t.Fatalf("%v\n%s", err, r.out.String())
	}
	if c.StateDir != r.dir+"/state" || c.Replication != config.DefaultReplication() {
		t.Errorf("%+v", c)
	}
}

func TestServeGetsConfigAndLog(t *testing.T) {
	r := newRig(t)
	if text, exit := r.run("serve", "--debug"); exit != control.ExitDone || !strings.Contains(text, "msg=serving stores=1") {
		t.Error(text)
	}
}

func TestVersionCommand(t *testing.T) {
	r := newRig(t)
	if text, _ := r.run("version"); !regexp.MustCompile(`(?m)^vhdrelay 1\.2\.3 go\S+ \w+/\w+$`).MatchString(text) {
		t.Error(text)
	}
	var doc map[string]string
	if _, exit := r.run("version", "--json"); exit != 0 || json.Unmarshal(r.out.Bytes(), &doc) != nil || doc["version"] != "1.2.3" {
		t.Error(r.out.String())
	}
}

// With an appliance, its answer; for a VM that it does not know, the target's; with --target, the target's at once.
func TestPointsAsksTheApplianceFirst(t *testing.T) {
	r := newRig(t)
	r.serve(t)
	for _, c := range []struct{ args, url string }{
		{"points web01", ""}, {"points elsewhere", "dir:///mnt/nas"}, {"points web01 --target dir:///other", "dir:///other"},
	} {
		r.target = config.Target{}
		text, exit := r.run(strings.Fields(c.args)...)
		if exit != control.ExitDone || r.target.URL != c.url {
			t.Errorf("%s went to %q, want %q\n%s", c.args, r.target.URL, c.url, text)
		}
	}
}

func TestTargetCommandsNeedNoConfiguration(t *testing.T) {
	r := newRig(t)
	for _, line := range []string{"points web01", "export web01 --output x", "verify web01"} {
		args := append(strings.Fields(line), "--target", "dir:///replicas")
		if exit := Run(context.Background(), r.deps, args); exit != control.ExitDone {
			t.Errorf("%s: exit %d\n%s", line, exit, r.err.String())
		}
		if r.target.URL != "dir:///replicas" || r.target.Credentials.Type != config.CredentialDefault {
			t.Errorf("%s: %+v", line, r.target)
		}
	}
}

// A configuration that was asked for by name must exist.
func TestNamedConfigurationMustExist(t *testing.T) {
	r := newRig(t)
	r.config = filepath.Join(r.dir, "absent.yaml")
	if text, exit := r.run("verify", "web01", "--target", "dir:///replicas"); exit != control.ExitConfig {
		t.Error(text)
	}
}

// The contract: each command documents its exit codes, and takes --config.
func TestEveryCommandDocumentsItself(t *testing.T) {
	a := &app{Deps: newRig(t).deps}
	root := a.root()
	var names []string
	var visit func(*cobra.Command)
	visit = func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() {
			names = append(names, cmd.CommandPath())
			if !strings.Contains(cmd.Long, "EXIT STATUS\n   0  done\n   1  failed") {
				t.Errorf("%s does not document its exit status:\n%s", cmd.CommandPath(), cmd.Long)
			}
			if cmd.InheritedFlags().Lookup("config") == nil {
				t.Errorf("%s takes no --config", cmd.CommandPath())
			}
		}
		for _, sub := range cmd.Commands() {
			visit(sub)
		}
	}
	visit(root)
	want := "adopt check-config export image info jobs journal check journal dump pause points preflight protect resume resync serve status sync unmount unprotect verify version"
	if got := strings.ReplaceAll(strings.Join(names, " "), "vhdrelay ", ""); got != want {
		t.Errorf("commands: %s, want %s", got, want)
	}
}

func TestReadingCommandsTakeJSON(t *testing.T) {
	a := &app{Deps: newRig(t).deps}
	root := a.root()
	var without []string
	var look func(*cobra.Command)
	look = func(cmd *cobra.Command) {
		if cmd.HasSubCommands() {
			for _, c := range cmd.Commands() {
				look(c)
			}
		} else if cmd.Flags().Lookup("json") == nil {
			without = append(without, cmd.CommandPath())
		}
	}
	look(root)
	if !slices.Equal(without, []string{"vhdrelay serve"}) {
		t.Errorf("take no --json: %q", without)
	}
}

func TestHelp(t *testing.T) {
	r := newRig(t)
	golden(t, "help", r.session("help", "status --help", "export --help"))
}

func TestExitTable(t *testing.T) {
	_, invalid := config.Parse("t", []byte("a: b"))
	for _, c := range []struct {
		err  error
		want control.Exit
	}{
		{nil, control.ExitDone},
		{errors.New("x"), control.ExitFailed},
		{context.Canceled, control.ExitFailed},
		{usagef("x"), control.ExitUsage},
		{fmt.Errorf("wrapped: %w", usagef("x")), control.ExitUsage},
		{invalid, control.ExitConfig},
		{control.NotFound("", "x"), control.ExitNotFound},
		{fmt.Errorf("wrapped: %w", control.NotFound("", "x")), control.ExitNotFound},
		{control.Refused("c", "", "x"), control.ExitRefused},
		{&control.Error{Exit: control.ExitDiffers}, control.ExitDiffers},
		{&control.Error{Message: "an error that forgot its exit code"}, control.ExitFailed},
		{silent(control.ExitWarning), control.ExitWarning},
		{silent(control.ExitCritical), control.ExitCritical},
		{&fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist}, control.ExitFailed},
	} {
		if got := exitOf(c.err); got != c.want {
			t.Errorf("%v: %d, want %d", c.err, got, c.want)
		}
	}
	for exit := range meanings {
		if !strings.Contains(exitStatus(exit), fmt.Sprintf("%2d  %s", exit, meanings[exit])) {
			t.Errorf("exit %d is not in its own help", exit)
		}
	}
}

func TestUnknownHealthIsCritical(t *testing.T) {
	if got := healthExit("Splendid"); got != control.ExitCritical {
		t.Errorf("%d", got)
	}
}

// A result that could not be written is a failure: the pipe's other end must not believe in half a document.
func TestClosedPipe(t *testing.T) {
	r := newRig(t)
	r.serve(t, fleet()...)
	r.deps.Stdout = closedPipe{}
	for _, line := range []string{"status", "status --json", "points web01", "points web01 --json", "sync web01", "version", "check-config",
		"image info os.vhd", "verify web01", "export web01 --output x", "journal check", "journal check --json", "journal dump", "check-config --json", "resync web01 --now", "check-config --print"} {
		if text, exit := r.run(strings.Fields(line)...); exit != control.ExitFailed {
			t.Errorf("%s", text)
		}
	}
}

type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestConfigurationErrorsStandAlone(t *testing.T) {
	var b bytes.Buffer
	_, err := config.Parse("t.yaml", []byte("a: 1\nb: 2\n"))
	complain(&b, err)
	for line := range strings.Lines(b.String()) {
		if !strings.HasPrefix(line, "t.yaml") {
			t.Errorf("%q does not start with the file", line)
		}
	}
}
