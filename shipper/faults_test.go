package shipper

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// TestMain puts temporary directories into memory where it can: what is tested
// here is the order of things over thousands of runs, not the disk under them.
func TestMain(m *testing.M) {
	if f, err := os.CreateTemp("/dev/shm", "shipper"); err == nil && os.Getenv("TMPDIR") == "" {
		_ = os.Remove(f.Name())
		_ = os.Setenv("TMPDIR", "/dev/shm")
	}
	warmUp()
	os.Exit(m.Run())
}

// warmUp compresses and decompresses once outside of any bubble of virtual time:
// what the codecs keep for good must not belong to one.
func warmUp() {
	var buf bytes.Buffer
	w, err := segment.NewWriter(&buf, segment.Header{VM: "vm", Disk: "d", Generation: 1, Epoch: 1, VirtualSize: mib}, segment.Fastest)
	if err != nil {
		panic(err)
	}
	page := make([]byte, 64*kib)
	page[0] = 1
	info, err := segment.Info{}, w.Data(0, page, checksum.Blocks(nil, page))
	if err == nil {
		info, err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	r, err := segment.Open(bytes.NewReader(buf.Bytes()), info.Size)
	if err == nil {
		_, err = r.Frame(0)
	}
	if err != nil {
		panic(err)
	}
}

// scenario replicates two disks, makes open and closed epochs, resizes, applies
// and prunes. Whatever fails is left to the next turn, as the stages do it; a
// process that crashed is started again.
type scenario struct {
	r      *rig
	failed int // steps that failed
}

func (s *scenario) try(steps ...func(context.Context) error) {
	switch err := s.r.run(steps...); {
	case errors.Is(err, errCrashed):
		s.r.crash()
		s.failed++
	case err != nil:
		s.failed++
	}
}

// turn is one turn of every stage, each whatever became of the others.
func (s *scenario) turn() {
	s.r.compare()
	s.step((*VM).initialStep)
	s.try(s.vm((*VM).captureStep)) // does not wait for the target
	s.step((*VM).shipStep)
}

// step runs a step that needs the target.
func (s *scenario) step(step func(*VM, context.Context) error) {
	s.try(s.r.connect)
	if s.r.connected {
		s.try(s.vm(step))
	}
}

func (s *scenario) apply() { s.step((*VM).applyStep) }

// vm binds a step to the process that runs when it is called.
func (s *scenario) vm(step func(*VM, context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error { return step(s.r.vm, ctx) }
}

func newScenario(t testing.TB) *scenario {
	return &scenario{r: newRig(t, newImage("a.raw", 3*mib+5000), newImage("b.vhd", mib))}
}

func (s *scenario) play(prune bool) {
	r := s.r
	r.fill("a.raw", 10, 300*kib, 1)
	r.fill("b.vhd", 500*kib, 30*kib, 2)
	s.turn()
	r.fill("a.raw", 20*kib, 64*kib, 3)
	r.fill("b.vhd", 512*kib+7, 9000, 4)
	s.turn()
	s.apply()
	r.discard("a.raw", 32*kib, 32*kib)
	s.turn()
	r.quota = 2 * mib
	r.fill("a.raw", 0, 3*mib/2, 5)
	s.turn() // a prefix: open
	r.fill("b.vhd", 0, 5000, 6)
	s.turn()
	r.quota = 64 * mib
	r.truncate("a.raw", mib+100)
	s.turn()
	r.truncate("a.raw", 5*mib)
	r.fill("a.raw", 4*mib, 10*kib, 7)
	s.turn()
	s.apply()
	if !prune {
		return
	}
	r.policy = retention.Policy{Dense: 3 * time.Second}
	r.clock.add(2 * time.Hour)
	r.fill("a.raw", 2*mib, 10*kib, 8)
	s.turn()
	s.apply()
	s.step((*VM).pruneStep)
	r.clock.add(2 * time.Hour)
	s.step((*VM).pruneStep)
}

// bubble runs a test in virtual time: retries wait half a second and more.
func bubble(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	synctest.Test(t, f)
}

func TestScenario(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newScenario(t)
		s.play(true)
		if s.failed != 0 {
			t.Errorf("%d steps failed without a fault", s.failed)
		}
		n := s.r.target.Operations()
		s.r.finish()
		t.Logf("%d operations", n)
	})
}

// stride makes the fault test look at every n-th operation only, another one with
// every kind of fault; 1 is every operation with every kind.
var stride = flag.Int("stride", 10, "fail every n-th operation of the target")

// Every operation of the target fails once, in every way; nothing that was counted
// is lost and every point restores.
func TestI5I6I7_EveryTargetOperationFails(t *testing.T) {
	kinds := []struct {
		name  string
		fault fake.Fault
	}{
		{"refused", fake.Fault{Kind: fake.Refuse}},
		{"applied", fake.Fault{Kind: fake.Applied}},
		{"not applied", fake.Fault{Kind: fake.NotApplied}},
		{"late", fake.Fault{Kind: fake.Late, After: 7}},
		{"very late", fake.Fault{Kind: fake.Late}},
	}
	for i, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) {
			k := 1 + i**stride/len(kinds)
			for failAt(t, k, kind.fault, false) {
				k += *stride
			}
			for failAt(t, k, kind.fault, true) {
				k += *stride
			}
			if k < 150 {
				t.Errorf("%d operations", k)
			}
		})
	}
}

// failAt says whether there was a k-th operation.
func failAt(t *testing.T, k int, fault fake.Fault, prune bool) (there bool) {
	t.Run(fmt.Sprint(k), func(t *testing.T) {
		bubble(t, func(t *testing.T) {
			s := newScenario(t)
			s.r.target.FailAt(k, fault)
			s.play(prune)
			there = s.r.target.Injected() > 0
			records := s.r.finish()
			if !prune {
				s.r.pointsOfClosed(records)
			}
		})
	})
	return there && !t.Failed()
}

// A crash at every failpoint, the first and a later time it is passed.
func TestI4_CrashAtEveryFailpoint(t *testing.T) {
	for _, point := range append(Points(), spool.Points()...) {
		for _, nth := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s %d", point, nth), func(t *testing.T) {
				bubble(t, func(t *testing.T) { crashAt(t, point, nth) })
			})
		}
	}
}

func crashAt(t *testing.T, point string, nth int) {
	s := newScenario(t)
	passed := 0
	s.r.hook = func(at string) {
		if at != point {
			return
		}
		if passed++; passed == nth {
			panic(crashed{})
		}
	}
	s.play(false)
	if passed < nth && s.failed > 0 {
		t.Errorf("%d steps failed without a crash", s.failed)
	}
	s.r.pointsOfClosed(s.r.finish())
}
