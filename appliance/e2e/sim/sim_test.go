package sim

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

var (
	firstSeed = flag.Uint64("sim.seed", 1, "first seed")
	seedCount = flag.Int("sim.count", 0, "number of seeds; 0: those of make test")
	onlySteps = flag.String("sim.steps", "", "numbers of the steps to play, comma separated; empty: all, - none")
	logged    = flag.Bool("sim.log", false, "print the log of the appliance")
	traceFile = flag.String("sim.trace", "", "file for what happens, in order, in the last seed")
	noShrink  = flag.Bool("sim.noshrink", false, "do not look for the steps that matter")
)

const steady = "asyncpreemptoff=1"

// run plays one history and returns what was wrong and what struck.
func run(t *testing.T, seed uint64, steps []Step) (wrong []string, counts map[string]int) {
	wrong, counts, trace := traced(t, seed, steps, *traceFile != "")
	if *traceFile != "" {
		if err := os.WriteFile(*traceFile, []byte(strings.Join(trace, "\n")), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return wrong, counts
}

func traced(t *testing.T, seed uint64, steps []Step, trace bool) (wrong []string, counts map[string]int, events []string) {
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	runtime.GC()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(seed, dir)
		if *logged {
			w.log = os.Stdout
		}
		w.mu.traced = trace
		w.play(steps)
		wrong, counts, events = w.mu.wrong, w.counts(), w.mu.trace
	})
	return wrong, counts, events
}

// TestMain makes what the process shares between bubbles before the first of them: a channel that was made in one cannot be
// used in another.
//
// One processor, no preemption and no collector while a history runs: what is left of chance is small enough for most
// histories to be the same every time.
func TestMain(m *testing.M) {
	if os.Getenv("GODEBUG") != steady {
		env := append(os.Environ(), "GOMAXPROCS=1", "GODEBUG="+steady, "GOGC=400")
		fmt.Fprintln(os.Stderr, syscall.Exec("/proc/self/exe", os.Args, env)) // returns only to say why not
		os.Exit(1)
	}
	var file bytes.Buffer
	out, err := segment.NewWriter(&file, segment.Header{VM: "vm", Disk: "disk", Generation: 1, Epoch: 1, EpochUUID: [16]byte{1}, UUID: [16]byte{2}, VirtualSize: page}, segment.Fastest)
	if err == nil {
		err = out.Data(0, make([]byte, page), []checksum.Sum{checksum.Block(make([]byte, page))})
	}
	if err == nil {
		_, err = out.Close()
	}
	if err == nil {
		var r *segment.Reader
		if r, err = segment.Open(bytes.NewReader(file.Bytes()), int64(file.Len())); err == nil {
			err = r.Verify()
		}
	}
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

func selected(t *testing.T, seed uint64) []Step {
	steps := Steps(seed)
	if *onlySteps == "" {
		return steps
	}
	var some []Step
	for n := range strings.SplitSeq(*onlySteps, ",") {
		if n == "-" {
			continue
		}
		i, err := strconv.Atoi(n)
		if err != nil || i >= len(steps) {
			t.Fatalf("-sim.steps: %q is no step of seed %d", n, seed)
		}
		some = append(some, steps[i])
	}
	return some
}

func TestHistories(t *testing.T) {
	n, whole := *seedCount, *seedCount == 0
	if whole {
		n = fixedSeeds
	}
	if whole && testing.Short() { // under the race detector each takes ten times as long
		n, whole = shortSeeds, false
		t.Logf("-short: %d of %d seeds, and not every kind of fault", shortSeeds, fixedSeeds)
	}
	struck := map[string]int{}
	for seed := *firstSeed; seed < *firstSeed+uint64(n); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			stop := watchdog(seed)
			defer stop()
			began := time.Now()
			steps := selected(t, seed)
			wrong, counts := run(t, seed, steps)
			for k, c := range counts {
				struck[k] += c
			}
			fmt.Printf("seed %d: %v in %v\n", seed, map[bool]string{true: "ok", false: "WRONG"}[len(wrong) == 0], time.Since(began).Round(time.Millisecond))
			if len(wrong) > 0 {
				report(t, seed, steps, wrong)
			}
		})
	}
	for _, k := range slices.Sorted(maps.Keys(struck)) {
		t.Logf("%6d %s", struck[k], k)
	}
	if whole {
		mustHaveStruck(t, struck)
	}
}

// fixedSeeds are those of make test: about two minutes of a core.
const fixedSeeds = 40

// shortSeeds are those of make race.
const shortSeeds = 5

// mustHaveStruck holds that every kind of fault was there: one that never strikes proves nothing.
func mustHaveStruck(t *testing.T, struck map[string]int) {
	must := []string{"point", "seal", "open epoch", "epoch torn", "epoch merged back", "give-up", "eviction", "clean stop",
		"killed while recovering", "comparison found a difference", "guest truncates", "guest writes past the end",
		"target: refused", "target: applied, answer lost", "target: not applied, answer lost", "target: late", "target: throttled",
		"comparison paused", "comparison cancelled", "killed in a comparison", "table found out", "replica is as it was left",
		"replica compared", "replica found damaged", "point is wrong and doubted",
		"adopted: owned-by-another", "changed while down", "resized while down", "reverted while down", "replaced while down",
		"copied over a disk", "written beside the mount", "manifest judged", "journal lost", "spool and tables lost", "lost: .table",
		"rotten: .table", "journal commit lost", "journal commit landed, answer lost", "state disk full", "state disk error", "image sync failed",
		"translated: block freed", "translated: block moved", "translated: blocks swapped", "translated: block trimmed", "translated: sectors trimmed",
		"translated: resized"}
	for _, k := range kinds {
		must = append(must, k.name)
	}
	for _, k := range must {
		if struck[k] == 0 {
			t.Errorf("%q struck in no history", k)
		}
	}
	points := 0
	for k := range struck {
		if strings.HasPrefix(k, "crash at: ") {
			points++
		}
	}
	if points < 15 { // most have 20 to 24, by the speed of the machine
		t.Errorf("processes died at %d failpoints only", points)
	}
}

// watchdog ends a history that hangs, with the stacks of all goroutines.
func watchdog(seed uint64) func() {
	timer := time.AfterFunc(10*time.Minute, func() { // of real time, on a busy machine
		debug.SetTraceback("all")
		fmt.Printf("seed %d: HANGS\n", seed)
		panic("history hangs")
	})
	return func() { timer.Stop() }
}

// report says what was wrong and which steps it takes.
func report(t *testing.T, seed uint64, steps []Step, wrong []string) {
	if !*noShrink {
		steps, wrong = shrink(t, seed, steps, wrong)
	}
	var numbers []string
	for _, s := range steps {
		t.Log(s)
		numbers = append(numbers, strconv.Itoa(s.N))
	}
	if len(numbers) == 0 {
		numbers = []string{"-"}
	}
	t.Errorf("%s\nreplay: go test ./appliance/e2e/sim -run TestHistories -sim.seed %d -sim.count 1 -sim.steps %s -v",
		strings.Join(wrong, "\n"), seed, strings.Join(numbers, ","))
}

// shrink leaves out every step without which it still goes wrong.
func shrink(t *testing.T, seed uint64, steps []Step, wrong []string) ([]Step, []string) {
	for i := len(steps) - 1; i >= 0; i-- {
		fewer := slices.Delete(slices.Clone(steps), i, i+1)
		if w, _ := run(t, seed, fewer); len(w) > 0 {
			steps, wrong = fewer, w
		}
	}
	return steps, wrong
}
