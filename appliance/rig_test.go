package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
)

// The environment that makes the test binary an appliance that can be killed.
const (
	serveEnv = "VHDRELAY_TEST_SERVE" // the config
	pointEnv = "VHDRELAY_TEST_POINT" // the failpoint it dies at
	clockEnv = "VHDRELAY_TEST_CLOCK" // how far its clock goes ahead
	termEnv  = "VHDRELAY_TEST_TERM"  // not empty: it is told to stop there instead
)

func TestMain(m *testing.M) {
	if path := os.Getenv(serveEnv); path != "" {
		os.Exit(serveChild(path))
	}
	os.Exit(m.Run())
}

func serveChild(path string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	conf, err := config.Load(path)
	if err == nil {
		err = Serve(ctx, conf, Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Hook: dieAt(os.Getenv(pointEnv), path), Now: clock(os.Getenv(clockEnv))})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// clock is one that goes ahead, or behind.
func clock(by string) func() time.Time {
	ahead, err := time.ParseDuration(by)
	if err != nil {
		return nil
	}
	return func() time.Time { return time.Now().Add(ahead) }
}

// always is a window that is never closed.
const always = "resync: {window: {from: \"00:00\", to: \"00:00\"}}\n"

const (
	mib     = 1 << 20
	timeout = 15 * time.Second // of anything a test waits for
)

// rig is an appliance in this process, over directories of its own and a directory target.
type rig struct {
	t                           *testing.T
	source, mount, state, store string
	path, socket                string
	extra                       string         // lines of the config
	failpoint                   string         // where a child dies, "" for nowhere
	clock                       string         // how far a child's clock goes ahead
	mounted                     bool           // the state directory is a file system of its own
	signal                      syscall.Signal // of what a child dies; zero: SIGKILL
	window                      string         // the line of resync: comparisons may run at any time, unless a test says otherwise
	client                      *control.Client
	app                         *Appliance // nil while it does not run
	cancel                      context.CancelFunc
	done                        chan error
	log                         *record
	rand                        *rand.Rand
}

// newRig makes the directories and the config. It skips where a store cannot be mounted.
func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount a store")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("needs /dev/fuse to mount a store: ", err)
	}
	dir := t.TempDir()
	r := &rig{t: t, log: &record{}, window: always, source: filepath.Join(dir, "source"), mount: filepath.Join(dir, "mount"), state: filepath.Join(dir, "state"),
		store: filepath.Join(dir, "target"), path: filepath.Join(dir, "vhdrelay.yaml"), socket: filepath.Join(dir, "s"), rand: rand.New(rand.NewPCG(1, 2))}
	for _, d := range []string{r.source, r.mount, r.state} {
		r.must(os.MkdirAll(d, 0o700))
	}
	r.client = control.NewClient(r.socket)
	t.Cleanup(r.clean)
	return r
}

// clean takes the rig down and shows the log of a test that failed.
func (r *rig) clean() {
	if r.app != nil {
		if err := r.end(); err != nil {
			r.t.Errorf("stop: %v", err)
		}
	}
	unix.Unmount(r.mount, unix.MNT_DETACH)
	if r.mounted {
		unix.Unmount(r.state, unix.MNT_DETACH)
	}
	if err := fs.ReleaseMountPoint(r.mount); err != nil {
		r.t.Errorf("release the mount point: %v", err)
	}
	if r.t.Failed() {
		r.t.Logf("log of the appliance:\n%s", r.log.String())
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), timeout)
	r.t.Cleanup(cancel)
	return ctx
}

// config writes the file and reads it.
func (r *rig) config() *config.Config {
	r.t.Helper()
	text := fmt.Sprintf(`state_dir: %s
control_socket: %s
metrics_listen: ""
stores: [{name: main, source: %s, mount: %s}]
target: {url: "dir://%s"}
replication: {interval: 5s, apply_interval: 1s}
%s%s`, r.state, r.socket, r.source, r.mount, r.store, r.window, r.extra)
	r.must(os.WriteFile(r.path, []byte(text), 0o600))
	conf, err := config.Load(r.path)
	r.must(err)
	return conf
}

// start serves, and returns when the socket answers.
func (r *rig) start() {
	r.t.Helper()
	r.must(r.tryStart(r.config()))
}

func (r *rig) tryStart(conf *config.Config) error {
	r.t.Helper()
	app, closeState, err := open(conf, Options{Log: slog.New(slog.NewTextHandler(r.log, nil))})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	r.app, r.cancel, r.done = app, cancel, make(chan error, 1)
	go func() { r.done <- errors.Join(app.serve(ctx), closeState()) }()
	if _, err := r.client.Status(r.ctx(), ""); err != nil {
		return r.end()
	}
	return nil
}

// end stops the appliance and returns how it ended.
func (r *rig) end() error {
	r.t.Helper()
	r.cancel()
	return r.ended()
}

// ended waits for the appliance to end.
func (r *rig) ended() error {
	r.t.Helper()
	r.app = nil
	select {
	case err := <-r.done:
		return err
	case <-time.After(timeout):
		r.t.Fatal("the appliance does not stop")
	}
	return nil
}

func (r *rig) stop() {
	r.t.Helper()
	r.must(r.end())
}

// content is n random bytes.
func (r *rig) content(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(r.rand.Uint32())
	}
	return p
}

