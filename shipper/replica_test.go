package shipper

import (
	"context"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// latePut makes the first put to a replica of unknown outcome: it lands when the
// test says so.
func (r *rig) latePut(name string) {
	done := false
	r.target.SetHook(func(op fake.Op) fake.Fault {
		if done || op.Method != "PutPages" || op.Name != catalog.ReplicaName("vm", name) || op.Len < extent.BlockSize {
			return fake.Fault{}
		}
		done = true
		return fake.Fault{Kind: fake.Late}
	})
}

// landBeforeRaise lets what is late land at the worst time: after the puts of the
// next round, before its own raise shuts it out.
func (r *rig) landBeforeRaise() {
	puts := 0
	r.target.SetHook(func(op fake.Op) fake.Fault {
		switch {
		case op.Method == "PutPages" && op.Sequence >= 0:
			puts++
		case op.Method == "SetSequence" && puts > 0 && r.target.Pending() > 0:
			for _, l := range r.target.Land() {
				if l.Err == nil {
					r.t.Errorf("landed: %+v", l.Op)
				}
			}
		}
		return fake.Fault{}
	})
}

// A put of unknown outcome is repeated behind a raised number only: what lands
// late lands nowhere.
func TestI6_LatePutOfAnApplyLandsNowhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 8*kib, 50)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		r.latePut("a.raw")
		before := r.target.Counts()["PutPages"]
		if err := r.run(r.vm.applyStep); err == nil {
			t.Fatal("a put of unknown outcome is taken for done")
		}
		if n := r.target.Counts()["PutPages"] - before; n != 1 {
			t.Errorf("%d puts behind one number", n)
		}
		r.landBeforeRaise()
		r.fill("a.raw", 0, 8*kib, 51)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep, r.vm.applyStep))
		if len(r.target.Landings()) != 1 {
			t.Error("it never landed")
		}
		r.finish()
	})
}

func TestI6_LatePutOfInitialReplicationLandsNowhere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", 2*mib))
		r.fill("a.raw", 100, 300*kib, 1)
		r.must(r.run(r.vm.connectStep))
		r.latePut("a.raw")
		if err := r.run(r.vm.initialStep); err == nil {
			t.Fatal("a put of unknown outcome is taken for done")
		}
		r.landBeforeRaise()
		r.fill("a.raw", 100, 300*kib, 2)
		r.must(r.run(r.vm.initialStep))
		if len(r.target.Landings()) != 1 {
			t.Error("it never landed")
		}
		r.finish()
	})
}

// A put that was given up on before the raise ahead of the snapshot cannot slip in
// between the two.
func TestI6_NumberIsRaisedBeforeTheSnapshot(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 8*kib, 50)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		raised, puts := false, 0
		r.target.SetHook(func(op fake.Op) fake.Fault {
			switch op.Method {
			case "PutPages":
				raised, puts = false, puts+1
			case "SetSequence":
				raised = true
			case "Snapshot":
				if !raised || puts == 0 {
					t.Error("a snapshot behind the number of its puts")
				}
			}
			return fake.Fault{}
		})
		r.must(r.run(r.vm.applyStep))
		r.finish()
	})
}

// The crashed apply went further than the newest record that is asked for now: it
// never ends before that.
func TestI6_ApplyNeverEndsEarlierThanItsAttempt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		for i := range 2 {
			r.fill("a.raw", int64(i)*64*kib, 32*kib, byte(60+i))
			r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		}
		records := r.vm.liveRecords()
		r.hook = func(point string) {
			if point == PointAfterPuts {
				panic(crashed{})
			}
		}
		_ = r.run(r.vm.applyStep)
		r.hook = nil
		r.crash()
		r.must(r.run(r.connect))
		r.must(r.run(func(ctx context.Context) error {
			return r.vm.applyThrough(ctx, records[len(records)-2].ID())
		}))
		if st := r.vm.state.get(); st.Applied != records[len(records)-1].ID() {
			t.Errorf("applied %s", st.Applied)
		}
		r.finish()
	})
}

