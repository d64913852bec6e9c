package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
)

// Options say where an appliance lives and what it is told. Dir and Binary are needed, and URL.
type Options struct {
	Dir    string // configuration, socket, log and, unless they are given, store, state and mount
	Binary string
	Source string // Dir/source
	State  string // Dir/state
	Mount  string // Dir/mount

	URL         string // of the target
	Key         string // its shared key, if it needs one
	Credentials string // target.credentials as YAML, instead of Key
	CAFile      string // roots of the target, "": the system's

	Window string // resync.window as YAML; "": comparisons may run at any time

	// Mortal is the command mortal, if that is to serve instead of the binary: it takes orders.
	Mortal string
	Orders []failpoint.Order // of its beginning

	Env   []string // NAME=VALUE of the appliance and its commands, beside ours
	Debug bool     // the appliance logs all it can

	Keeper bool // the mount outlives the process, and another process follows one that ends; see Keeper

	Interval      time.Duration // 5 s
	ApplyInterval time.Duration // 20 s
	SpoolLimit    int64         // bytes, 0: the appliance's default
	Compression   string        // "": the appliance's default
	Dense         string        // recovery_points.dense, and no sparse ones; "": the defaults
}

// Rig is one appliance and what belongs to it. It is not safe for concurrent use, the commands of its CLI are.
type Rig struct {
	Options
	proc  *process
	reins *failpoint.Harness // of a mortal one
}

// New makes the directories and the configuration. It detaches a mount that an earlier run left at the mount point.
func New(o Options) (*Rig, error) {
	for _, d := range []struct{ dir, name *string }{{&o.Source, ptr("source")}, {&o.State, ptr("state")}, {&o.Mount, ptr("mount")}} {
		if *d.dir == "" {
			*d.dir = filepath.Join(o.Dir, *d.name)
		}
	}
	if o.Interval == 0 {
		o.Interval = 5 * time.Second
	}
	if o.ApplyInterval == 0 {
		o.ApplyInterval = 20 * time.Second
	}
	r := &Rig{Options: o}
	r.Detach()
	for _, dir := range []string{o.Dir, o.Source, o.State, o.Mount} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	return r, r.Configure()
}

func ptr(s string) *string { return &s }

// Configure writes the configuration again, after a change of the options. A running appliance does not look.
func (r *Rig) Configure() error {
	var b strings.Builder
	fmt.Fprintf(&b, "state_dir: %s\ncontrol_socket: %s\nmetrics_listen: \"\"\n", r.State, filepath.Join(r.Dir, "control.sock"))
	fmt.Fprintf(&b, "stores:\n  - name: main\n    source: %s\n    mount: %s\n", r.Source, r.Mount)
	fmt.Fprintf(&b, "target:\n  url: %s\n", r.URL)
	if r.Key != "" {
		key := filepath.Join(r.Dir, "key")
		if err := os.WriteFile(key, []byte(r.Key), 0o600); err != nil {
			return err
		}
		fmt.Fprintf(&b, "  credentials: {type: shared_key, file: %s}\n", key)
	}
	if r.Credentials != "" {
		fmt.Fprintf(&b, "  credentials: %s\n", r.Credentials)
	}
	if r.CAFile != "" {
		fmt.Fprintf(&b, "  ca_file: %s\n", r.CAFile)
	}
	if r.Window == "" {
		r.Window = `{from: "00:00", to: "00:00"}` // always
	}
	fmt.Fprintf(&b, "resync: {window: %s}\n", r.Window)
	fmt.Fprintf(&b, "replication:\n  interval: %v\n  apply_interval: %v\n", r.Interval, r.ApplyInterval)
	if r.SpoolLimit > 0 {
		fmt.Fprintf(&b, "  spool_limit: %d\n", r.SpoolLimit)
	}
	if r.Compression != "" {
		fmt.Fprintf(&b, "  compression: %s\n", r.Compression)
	}
	if r.Dense != "" {
		fmt.Fprintf(&b, "  recovery_points: {dense: %s, hourly: 0s, daily: 0s}\n", r.Dense)
	}
	return os.WriteFile(r.config(), []byte(b.String()), 0o600)
}

func (r *Rig) config() string { return filepath.Join(r.Dir, "vhdrelay.yaml") }

// LogFile is where the appliance's standard error goes, of all its runs.
func (r *Rig) LogFile() string { return filepath.Join(r.Dir, "vhdrelay.log") }

// startTimeout is long: a start may redo, claim and compare before it serves.
const startTimeout = 60 * time.Second

