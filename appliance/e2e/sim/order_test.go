package sim

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

var update = flag.Bool("update", false, "write testdata/order.txt; a change of it is a change of what a crash can leave")

// notes are the durable effects in their order.
type notes struct {
	mu struct { // guards the lines; no I/O
		sync.Mutex
		on    bool
		lines []string
	}
}

var (
	uuids  = regexp.MustCompile(`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`)
	epochs = regexp.MustCompile(`\b1-\d+\b`)
)

// add notes one effect; the same one again right after counts once.
func (n *notes) add(format string, args ...any) {
	line := epochs.ReplaceAllString(uuids.ReplaceAllString(fmt.Sprintf(format, args...), "ID"), "EPOCH")
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := len(n.mu.lines); n.mu.on && (k == 0 || n.mu.lines[k-1] != line) {
		n.mu.lines = append(n.mu.lines, line)
	}
}

func (n *notes) record(on bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.on = on
}

// listen notes what reaches the stores of a process.
func (n *notes) listen(w *world, p *process) {
	before := p.h.store.Before
	p.h.store.Before = func(k int, b *kv.Batch) memory.Fault {
		for _, op := range b.Ops() {
			key := string(op.Key)
			switch {
			case strings.HasPrefix(key, "act/") && op.Delete:
				n.add("journal: region leaves the activity log")
			case strings.HasPrefix(key, "act/"):
				n.add("journal: region enters the activity log")
			case strings.HasPrefix(key, "doc/ship/"):
				n.add("journal: state of the pipeline")
			}
		}
		return before(k, b)
	}
	for _, img := range p.h.images["vm"] {
		img.failSync = func() bool { n.add("image: synced"); return false }
		img.now = func() time.Time { n.add("image: bytes change"); return w.now() }
	}
	p.h.tree.trace = func(op, path string) { n.add("state disk: %s %s", op, strings.TrimPrefix(path, "/state/")) }
	w.target.SetHook(func(op fake.Op) fake.Fault {
		if op.Write && !strings.HasSuffix(op.Name, "/vm.json") { // that one is by the clock
			n.add("target: %s %s", op.Method, op.Name)
		}
		return fake.Fault{}
	})
}

// The order of what becomes durable, from a guest's write to the region's leaving the activity log, is what every crash
// state of the design rests on.
func TestI1I4I5I6_OrderOfWhatBecomesDurable(t *testing.T) {
	var n notes
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(1, t.TempDir())
		w.vms, w.saves, w.regions, w.interval, w.apply = []string{"vm"}, false, journal.DefaultActivityRegions, 9*time.Second, 41*time.Second
		l := newLife(&turnstile{})
		h := w.bareHost(l)
		w.addImage(h, "vm", "b.vhd")
		if err := w.boot(h); err != nil {
			t.Fatal(err)
		}
		p := w.active()
		m := p.machine("vm")
		if err := w.settle(m); err != nil {
			t.Fatal(err)
		}
		<-time.After(5 * time.Minute) // what came to rest has left the activity log
		n.listen(w, p)
		n.record(true)
		data := make([]byte, page)
		fill(data, 5)
		n.add("guest: sends a write")
		w.issue(m, m.all()[0], extent.Change{Len: page}, data)
		n.add("guest: has its answer")
		<-time.After(3 * time.Minute)
		n.record(false)
		w.finish()
		for _, wrong := range w.mu.wrong {
			t.Error(wrong)
		}
	})
	got := strings.Join(n.mu.lines, "\n") + "\n"
	const golden = "testdata/order.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the order is\n%s\nand not, as %s has it,\n%s", got, golden, want)
	}
}
