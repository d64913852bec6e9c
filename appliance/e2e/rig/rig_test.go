package rig

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stub is an executable that stands for the appliance.
func stub(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stub")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func newRig(t *testing.T, body string) *Rig {
	t.Helper()
	r, err := New(Options{Dir: t.TempDir(), Binary: stub(t, body), URL: "dir:///nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func TestConfigure(t *testing.T) {
	r := newRig(t, "")
	r.Key, r.SpoolLimit, r.Compression, r.Interval = "secret", 1<<30, "best", 7*time.Second
	if err := r.Configure(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(r.Dir, "vhdrelay.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"source: " + r.Source, "mount: " + r.Mount, "interval: 7s", "spool_limit: 1073741824", "compression: best", "shared_key", "url: dir:///nowhere"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%s lacks %q", text, want)
		}
	}
	if strings.Contains(string(text), "secret") {
		t.Error("the key is in the configuration")
	}
}

func TestCommands(t *testing.T) {
	r := newRig(t, `case "$1" in
status) echo '{"vms":[{"name":"a","spooled_bytes":7,"last_point":{"id":"1-2"}}]}';;
points) echo '{"vm":"a","points":[{"id":"1-2","disks":[{"name":"d"}]}]}';;
sync) echo '{"epoch":3}';;
export) mkdir -p "$6";;
*) echo "no: $*" >&2; exit 7;;
esac`)
	vm, err := r.VM(t.Context(), "a")
	if err != nil || vm.SpooledBytes != 7 || vm.LastPoint.ID != "1-2" {
		t.Fatalf("%+v, %v", vm, err)
	}
	if _, err := r.VM(t.Context(), "b"); err == nil {
		t.Fatal("a VM that is not there")
	}
	points, err := r.Points(t.Context(), "a")
	if err != nil || len(points) != 1 || !points[0].Has("d") || points[0].Has("e") {
		t.Fatalf("%+v, %v", points, err)
	}
	if _, err := r.Sync(t.Context(), "a"); err == nil {
		t.Fatal("a sync without a point")
	}
	if err := r.Export(t.Context(), "a", "1-2", filepath.Join(r.Dir, "out")); err != nil {
		t.Fatal(err)
	}
	err = r.Verify(t.Context(), "a", "1-2")
	failed, ok := errors.AsType[*CommandError](err)
	if !ok || failed.Code != ExitDifferences || !strings.Contains(failed.Output, "no: verify a --point 1-2") {
		t.Fatal(err)
	}
}

func TestOutputThatIsNoJSON(t *testing.T) {
	r := newRig(t, "echo hello")
	if _, err := r.Status(t.Context()); err == nil {
		t.Fatal("hello is a status")
	}
}

// An appliance that ends instead of serving is noticed at once, and one that never serves when the context ends.
func TestStartFails(t *testing.T) {
	r := newRig(t, `[ "$1" = serve ] && { echo broken; exit 3; }; exit 4`)
	if err := r.Start(t.Context()); err == nil || r.Pid() == 0 {
		t.Fatal(err)
	}
	text, err := os.ReadFile(r.LogFile())
	if err != nil || !strings.Contains(string(text), "broken") {
		t.Fatalf("%s, %v", text, err)
	}
	if err := r.Start(t.Context()); err == nil {
		t.Fatal("two appliances at once")
	}
}

func TestStopAndKill(t *testing.T) {
	body := `[ "$1 $2" = "journal check" ] && exit 0
[ "$1" = serve ] || exit 4
trap 'exit 0' TERM
echo ready >> "$3.ready"
while :; do read -r _ < "$3.never"; done`
	for _, end := range []func(*Rig) error{(*Rig).Stop, (*Rig).Kill} {
		r := newRig(t, body)
		ready := filepath.Join(r.Dir, "vhdrelay.yaml.ready")
		for _, fifo := range []string{ready, filepath.Join(r.Dir, "vhdrelay.yaml.never")} {
			if err := unix.Mkfifo(fifo, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := start(r.LogFile(), r.environ(), nil, r.Binary, "serve", "--config", r.config())
		if err != nil {
			t.Fatal(err)
		}
		r.proc = p
		if _, err := os.ReadFile(ready); err != nil { // returns when the trap is set
			t.Fatal(err)
		}
		if err := end(r); err != nil {
			t.Fatal(err)
		}
		if r.Pid() != 0 {
			t.Fatal("it has a process still")
		}
		if err := end(r); err != nil {
			t.Fatalf("the second time: %v", err)
		}
	}
}

func TestMemoryOfAProcess(t *testing.T) {
	r := newRig(t, "exec sleep 1000")
	if _, err := r.Memory(); err == nil {
		t.Fatal("nobody runs")
	}
	p, err := start(r.LogFile(), r.environ(), nil, r.Binary)
	if err != nil {
		t.Fatal(err)
	}
	r.proc = p
	if n, err := r.Memory(); err != nil || n < 1<<10 {
		t.Fatalf("%d, %v", n, err)
	}
}

func TestMounted(t *testing.T) {
	if dir := t.TempDir(); Mounted(dir) || Mounted(filepath.Join(dir, "absent")) {
		t.Fatal("nothing is mounted there")
	}
	if !Mounted("/proc") {
		t.Fatal("/proc is no mount")
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	before, err := Usage(dir)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "a")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<30); err != nil {
		t.Fatal(err)
	}
	after, err := Usage(dir)
	if n := after - before; err != nil || n < 1<<20 || n > 2<<20 {
		t.Fatalf("%d bytes more, %v", n, err)
	}
	if n, err := Allocated(path); err != nil || n < 1<<20 || n > 2<<20 {
		t.Fatalf("%d, %v", n, err)
	}
	if n, err := Usage(filepath.Join(dir, "absent")); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
}

func TestThawOfOrdinaryDirectories(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(Thaw(dir), Thaw(filepath.Join(dir, "absent"))); err != nil {
		t.Fatal(err)
	}
}

func TestShell(t *testing.T) {
	s, err := StartShell("cat")
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := s.Ask("one\n"); err != nil || answer != "one" {
		t.Fatalf("%q, %v", answer, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Ask("two\n"); err == nil {
		t.Fatal("a closed shell answers")
	}
}

func TestDirTarget(t *testing.T) {
	dir := t.TempDir()
	target, err := DirTarget(dir)
	if err != nil || target.URL != "dir://"+dir || target.Close() != nil {
		t.Fatalf("%+v, %v", target, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "blob"), []byte("bytes"), 0o600); err != nil {
		t.Fatal(err)
	}
	to := filepath.Join(t.TempDir(), "copy")
	if err := target.Download(t.Context(), "blob", to); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(to); err != nil || string(got) != "bytes" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := target.Download(t.Context(), "absent", to); err == nil {
		t.Fatal("an absent blob is downloaded")
	}
}

// A stop that leaves a state which contradicts itself is no clean one.
func TestStopChecksWhatIsLeft(t *testing.T) {
	r := newRig(t, `[ "$1 $2" = "journal check" ] && { echo "tables/x.table: rotten" >&2; exit 7; }
exit 0`)
	p, err := start(r.LogFile(), r.environ(), nil, r.Binary, "serve", "--config", r.config())
	if err != nil {
		t.Fatal(err)
	}
	r.proc = p
	<-p.done
	if err := r.Stop(); err == nil || !strings.Contains(err.Error(), "rotten") {
		t.Errorf("%v", err)
	}
}
