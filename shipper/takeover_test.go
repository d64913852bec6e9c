package shipper

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// other is the rig of another state directory at the same target, with the same
// images: a host that lost its state, or another host.
func (r *rig) other(machine string) *rig {
	r.t.Helper()
	o := *r
	o.dir, o.store, o.hook = r.t.TempDir(), &memory.Store{}, nil
	o.owner.MachineID = machine
	o.open()
	return &o
}

func replicated(t *testing.T) *rig {
	r := newRig(t, newImage("a.raw", 2*mib), newImage("b.vhd", mib))
	r.fill("a.raw", 100, 300*kib, 1)
	r.must(r.cycle())
	r.fill("a.raw", mib, 30*kib, 2)
	r.must(r.cycle())
	return r
}

func (r *rig) doc() catalog.VMDoc {
	r.t.Helper()
	doc, _, err := catalog.LoadVM(context.Background(), r.target, "vm")
	r.must(err)
	return doc
}

func TestI7_LostStateTakesTheVMOverAndFencesTheOldWriter(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("b.vhd", 0, 10*kib, 3)
		r.must(r.run(r.vm.captureStep)) // spooled, not shipped
		o := r.other("machine")
		o.finish()
		if doc := o.doc(); doc.Generation != 2 || len(doc.Cuts) != 1 || doc.VMID != o.log.ID() {
			t.Errorf("%+v", doc)
		}
		before := r.target.Operations()
		if err := r.run(r.vm.shipStep); !errors.Is(err, ErrFenced) {
			t.Errorf("the old writer ships: %v", err)
		}
		reads := r.target.Operations() - before
		for _, step := range []func(context.Context) error{r.vm.captureStep, r.vm.shipStep, r.vm.applyStep, r.vm.initialStep, r.vm.pruneStep, r.vm.connectStep} {
			_ = r.run(step)
		}
		if n := r.target.Operations() - before; n != reads || reads > 1 {
			t.Errorf("a lost writer asked the target %d times, then %d times more", reads, n-reads)
		}
		o.finish()
	})
}

// The old writer creates its record when the takeover has read the records: it is
// beyond the cut, and counted by nobody.
func TestI7_RecordCountsOnlyAfterVMDocNamesUs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("b.vhd", 0, 10*kib, 3)
		r.must(r.run(r.vm.captureStep))
		recorded := r.vm.state.get().Recorded
		var o *rig
		r.hook = func(point string) {
			if point == PointBeforeRecord {
				r.hook = nil
				o = r.other("machine")
				o.must(o.run(o.vm.connectStep))
			}
		}
		if err := r.run(r.vm.shipStep); !errors.Is(err, ErrFenced) {
			t.Fatalf("%v", err)
		}
		if now := r.vm.state.get(); now.Recorded != recorded || len(r.spool.Manifests()) == 0 {
			t.Errorf("counted %s", now.Recorded)
		}
		o.finish()
	})
}

// A record found at a start counts no earlier.
func TestI7_ReconcileReadsVMDocAfterTheRecords(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("b.vhd", 0, 10*kib, 3)
		r.hook = func(point string) {
			if point == PointAfterRecord {
				panic(crashed{})
			}
		}
		if err := r.run(r.vm.captureStep, r.vm.shipStep); !errors.Is(err, errCrashed) {
			t.Fatal(err)
		}
		r.hook = nil
		r.crash()
		recorded := r.vm.state.get().Recorded
		var o *rig
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "List" && o == nil {
				r.target.SetHook(nil)
				o = r.other("machine")
				o.must(o.run(o.vm.connectStep))
			}
			return fake.Fault{}
		})
		if err := r.run(r.vm.connectStep); !errors.Is(err, ErrFenced) {
			t.Errorf("%v", err)
		}
		if now := r.vm.state.get().Recorded; now != recorded {
			t.Errorf("counted %s after the takeover", now)
		}
		o.finish()
	})
}

func TestI7_ForeignHostIsRefused(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		o := r.other("another machine")
		if err := o.run(o.vm.connectStep); !errors.Is(err, ErrForeign) {
			t.Errorf("%v", err)
		}
		r.finish()
	})
}

// A takeover may die anywhere and is repeated; also when no snapshot of the old
// generation counts.
func TestI7_TakeoverIsRepeatable(t *testing.T) {
	for _, kind := range []fake.Kind{fake.Refuse, fake.Applied, fake.NotApplied, fake.Late} {
		for k := 1; ; k++ {
			struck := false
			bubble(t, func(t *testing.T) {
				r := newRig(t, newImage("a.raw", 2*mib), newImage("b.vhd", mib))
				r.fill("a.raw", 100, 300*kib, 1)
				r.must(r.run(r.vm.connectStep, r.vm.initialStep)) // bases, and no record
				if k%2 == 0 {
					r.must(r.cycle())
					r.fill("a.raw", mib, 30*kib, 2)
					r.must(r.run(r.vm.captureStep, r.vm.shipStep)) // recorded, not applied
				}
				o := r.other("machine")
				before := r.target.Injected()
				r.target.FailAt(k, fake.Fault{Kind: kind, After: 5})
				if o.run(o.connect) != nil {
					o.crash()
				}
				struck = r.target.Injected() > before
				o.finish()
			})
			if !struck || t.Failed() {
				break
			}
		}
	}
}