// Start runs the appliance and returns when the store is mounted and the control socket answers.
func (r *Rig) Start(ctx context.Context) error {
	if err := r.Launch(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	return r.Await(ctx, "the appliance to serve", func() (bool, error) {
		if !Mounted(r.Mount) {
			return false, nil
		}
		_, err := r.Status(ctx)
		return err == nil, nil
	})
}

// Launch runs the appliance and returns at once: it may die before it serves.
func (r *Rig) Launch() (err error) {
	if r.proc != nil {
		return errors.New("the appliance is running")
	}
	if r.Mortal != "" {
		return r.launchMortal()
	}
	args := []string{"serve", "--config", r.config()}
	if r.Debug {
		args = append(args, "--debug")
	}
	binary, env := r.Binary, r.environ()
	if r.Keeper {
		more, err := r.keep()
		if err != nil {
			return err
		}
		self, err := os.Executable()
		if err != nil {
			return err
		}
		binary, env, args = self, append(env, more...), append([]string{r.installed()}, args...)
	}
	r.proc, err = start(r.LogFile(), env, nil, binary, args...)
	return err
}

// environ is the environment of what is run.
func (r *Rig) environ() []string { return append(os.Environ(), r.Env...) }

// Await asks done every 100 ms until it says so. It ends early when the appliance does.
func (r *Rig) Await(ctx context.Context, what string, done func() (bool, error)) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("waiting for %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-r.exited():
			return fmt.Errorf("waiting for %s: the appliance ended (%v), see %s", what, r.proc.err, r.LogFile())
		case <-tick.C:
		}
	}
}

func (r *Rig) exited() <-chan struct{} {
	if r.proc == nil {
		return nil
	}
	return r.proc.done
}

// Pid is the process id of the appliance, 0 if none runs.
func (r *Rig) Pid() int {
	if r.proc == nil {
		return 0
	}
	if r.Keeper {
		return r.served()
	}
	return r.proc.cmd.Process.Pid
}

// Kill ends the appliance with SIGKILL and detaches the dead mount. Nobody running is no error.
func (r *Rig) Kill() error {
	err := r.proc.end(unix.SIGKILL, killTimeout)
	r.proc = nil
	r.Detach()
	return err
}

const (
	killTimeout = 30 * time.Second
	stopTimeout = 60 * time.Second
)

// Stop ends the appliance with SIGTERM, a clean stop, and says how it ended. What it leaves on disk is proven by `journal
// check`, so that every test is also one of that.
func (r *Rig) Stop() error {
	if r.proc == nil {
		return nil
	}
	p := r.proc
	if r.Keeper {
		if err := os.WriteFile(filepath.Join(r.Dir, "keeper", "stopping"), nil, 0o600); err != nil {
			return err
		}
	}
	if err := p.end(unix.SIGTERM, stopTimeout); err != nil {
		p.quit()
		return errors.Join(fmt.Errorf("stop: %w, see %s", err, r.LogFile()), r.Kill())
	}
	r.proc = nil
	r.Detach()
	if p.err != nil {
		return fmt.Errorf("stop: %w, see %s", p.err, r.LogFile())
	}
	return r.CheckState(context.Background())
}

// CheckState runs `journal check`: over the files while no appliance runs, else in the one that does.
func (r *Rig) CheckState(ctx context.Context) error {
	if _, err := r.Run(ctx, "journal", "check"); err != nil {
		return fmt.Errorf("the state contradicts itself: %w", err)
	}
	return nil
}

// Close ends what runs and leaves the files.
func (r *Rig) Close() error { return r.Kill() }

// Detach unmounts the store, even with open files; no mount is no error.
func (r *Rig) Detach() {
	for range 8 { // of several mounts on top of each other, none may stay
		if unix.Unmount(r.Mount, unix.MNT_DETACH) != nil {
			return
		}
	}
}

// Mounted says whether something is mounted at dir and answers.
func Mounted(dir string) bool {
	var here, above unix.Stat_t
	if unix.Stat(dir, &here) != nil || unix.Stat(filepath.Dir(dir), &above) != nil {
		return false
	}
	return here.Dev != above.Dev
}

// Memory is the most memory the appliance ever had resident, in bytes (VmHWM).
func (r *Rig) Memory() (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", r.Pid()))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("no VmHWM in /proc")
}

// Build compiles the appliance into dir and returns the path of the binary.
func Build(ctx context.Context, dir string) (string, error) {
	return build(ctx, filepath.Join(dir, "vhdrelay"), "github.com/vhdrelay/vhdrelay/appliance/cmd/vhdrelay")
}

// BuildMortal compiles the command mortal.
func BuildMortal(ctx context.Context, dir string) (string, error) {
	return build(ctx, filepath.Join(dir, "mortal"), "github.com/vhdrelay/vhdrelay/appliance/e2e/mortal")
}

func build(ctx context.Context, out, pkg string, flags ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", append(append([]string{"build", "-o", out}, flags...), pkg)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, text)
	}
	return out, nil
}
