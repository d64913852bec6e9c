package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

func TestNamesOfStages(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range All {
		if s.Name == "" || s.About == "" || s.Run == nil || seen[s.Name] {
			t.Errorf("%+v", s.Name)
		}
		seen[s.Name] = true
	}
}

func TestReport(t *testing.T) {
	var out bytes.Buffer
	r := NewReport(&out)
	r.Figure("speed", "%d MB/s", 7)
	if !r.Check(nil, "fine") || r.Check(errors.New("broken"), "disk %d", 3) {
		t.Fatal("Check says the opposite")
	}
	r.Fail("torn")
	if got := r.Failures(); len(got) != 2 || got[0] != "disk 3: broken" || got[1] != "torn" {
		t.Fatal(got)
	}
	if got := r.Figures(); len(got) != 1 || got[0] != (Figure{"speed", "7 MB/s"}) {
		t.Fatal(got)
	}
	if !strings.Contains(out.String(), "FAIL torn") {
		t.Fatal(out.String())
	}
}

func TestScale(t *testing.T) {
	full, short := &Env{}, &Env{Short: true, Seed: 4}
	if full.scale(time.Minute) != time.Minute || short.scale(time.Minute) != 6*time.Second {
		t.Fatal("scale")
	}
	if full.count(100, 9) != 100 || short.count(100, 9) != 9 {
		t.Fatal("count")
	}
	if short.rng(1).Uint64() != short.rng(1).Uint64() || short.rng(1).Uint64() == short.rng(2).Uint64() {
		t.Fatal("the seed decides, for each stream on its own")
	}
}

