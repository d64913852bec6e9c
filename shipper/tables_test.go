package shipper

import (
	"math/rand/v2"
	"syscall"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// sickTree fails writes in place while it is sick.
type sickTree struct {
	durable.OS
	sick *bool
}

func (t sickTree) Edit(path string) (durable.Editor, error) {
	f, err := t.OS.Edit(path)
	return sickFile{f, t.sick}, err
}

type sickFile struct {
	durable.Editor
	sick *bool
}

func (f sickFile) WriteAt(p []byte, off int64) (int, error) {
	if *f.sick {
		return 0, syscall.EIO
	}
	return f.Editor.WriteAt(p, off)
}

// An error of the state disk takes a table out of use; when it has passed the next
// capture goes on, without a restart and without a comparison of everything.
func TestTableIsInUseAgainAfterAnErrorOfItsDisk(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", 3*mib))
		sick := false
		r.tree = sickTree{sick: &sick}
		r.crash() // opens its tables there
		r.fill("a.raw", 0, mib, 1)
		r.quiesce()
		r.fill("a.raw", 0, mib, 2)
		sick = true
		if err := r.run(r.vm.captureStep); err == nil {
			t.Fatal("a capture whose table cannot be written succeeds")
		}
		if err := r.run(r.vm.captureStep); err == nil {
			t.Fatal("it succeeds while the disk is sick still")
		}
		sick = false
		r.fill("a.raw", 2*mib, 4*kib, 3)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		if n := r.vm.disks()[0].table().UnknownCount(); n != 0 {
			t.Errorf("%d entries are unknown", n)
		}
		r.finish()
	})
}

// A quota that does not take the smallest capture: each is given up by the next one, and that must not run in circles.
func TestI10_CaptureThatDoesNotFitIsNotRepeatedAtOnce(t *testing.T) {
	r := newRig(t, newImage("a.raw", 3*mib))
	r.quiesce()
	r.quota = 20 * kib
	data := make([]byte, 3*mib)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	r.write("a.raw", 0, data...)
	select {
	case <-r.vm.capture.kick:
	default:
	}
	r.must(r.run(r.vm.captureStep))
	if r.spool.Bytes() <= r.quota {
		t.Fatalf("%d bytes fit", r.spool.Bytes())
	}
	if len(r.vm.capture.kick) != 0 {
		t.Error("the next capture, which gives this one up, is to run at once")
	}
	r.quota = 64 * mib
	r.finish()
}

// A comparison that a failed capture causes asks for a seal at its end: the
// capture waits for its schedule all the same, and an operator ends the wait.
func TestSealSoonDoesNotEndTheWaitAfterAFailure(t *testing.T) {
	r := newRig(t, newImage("a.raw", mib))
	waiting := func() bool { return len(r.vm.capture.kick) == 0 }
	r.vm.capture.failed(syscall.EIO)
	if r.vm.SealSoon(); !waiting() {
		t.Error("the wait is over")
	}
	if r.vm.Wake(); waiting() {
		t.Error("an operator cannot end it")
	}
	<-r.vm.capture.kick
	r.vm.capture.recovered()
	if r.vm.SealSoon(); waiting() {
		t.Error("a capture that does not fail is not woken")
	}
}