// A disk whose base is newer than the end of an apply takes no part in it.
func TestI6_NewDiskIsNotApplied(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 8*kib, 50)
		r.must(r.run(r.vm.captureStep)) // does not know the new disk
		r.images["c.raw"] = newImage("c.raw", mib)
		r.order = append(r.order, "c.raw")
		r.attach("c.raw")
		r.fill("c.raw", 0, 100*kib, 9)
		var once bool
		r.hook = func(point string) {
			if point == PointBeforeSnapshot && !once { // an epoch that lists it initial, newer than its base
				once = true
				r.fill("c.raw", 50*kib, 8*kib, 77) // after it was sent: no epoch may take it away
				r.must(r.vm.captureStep(context.Background()))
				r.fill("a.raw", 0, 8*kib, 51)
				r.must(r.vm.captureStep(context.Background()))
			}
		}
		r.must(r.run(r.vm.initialStep))
		r.hook = nil
		creates := 0
		r.target.SetHook(func(op fake.Op) fake.Fault { // the last of the three is not recorded yet
			if op.Method == "Create" {
				creates++
			}
			if op.Method == "Create" && creates > 2 {
				return fake.Fault{Kind: fake.Refuse}
			}
			return fake.Fault{}
		})
		if err := r.run(r.vm.shipStep); err == nil {
			t.Fatal("recorded all")
		}
		r.must(r.run(r.vm.applyStep))
		r.target.SetHook(nil)
		r.must(r.run(r.vm.shipStep))
		r.check()
		r.fill("c.raw", 0, 8*kib, 52)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		r.check() // before any apply mends it
		r.finish()
	})
}

// Initial replication is cut short by a resize, at every operation.
func TestInitialReplicationThroughResizes(t *testing.T) {
	for k := 1; ; k++ {
		struck := false
		bubble(t, func(t *testing.T) {
			r := newRig(t, newImage("a.raw", 2*mib))
			r.fill("a.raw", 0, mib, 1)
			r.must(r.run(r.vm.connectStep))
			first := r.target.Operations()
			r.target.SetHook(func(op fake.Op) fake.Fault {
				if op.N != first+k {
					return fake.Fault{}
				}
				struck = true
				r.truncate("a.raw", mib/2) // smaller, then what it was: the rest is holes now
				if k%2 == 0 {
					r.truncate("a.raw", 2*mib)
				}
				return fake.Fault{Kind: fake.Kind(k % 4)}
			})
			_ = r.run(r.vm.initialStep)
			r.target.SetHook(nil)
			if k%3 == 0 {
				r.crash()
			}
			r.truncate("a.raw", 2*mib+4096)
			r.finish()
		})
		if !struck || t.Failed() {
			return
		}
	}
}

// What an attempt may have put is cleared when it reads zero by now.
func TestI4_ZeroBlockOfUnknownEntryIsCleared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", 2*mib))
		r.fill("a.raw", 0, 300*kib, 1)
		r.must(r.run(r.vm.connectStep))
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "PutPages" && op.Len >= extent.BlockSize {
				return fake.Fault{Kind: fake.Applied}
			}
			return fake.Fault{}
		})
		if err := r.run(r.vm.initialStep); err == nil {
			t.Fatal("a put of unknown outcome is taken for done")
		}
		r.target.SetHook(nil)
		r.discard("a.raw", 0, 200*kib)
		r.must(r.run(r.vm.initialStep))
		r.finish()
	})
}

// A file written over a disk empties it first. An epoch sealed just then is no point, and the pipeline goes on with the next.
func TestI5_AnEmptiedImageIsNoPoint(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		before := r.vm.state.get().Recorded
		r.truncate("a.raw", 0)
		r.must(r.run(r.vm.captureStep))
		r.must(r.run(r.vm.shipStep))
		if now := r.vm.state.get().Recorded; now != before {
			t.Errorf("point %s of an empty disk", now)
		}
		r.truncate("a.raw", 64*kib)
		r.fill("a.raw", 8*kib, 8*kib, 51)
		r.must(r.run(r.vm.captureStep))
		r.must(r.run(r.vm.shipStep))
		if now := r.vm.state.get().Recorded; now == before {
			t.Error("no point after it")
		}
		r.finish()
	})
}