func TestFreshAndClean(t *testing.T) {
	e := &Env{Dir: filepath.Join(t.TempDir(), "work"), Out: io.Discard}
	dir, err := e.fresh("a")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if dir, err = e.fresh("a"); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Fatal(entries, err)
	}
	if err := e.Clean(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(e.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// The newest ten are always judged, the others evenly.
func TestSample(t *testing.T) {
	var points []rig.Point
	for i := range 100 {
		points = append(points, rig.Point{Epoch: uint64(i)})
	}
	got := sample(points, 40)
	if len(got) != 40 || got[0].Epoch != 0 || got[29].Epoch != 87 || got[30].Epoch != 90 || got[39].Epoch != 99 {
		t.Fatal(got)
	}
	if len(sample(points[:40], 40)) != 40 {
		t.Fatal("40 are not too many")
	}
}

func TestQuantile(t *testing.T) {
	var list []time.Duration
	for i := 100; i > 0; i-- {
		list = append(list, time.Duration(i))
	}
	if quantile(list, 0.99) != 99 || quantile(list, 1) != 100 || quantile(nil, 0.5) != 0 || list[0] != 100 {
		t.Fatal("quantile")
	}
}

func TestSpans(t *testing.T) {
	disks := []disk{{size: 16 << 20}, {size: 256 << 20, span: 5 << 20}}
	if got := spanOf(disks); got != 20<<20+8<<20 {
		t.Fatal(got >> 20)
	}
	if got := sizeOf(disks); got != 272<<20 {
		t.Fatal(got)
	}
	if memoryLimit(1<<40) != 288<<20 || memoryLimit(24<<30)>>10 != 192<<10+24*96 {
		t.Fatal("memory")
	}
}

// A point belongs to the history its seal falls into.
func TestEraOf(t *testing.T) {
	at := func(s int) time.Time { return time.Unix(int64(s), 0) }
	g := &guest{eras: []*era{{from: at(10)}, {from: at(20)}, {from: at(30)}}}
	for s, want := range map[int]int{5: 0, 10: 0, 19: 0, 20: 1, 29: 1, 30: 2, 99: 2} {
		if got := g.eraOf(rig.Point{Time: at(s)}); got != g.eras[want] {
			t.Errorf("second %d is not of era %d", s, want)
		}
	}
}

// window moves the load over all quarters and stays within the disks.
func TestWindow(t *testing.T) {
	c := &cutter{guest: &guest{disks: powercutDisks, load: stamp.Load{Span: make([]stamp.Span, len(powercutDisks))}}}
	seen := make(map[stamp.Span]bool)
	for i := range 8 {
		c.window(i)
		for d, s := range c.load.Span {
			if s.From >= s.To || s.To > c.disks[d].size/stamp.BlockSize {
				t.Fatalf("%+v of disk %d", s, d)
			}
		}
		seen[c.load.Span[0]] = true
	}
	if len(seen) != 4 {
		t.Fatal(seen)
	}
}

// A load that ends by itself is noticed while waiting, and told again to whoever stops it.
func TestPauseNoticesTheLoad(t *testing.T) {
	broken := errors.New("broken")
	_, cancel := context.WithCancel(t.Context())
	g := &guest{running: &running{cancel: cancel, done: make(chan error, 1)}}
	if err := g.pause(t.Context(), time.Millisecond); err != nil {
		t.Fatal(err)
	}
	g.running.done <- broken
	if err := g.pause(t.Context(), time.Hour); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := g.stop(); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestTree(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	for n := int64(1); n <= 40; n++ {
		if err := writeTreeFile(dir, n, treeFile(rng, n*2)); err != nil {
			t.Fatal(err)
		}
	}
	if last, err := checkTree(dir, 80); err != nil || last != 40 {
		t.Fatal(last, err)
	}
	if _, err := checkTree(dir, 79); err == nil {
		t.Fatal("a file names a transaction that is not there")
	}
	if err := os.Remove(treePath(dir, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := checkTree(dir, 80); err != nil {
		t.Fatalf("the oldest may go: %v", err)
	}
	if err := os.WriteFile(treePath(dir, 41)+".new", []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := checkTree(dir, 80); err != nil {
		t.Fatalf("a file without its name may be half: %v", err)
	}
	if err := os.Remove(treePath(dir, 20)); err != nil {
		t.Fatal(err)
	}
	if _, err := checkTree(dir, 80); err == nil {
		t.Fatal("a gap")
	}
	spoil(t, treePath(dir, 30))
	if err := checkTreeFile(treePath(dir, 30), 80); err == nil {
		t.Fatal("a spoiled file")
	}
	if last, err := checkTree(t.TempDir(), 0); err != nil || last != 0 {
		t.Fatal(last, err)
	}
}

func spoil(t *testing.T, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)-1] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTreeFileNamesItsTransaction(t *testing.T) {
	data := treeFile(rand.New(rand.NewPCG(1, 2)), 17)
	head, body, _ := bytes.Cut(data, []byte{'\n'})
	if want := fmt.Sprintf("17 %08x", crc32.ChecksumIEEE(body)); string(head) != want {
		t.Fatalf("%s, want %s", head, want)
	}
}

func TestTransaction(t *testing.T) {
	text := transaction(rand.New(rand.NewPCG(1, 2)), 9)
	if !strings.HasPrefix(text, "BEGIN; INSERT INTO log VALUES(9,") || !strings.HasSuffix(text, "SELECT max(id) FROM log;\n") || strings.Count(text, "\n") != 1 {
		t.Fatal(text)
	}
}

func TestLineOf(t *testing.T) {
	if got := lineOf("a: 1\n b:   2 \nc", "b:"); got != "b: 2" {
		t.Fatal(got)
	}
	if got := lineOf("a", "b"); got != "b: not said" {
		t.Fatal(got)
	}
}

// The whole way without an appliance: a store, its own export, a crash.
func TestGuestJudgesPoints(t *testing.T) {
	dir := t.TempDir()
	stub := filepath.Join(dir, "stub")
	// The stub's export is a copy of the store, which is right while nothing writes.
	script := "#!/bin/sh\n[ $1 = export ] && cp -r --reflink=auto " + dir + "/source/stamped $6 && mkdir -p $6 && mv $6/x.img $6/x.raw\nexit 0\n"
	if err := os.WriteFile(stub, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "source", "stamped", "x.img")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, make([]byte, 1<<20), 0o600)); err != nil {
		t.Fatal(err)
	}
	a, err := rig.New(rig.Options{Dir: dir, Binary: stub, Mount: filepath.Join(dir, "source"), URL: "dir://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	g := &guest{env: &Env{Out: io.Discard}, report: NewReport(io.Discard), rig: a, vm: "stamped", disks: []disk{{name: "x.img", size: 1 << 20}},
		scratch: filepath.Join(dir, "export"), load: stamp.Load{Modes: []stamp.Mode{stamp.Buffered}}}
	if err := g.begin(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	g.start(t.Context())
	if err := errors.Join(g.pause(t.Context(), 300*time.Millisecond), g.stop()); err != nil {
		t.Fatal(err)
	}
	point := rig.Point{ID: "1-1", Time: time.Now(), Disks: []rig.PointDisk{{Name: "x.img"}}}
	whole := stamp.Bounds{After: math.MaxInt64, Before: math.MaxInt64}
	if err := g.check(t.Context(), point, whole); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, before, 0o600); err != nil {
		t.Fatal(err)
	}
	point.ID = "1-2"
	if err := g.check(t.Context(), point, whole); err == nil {
		t.Fatal("a point without any of the writes")
	}
	if _, err := os.Stat(g.scratch + "-1-2"); err != nil {
		t.Fatalf("the evidence: %v", err)
	}
}