// A target that was put back lacks the point we counted: a new generation, and no
// old one is reused.
func TestI6_RevertedTargetIsTakenOver(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		old := r.target.Clone()
		r.fill("a.raw", 0, 70*kib, 9)
		r.must(r.cycle())
		r.target = old
		r.crash()
		r.counted = map[catalog.PointID]string{}
		r.finish()
		if doc := r.doc(); doc.Generation != 2 {
			t.Errorf("generation %d", doc.Generation)
		}
	})
}

// A state directory that was put back knows fewer epochs than the target has logs.
func TestI5_RevertedStateOpensAGeneration(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		old := r.store.Crash()
		r.quota = 2 * mib
		for range 20 { // beyond the numbers that an unclean start skips
			r.fill("a.raw", 0, 3*mib/2, byte(len(r.oracle)))
			r.must(r.run(r.vm.captureStep, r.vm.shipStep)) // open: no record tells
		}
		r.quota = 64 * mib
		_ = r.vm.Close()
		r.store = old
		r.must(os.RemoveAll(filepath.Join(r.dir, "spool")))
		r.open()
		for _, d := range r.disks { // what the appliance does when the session ids differ
			r.must(d.SetSuspect("reverted"))
		}
		r.finish()
		if doc := r.doc(); doc.Generation != 2 {
			t.Errorf("generation %d", doc.Generation)
		}
	})
}

func TestI7_LeaseThatIsGoneIsTakenAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		name := catalog.ReplicaName("vm", "a.raw")
		r.must(r.target.BreakLease(context.Background(), name))
		r.must(r.target.AcquireLease(context.Background(), name, newLease()))
		r.fill("a.raw", 0, 70*kib, 9)
		r.must(r.cycle())
		r.finish()
	})
}

func TestRemovedDiskDoesNotHoldUpLatest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		gone := r.disks["b.vhd"]
		r.vm.RemoveDisk(gone.ID())
		r.must(r.log.RemoveDisk(gone))
		r.order = r.order[:1]
		delete(r.disks, "b.vhd")
		r.fill("a.raw", 0, 70*kib, 9)
		r.must(r.cycle())
		doc := r.doc()
		_, records, err := catalog.Load(context.Background(), r.target, "vm")
		r.must(err)
		latest, ok := catalog.Latest(doc, records)
		if !ok || latest.ID() != newestOf(records).ID() {
			t.Errorf("latest is %s of %s", latest.ID(), newestOf(records).ID())
		}
		// It comes back: under another name, and its old points stay.
		r.order = append(r.order, "b.vhd")
		r.attach("b.vhd")
		r.fill("b.vhd", 5000, 70*kib, 8)
		r.finish()
		if doc := r.doc(); len(doc.Disks) != 3 || slices.ContainsFunc(doc.Disks[2:], func(d catalog.DiskDoc) bool { return d.ID == "b.vhd" || d.Removed }) {
			t.Errorf("%+v", doc.Disks)
		}
	})
}

func TestVMDocFollowsSizes(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.truncate("a.raw", 3*mib+1)
		r.must(r.cycle())
		if doc := r.doc(); doc.Disks[0].VirtualSize != 3*mib+1 {
			t.Errorf("%+v", doc.Disks)
		}
		r.finish()
	})
}

func TestPointTimesAscendThoughTheClockStepsBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.clock.add(-time.Hour)
		r.fill("a.raw", 0, 100, 9)
		r.must(r.cycle())
		records := r.finish()
		for i := 1; i < len(records); i++ {
			if !records[i-1].Time.Before(records[i].Time) {
				t.Errorf("%s then %s", records[i-1].Time, records[i].Time)
			}
		}
	})
}

// A disk leaves while it is captured: no trouble but for this one epoch.
func TestDiskThatLeavesDuringACapture(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("b.vhd", 0, 70*kib, 9)
		r.fill("a.raw", 0, 70*kib, 9)
		gone := r.disks["b.vhd"]
		r.hook = func(point string) {
			if point == PointAfterSeal {
				r.hook = nil
				r.vm.RemoveDisk(gone.ID())
				delete(r.disks, "b.vhd")
				r.order = r.order[:1]
			}
		}
		r.must(r.run(r.vm.captureStep))
		r.must(r.log.RemoveDisk(gone))
		r.finish()
	})
}

// No snapshot of the old generation lies before the cut, and what is at the target
// is not what the source holds: the first point is right before any apply.
func TestI7_FirstPointOfAGenerationCarriesEverything(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", 2*mib))
		r.fill("a.raw", 100, 300*kib, 1)
		r.must(r.log.RaiseEpoch(5))
		r.must(r.run(r.vm.connectStep, r.vm.initialStep))
		r.discard("a.raw", 0, 200*kib)
		o := r.other("machine")
		o.must(o.run(o.connect, o.vm.initialStep, o.match, o.vm.captureStep, o.vm.shipStep))
		if records := o.check(); len(records) != 1 {
			t.Errorf("%d points", len(records))
		}
		o.finish()
	})
}