// write makes or overwrites a file at the mount.
func (r *rig) write(name string, content []byte) {
	r.t.Helper()
	path := filepath.Join(r.mount, name)
	r.must(os.MkdirAll(filepath.Dir(path), 0o755))
	r.must(os.WriteFile(path, content, 0o644))
}

// change writes at an offset of a file at the mount.
func (r *rig) change(name string, off int64, content []byte) {
	r.t.Helper()
	f, err := os.OpenFile(filepath.Join(r.mount, name), os.O_RDWR, 0)
	r.must(err)
	_, err = f.WriteAt(content, off)
	r.must(errors.Join(err, f.Close()))
}

// put makes a file in the source while nothing serves it.
func (r *rig) put(name string, content []byte) {
	r.t.Helper()
	path := filepath.Join(r.source, name)
	r.must(os.MkdirAll(filepath.Dir(path), 0o755))
	r.must(os.WriteFile(path, content, 0o644))
}

// vhd is a fixed VHD of the content.
func vhd(content []byte) []byte {
	footer := image.FixedFooter(int64(len(content)), [16]byte{1, 2, 3}, time.Unix(1e9, 0))
	return append(bytes.Clone(content), footer[:]...)
}

func (r *rig) rename(from, to string) {
	r.t.Helper()
	r.must(os.Rename(filepath.Join(r.mount, from), filepath.Join(r.mount, to)))
}

// sync makes a point of what is there now and returns its id.
func (r *rig) sync(vm string) string {
	r.t.Helper()
	res, err := r.client.Sync(r.ctx(), vm, true, nil)
	r.must(err)
	if res.Point == "" {
		r.t.Fatalf("epoch %d of %s became no point", res.Epoch, vm)
	}
	return res.Point
}

// vm is the status of one VM.
func (r *rig) vm(name string) control.VM {
	r.t.Helper()
	s, err := r.client.Status(r.ctx(), name)
	r.must(err)
	return s.VMs[0]
}

// await asks for the VM until the condition holds; there may be none yet.
func (r *rig) await(vm, what string, holds func(control.VM) bool) control.VM {
	r.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	ctx := r.ctx()
	for {
		s, err := r.client.Status(ctx, "")
		r.must(err)
		for _, v := range s.VMs {
			if v.Name == vm && holds(v) {
				return v
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("%s of %s: never, it is %+v", what, vm, r.vm(vm))
		}
	}
}

func hasReason(code string) func(control.VM) bool {
	return func(v control.VM) bool {
		for _, reason := range v.Reasons {
			if reason.Code == code {
				return true
			}
		}
		return false
	}
}

// equals exports a point and compares it with the files of the source: file by the
// name of the disk. It also proves the point.
func (r *rig) equals(vm, point string, want map[string][]byte) {
	r.t.Helper()
	conf := r.config()
	spec, err := cli.ParsePoint(point)
	r.must(err)
	out := filepath.Join(r.t.TempDir(), "out")
	res, err := Export(r.ctx(), conf.Target, cli.ExportRequest{VM: vm, Point: spec, Output: out, Format: cli.FormatRaw}, nil)
	r.must(err)
	got := map[string]bool{}
	for _, f := range res.Files {
		content, err := os.ReadFile(f.Path)
		r.must(err)
		got[f.Disk] = true
		if !bytes.Equal(content, want[f.Disk]) {
			r.t.Errorf("point %s, disk %s: %d bytes that are not the source's %d, from byte %d on", point, f.Disk, len(content), len(want[f.Disk]), firstDifference(content, want[f.Disk]))
		}
	}
	for name := range want {
		if !got[name] {
			r.t.Errorf("point %s has no disk %s, but %v", point, name, res.Files)
		}
	}
	v, err := Verify(r.ctx(), conf.Target, cli.VerifyRequest{VM: vm, Point: spec}, nil)
	r.must(err)
	if len(v.Disks) != len(want) {
		r.t.Errorf("point %s: %d disks verified, want %d", point, len(v.Disks), len(want))
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// child runs the appliance in a process that can be killed.
func (r *rig) child() *exec.Cmd {
	r.t.Helper()
	r.config()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveEnv+"="+r.path, pointEnv+"="+r.failpoint, clockEnv+"="+r.clock)
	if r.signal == syscall.SIGTERM {
		cmd.Env = append(cmd.Env, termEnv+"=1")
	}
	cmd.Stderr = r.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r.must(cmd.Start())
	r.t.Cleanup(func() {
		_ = cmd.Process.Kill() // ended already, in a test that got so far
		_ = cmd.Wait()
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for ctx := r.ctx(); ; {
		if _, err := r.client.Status(ctx, ""); err == nil {
			return cmd
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.t.Fatalf("the child does not serve: %s", r.log.String())
		}
	}
}

// kill ends the child as a crash does.
func (r *rig) kill(cmd *exec.Cmd) {
	r.t.Helper()
	r.must(cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	unix.Unmount(r.mount, unix.MNT_DETACH)
}

// record is a log that is read while it is written.
type record struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (l *record) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *record) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// logged tells whether the log has the text.
func (r *rig) logged(text string) bool { return strings.Contains(r.log.String(), text) }

var discard = slog.New(slog.DiscardHandler)
