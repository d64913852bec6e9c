package stage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// tools skips a test whose tools are not installed.
func tools(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("%v: run `make tools`", err)
		}
	}
}

// stubbed is a guest whose appliance is a shell script; $D in it is the rig's directory.
func stubbed(t *testing.T, script string) *guest {
	t.Helper()
	dir := t.TempDir()
	stub := filepath.Join(dir, "stub")
	if err := os.WriteFile(stub, []byte("#!/bin/sh\nD="+dir+"\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	a, err := rig.New(rig.Options{Dir: dir, Binary: stub, URL: "dir://" + dir + "/replicas"})
	if err != nil {
		t.Fatal(err)
	}
	return &guest{env: &Env{Out: io.Discard}, report: NewReport(io.Discard), rig: a, vm: "stamped", scratch: filepath.Join(dir, "export")}
}

func failures(t *testing.T, r *Report, want ...string) {
	t.Helper()
	got := r.Failures()
	if len(got) != len(want) {
		t.Fatalf("%d failures, want %d: %v", len(got), len(want), got)
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Fatalf("%q does not say %q", got[i], want[i])
		}
	}
}

// Each limit of an outage is a failure when it is passed, and none before.
func TestOutageIsJudged(t *testing.T) {
	ms := func(n int) []time.Duration { return []time.Duration{time.Duration(n) * time.Millisecond} }
	for name, c := range map[string]struct {
		o    outages
		want []string
	}{
		"good":    {outages{quota: 100, spooled: 100, used: 100 + stateSlack, up: ms(10), down: ms(12)}, nil},
		"slow":    {outages{quota: 100, up: ms(10), down: ms(13)}, []string{"p99"}},
		"spooled": {outages{quota: 100, spooled: 101, up: ms(1), down: ms(1)}, []string{"101 bytes spooled"}},
		"used":    {outages{quota: 100, used: 101 + stateSlack, up: ms(1), down: ms(1)}, []string{"state directory takes"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReport(io.Discard)
			c.o.judge(r)
			failures(t, r, c.want...)
		})
	}
}

// A kill is recovered from when a point comes that was sealed after the start, and only what was written is suspect.
func TestRecoveryIsJudged(t *testing.T) {
	began := time.Now().Add(-time.Hour)
	status := func(at time.Time, suspect int64) string {
		return fmt.Sprintf(`echo '{"vms":[{"name":"stamped","last_point":{"id":"1-1","time":"%s"},"resync":{"state":"idle"},"recovery":{"suspect_bytes":%d}}]}'`,
			at.UTC().Format(time.RFC3339Nano), suspect)
	}
	good := &killer{guest: stubbed(t, status(began.Add(time.Minute), 8<<20))}
	good.disks = []disk{{size: 8 << 20, span: 8 << 20}}
	if err := good.recovered(t.Context(), began); err != nil {
		t.Fatal(err)
	}
	failures(t, good.report)
	bad := &killer{guest: stubbed(t, status(began.Add(time.Minute), 8<<20+1))}
	bad.disks = good.disks
	if err := bad.recovered(t.Context(), began); err != nil {
		t.Fatal(err)
	}
	failures(t, bad.report, "are suspect after a kill")
	stale := &killer{guest: stubbed(t, status(began.Add(-time.Minute), 0))}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := stale.recovered(ctx, began); err == nil {
		t.Fatal("an old point is no recovery")
	}
}

// What was answered before a kill and is not in the store is a failure, and the next era begins with what is there.
func TestStoreAfterAKillIsJudged(t *testing.T) {
	k := &killer{guest: stubbed(t, "exit 1")}
	k.disks = []disk{{name: "x.raw", size: 1 << 20}}
	path := filepath.Join(k.rig.Source, k.vm, "x.raw")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := k.begin(); err != nil {
		t.Fatal(err)
	}
	if err := k.kill(); err != nil {
		t.Fatal(err)
	}
	failures(t, k.report)
	id, _ := k.log.Begin(0, 0, 0, 3, 1)
	k.log.End(id, time.Millisecond, false)
	if err := k.kill(); err != nil {
		t.Fatal(err)
	}
	failures(t, k.report, "is absent")
	if len(k.eras) != 3 || k.log != k.eras[2].log {
		t.Fatalf("%d eras", len(k.eras))
	}
}

// An early point may lack a disk; its other disks are judged.
func TestPointWithoutADisk(t *testing.T) {
	g := stubbed(t, "exit 0")
	g.disks = []disk{{name: "a.raw", size: 8192}, {name: "b.vhd", size: 4096}}
	if err := os.MkdirAll(g.scratch, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(rig.Exported(g.scratch, "b.vhd"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	images, err := g.readPoint(rig.Point{Disks: []rig.PointDisk{{Name: "b.vhd"}}})
	if err != nil || len(images) != 2 {
		t.Fatal(images, err)
	}
	var clock stamp.Clock
	whole := stamp.NewLog(&clock, images)
	if whole.Blocks(0) != 0 || whole.Blocks(1) != 1 {
		t.Fatal("the wrong disk is absent")
	}
	if _, err := g.readPoint(rig.Point{Disks: []rig.PointDisk{{Name: "a.raw"}}}); err == nil {
		t.Fatal("a disk of the point that was not exported")
	}
}

func TestSparseDiskIsSparse(t *testing.T) {
	g := stubbed(t, "exit 0")
	s := &sparseDisk{env: g.env, size: 256 << 20, data: 8 << 20}
	if err := s.create(g.rig); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(g.rig.Source, sparseVM, sparseName)
	info, err := os.Stat(path)
	if err != nil || info.Size() != s.size {
		t.Fatal(info, err)
	}
	if n, err := rig.Allocated(path); err != nil || n < s.data || n > s.data+1<<20 {
		t.Fatal(n, err)
	}
}

// A replica is refused for its size, its content and its footer.
func TestReplicaIsJudged(t *testing.T) {
	tools(t, "qemu-img", "vhdiinfo", "cp")
	g := stubbed(t, "exit 0")
	d := disk{name: "x.raw", size: 2 << 20}
	g.disks = []disk{d}
	replicas := filepath.Join(g.rig.Dir, "replicas")
	replica := filepath.Join(replicas, g.vm, d.name, "replica.vhd")
	target, err := rig.DirTarget(replicas)
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(createDisk(t.Context(), filepath.Join(g.rig.Source, g.vm, d.name), d.size), createDisk(t.Context(), replica, d.size))
	if err != nil {
		t.Fatal(err)
	}
	judge := func(size int64) error {
		return g.replica(t.Context(), target, 0, disk{name: d.name, size: size})
	}
	if err := judge(d.size); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(replica, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte{1}, 4096); err != nil {
		t.Fatal(err)
	}
	if err := judge(d.size); err == nil {
		t.Fatal("another content")
	}
	if _, err := f.WriteAt([]byte{0}, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, footer), d.size); err != nil {
		t.Fatal(err)
	}
	if err := judge(d.size); err == nil {
		t.Fatal("no footer")
	}
	if err := f.Truncate(d.size); err != nil {
		t.Fatal(err)
	}
	if err := judge(d.size); err == nil {
		t.Fatal("another size")
	}
}

func TestLoseState(t *testing.T) {
	s := &stormer{killer: &killer{guest: stubbed(t, "exit 0")}, target: &rig.Target{}}
	if err := os.MkdirAll(filepath.Join(s.rig.State, "deep", "er"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.loseState(); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(s.rig.State); err != nil || len(entries) != 0 {
		t.Fatal(entries, err)
	}
}