// I4: a disk that cannot be read as what it is, when the appliance starts, is captured when it can be again: nothing of it is
// taken for gone meanwhile.
func TestI4_AnImageTornAtAStart(t *testing.T) {
	for disk, tear := range map[string]func(r *rig) func(){
		"b.vhd": func(r *rig) func() { // its footer
			size := int64(len(r.images["b.vhd"].bytes()))
			footer := image.FixedFooter(size, [16]byte{7}, time.Unix(1_600_000_000, 0))
			r.write("b.vhd", size, make([]byte, image.FooterSize)...)
			return func() { r.write("b.vhd", size, footer[:]...) }
		},
		"a.raw": func(r *rig) func() { // all of it
			r.truncate("a.raw", 0)
			return func() {
				r.truncate("a.raw", 64*kib)
				r.fill("a.raw", 8*kib, 8*kib, 52)
			}
		},
	} {
		t.Run(disk, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := replicated(t)
				r.fill("b.vhd", 4*kib, 40*kib, 53)
				r.must(r.run(r.vm.captureStep, r.vm.shipStep))
				r.fill("b.vhd", 100*kib, 4*kib, 54) // lost with the change set: only a comparison finds it
				mend := tear(r)
				r.crash()
				id := r.disks[disk].ID()
				if _, _, ok := r.vm.Table(id); ok {
					t.Error("there is a layout to compare with: all that is suspect would be passed over unread")
				}
				beyond := r.vm.diskByID(id).table().Blocks() - extent.Cover[extent.DiskBlock](0, int64(len(r.images[disk].bytes()))).End
				if n := r.vm.diskByID(id).table().UnknownCount(); n < int64(beyond) {
					t.Errorf("%d entries unknown, %d blocks beyond the end of the file", n, beyond)
				}
				r.compare()
				before := r.vm.state.get().Recorded
				r.must(r.run(r.vm.connectStep, r.vm.captureStep, r.vm.shipStep))
				if now := r.vm.state.get().Recorded; now != before {
					t.Errorf("point %s of a torn disk", now)
				}
				mend()
				r.must(r.run(r.vm.captureStep))
				r.compare()
				r.must(r.run(r.vm.captureStep, r.vm.shipStep))
				if now := r.vm.state.get().Recorded; now == before {
					t.Errorf("no point after it: %+v", r.vm.Status().Disks)
				}
				r.finish()
			})
		})
	}
}

// watchedDocuments shows what is saved before it is, and may refuse it.
type watchedDocuments struct {
	Documents
	saving func(v any) error
}

func (d watchedDocuments) Save(key string, v any) error {
	if err := d.saving(v); err != nil {
		return err
	}
	return d.Documents.Save(key, v)
}

// An apply that reads from the state which point is the newest finds its record, and a point that could not be counted is
// none in the list either.
func TestI5_TheRecordIsKnownBeforeItIsNamed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		before := r.vm.state.get().Recorded
		var refuse error
		named := 0
		r.vm.state.docs = watchedDocuments{r.vm.state.docs, func(v any) error {
			now := v.(vmRecord).Recorded
			if now == before {
				return nil
			}
			if named++; now.Epoch != 0 {
				if _, ok := r.vm.recordOf(now); !ok {
					t.Errorf("point %s is named, its record is not known", now)
				}
			}
			return refuse
		}}
		r.fill("a.raw", 0, 8*kib, 50)
		r.must(r.run(r.vm.captureStep))
		refuse = syscall.EIO
		if err := r.run(r.vm.shipStep); !errors.Is(err, syscall.EIO) {
			t.Fatalf("%v", err)
		}
		if n := len(r.vm.liveRecords()); n == 0 || r.vm.liveRecords()[n-1].ID() != before {
			t.Errorf("%d records, the newest is not %s", n, before)
		}
		refuse = nil
		r.must(r.run(r.vm.shipStep))
		if now := r.vm.state.get().Recorded; now == before || named < 2 {
			t.Errorf("newest point %s, named %d times", now, named)
		}
		r.finish()
	})
}

// An entry becomes unknown between manifest and record: the target may not hold
// what the table said, so the epoch is no point.
func TestI5_JudgedAgainBeforeTheRecord(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 8*kib, 50)
		r.must(r.run(r.vm.captureStep))
		table, _, _ := r.vm.Table(r.disks["a.raw"].ID())
		r.must(table.Forget(DiskRange{Start: 9, End: 10}))
		before := r.vm.state.get().Recorded
		r.must(r.run(r.vm.shipStep))
		if now := r.vm.state.get(); now.Recorded != before || len(now.Unrecorded) != 1 {
			t.Errorf("recorded %s", now.Recorded)
		}
		r.finish()
	})
}
