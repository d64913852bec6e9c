package shipper

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// scribble writes to a replica as somebody else does who does not care for leases.
func (r *rig) scribble(name string, blocks ...int64) {
	r.t.Helper()
	ctx, blob := context.Background(), catalog.ReplicaName("vm", name)
	r.must(r.target.BreakLease(ctx, blob))
	for _, b := range blocks {
		page := make([]byte, extent.BlockSize)
		r.must(r.target.ReadPages(ctx, blob, "", b*extent.BlockSize, page))
		page[100] ^= 0x55
		r.must(r.target.PutPages(ctx, blob, b*extent.BlockSize, page, checksum.Of(page), target.Unguarded))
	}
}

// deep does what the appliance does for resync --deep.
func (r *rig) deep(name string) (found extent.Set[extent.DiskBlock], report resync.DeepReport) {
	r.t.Helper()
	ctx, id := context.Background(), r.disks[name].ID()
	same, err := r.vm.Unchanged(ctx, id)
	r.must(err)
	if same {
		return found, report
	}
	w, err := r.vm.OpenView(ctx, id, "")
	r.must(err)
	d := resync.NewDeep(resync.DeepDeps{Replica: w, Table: r.vm.diskByID(id).table(), Forget: func(rs ...DiskRange) error {
		for _, one := range rs {
			found.Add(one)
		}
		return r.vm.ForgetBlocks(id, rs...)
	}}, resync.Options{})
	report, err = d.Run(ctx, 0)
	r.must(err)
	r.must(r.vm.EndDeep(ctx, w, found.Blocks(), true))
	r.must(w.Close(ctx))
	return found, report
}

// rotten tells of every point whether it reads as what was sealed.
func (r *rig) rotten(disk string) (bad []catalog.PointID) {
	r.t.Helper()
	ctx := context.Background()
	doc, records, err := catalog.Load(ctx, r.target, "vm")
	r.must(err)
	for _, rec := range records {
		d, err := restore.Open(ctx, r.target, doc, records, rec.ID(), disk, restore.Options{})
		r.must(err)
		got := make([]byte, d.Size())
		_, err = d.ReadAt(got, 0)
		r.must(err)
		if firstDifference(got, r.oracle[rec.EpochUUID][disk]) != "" {
			bad = append(bad, rec.ID())
		}
	}
	return bad
}

func (r *rig) doubted() (ids []catalog.PointID) {
	r.t.Helper()
	doc, records, err := catalog.Load(context.Background(), r.target, "vm")
	r.must(err)
	for _, rec := range records {
		if doc.Doubted(rec) {
			ids = append(ids, rec.ID())
		}
	}
	return ids
}

func TestDeepOfAnUntouchedReplicaIsOneRequest(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		before := r.target.Operations()
		if found, report := r.deep("a.raw"); !found.Empty() || report != (resync.DeepReport{}) {
			t.Errorf("%v %+v", found.Ranges(), report)
		}
		if n := r.target.Operations() - before; n != 1 {
			t.Errorf("%d requests", n)
		}
		r.crash() // what we left is known after a restart too
		r.must(r.run(r.connect))
		if same, err := r.vm.Unchanged(context.Background(), r.disks["b.vhd"].ID()); !same || err != nil {
			t.Errorf("%v %v", same, err)
		}
		r.finish()
	})
}

// Damage that no snapshot has yet: a snapshot of its own shows it, the next point
// repairs it, and no point was ever wrong.
func TestI8_DeepFindsDamageOfTheBaseAndTheDeltaRepairsIt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.scribble("a.raw", 3, 77, 300)
		found, report := r.deep("a.raw")
		if want := []DiskRange{{Start: 3, End: 4}, {Start: 77, End: 78}, {Start: 300, End: 301}}; !slices.Equal(found.Ranges(), want) || report.Differing != 3*extent.BlockSize {
			t.Errorf("%v %+v", found.Ranges(), report)
		}
		if bad := r.rotten("a.raw"); len(bad) > 0 {
			t.Errorf("wrong points %v", bad)
		}
		snaps, err := r.target.Snapshots(context.Background(), catalog.ReplicaName("vm", "a.raw"))
		r.must(err)
		if slices.ContainsFunc(snaps, func(s target.SnapshotInfo) bool { return s.Metadata[metaPurpose] != "" }) {
			t.Error("the comparison's own snapshot is left")
		}
		r.finish() // replicas equal the newest point
		if ids := r.doubted(); len(ids) > 0 {
			t.Errorf("doubted: %v", ids)
		}
		if again, _ := r.deep("a.raw"); !again.Empty() {
			t.Errorf("found again: %v", again.Ranges())
		}
	})
}

// The damage was folded into a snapshot before anybody looked: points made of it
// are flagged from that snapshot to the repair, exactly, and latest avoids them.
func TestRottenSnapshotFlagsItsPoints(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		good := r.vm.state.get().Recorded
		r.scribble("a.raw", 9, 10)
		for i := range 3 {
			r.fill("a.raw", int64(i)*400*kib, 5*kib, byte(50+i))
			r.must(r.cycle())
		}
		bad := r.rotten("a.raw")
		if len(bad) != 3 || !slices.Equal(bad, r.doubted()) {
			t.Fatalf("rotten %v, doubted %v", bad, r.doubted())
		}
		doc, records, err := catalog.Load(context.Background(), r.target, "vm")
		r.must(err)
		if latest, ok := catalog.Latest(doc, records); !ok || latest.ID() != good {
			t.Errorf("latest is %s, good is %s", latest.ID(), good)
		}
		r.crash()
		r.must(r.run(r.connect))
		found, _ := r.deep("a.raw")
		if !slices.Equal(found.Ranges(), []DiskRange{{Start: 9, End: 11}}) {
			t.Errorf("found %v", found.Ranges())
		}
		r.must(r.cycle())
		if now := r.rotten("a.raw"); !slices.Equal(now, bad) || !slices.Equal(r.doubted(), bad) {
			t.Errorf("rotten %v, doubted %v", now, r.doubted())
		}
		_, records, err = catalog.Load(context.Background(), r.target, "vm")
		r.must(err)
		doc = r.doc()
		if latest, ok := catalog.Latest(doc, records); !ok || latest.ID() != newestOf(records).ID() {
			t.Errorf("latest is %s after the repair", latest.ID())
		}
		if same, err := r.vm.Unchanged(context.Background(), r.disks["a.raw"].ID()); !same || err != nil {
			t.Errorf("%v %v", same, err)
		}
		r.replicasAre(newestOf(records))
	})
}

// What others wrote was overwritten by the fold: nothing is wrong, and the doubt ends.
func TestDoubtEndsWithAComparisonThatFindsNothing(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.scribble("a.raw", 9)
		r.fill("a.raw", 9*extent.BlockSize, extent.BlockSize, 77)
		r.must(r.cycle())
		if len(r.doubted()) != 1 || len(r.rotten("a.raw")) != 0 {
			t.Fatalf("doubted %v", r.doubted())
		}
		if found, report := r.deep("a.raw"); !found.Empty() || report.Sums == 0 {
			t.Errorf("%v %+v", found.Ranges(), report)
		}
		if ids := r.doubted(); len(ids) > 0 || len(r.doc().Doubts) > 0 {
			t.Errorf("doubted %v", ids)
		}
		r.finish()
	})
}

// Epochs that the snapshot has not yet are skipped, whether they are in the spool,
// shipped and open, or recorded.
func TestViewKnowsWhatLaterEpochsCarry(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		ctx, id := context.Background(), r.disks["a.raw"].ID()
		r.fill("a.raw", 40*extent.BlockSize, extent.BlockSize, 9)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep)) // recorded, not applied
		r.must(r.disks["a.raw"].SetSuspect("a test"))
		r.fill("a.raw", 50*extent.BlockSize, extent.BlockSize, 9)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep)) // open
		r.fill("a.raw", 60*extent.BlockSize, extent.BlockSize, 9)
		r.must(r.run(r.vm.captureStep)) // in the spool
		for range 2 {
			w, err := r.vm.OpenView(ctx, id, "")
			r.must(err)
			carried, err := w.Carried(ctx)
			r.must(err)
			if want := []DiskRange{{Start: 40, End: 41}, {Start: 50, End: 51}, {Start: 60, End: 61}}; !slices.Equal(carried.Ranges(), want) {
				t.Errorf("carried %v", carried.Ranges())
			}
			r.must(r.run(r.vm.shipStep))
			r.must(errors.Join(r.vm.deps.Spool.Release(r.vm.spooledEpochs()[0]))) // the records tell as well
		}
		r.compare()
		if found, _ := r.deep("a.raw"); !found.Empty() {
			t.Errorf("found %v", found.Ranges())
		}
		r.finish()
	})
}

// A disk grows and shrinks between the snapshot and now.
func TestDeepAcrossSizes(t *testing.T) {
	for _, size := range []int64{3*mib + 5000, mib - 700} {
		bubble(t, func(t *testing.T) {
			r := replicated(t)
			r.scribble("a.raw", 5)
			r.truncate("a.raw", size)
			r.must(r.run(r.vm.captureStep, r.vm.shipStep))
			if found, _ := r.deep("a.raw"); !slices.Equal(found.Ranges(), []DiskRange{{Start: 5, End: 6}}) {
				t.Errorf("%d: %v", size, found.Ranges())
			}
			r.finish()
		})
	}
}

// others is a round in which it is noticed that somebody wrote to the replica, and that ends before its seal.
func (r *rig) othersThenACrash(block int64) {
	r.t.Helper()
	r.scribble("a.raw", block)
	r.fill("a.raw", 100*kib, 5*kib, 60)
	r.hook = func(point string) {
		if point == PointAfterPuts {
			panic(crashed{})
		}
	}
	if err := r.cycle(); !errors.Is(err, errCrashed) {
		r.t.Fatalf("the round does not end in a crash: %v", err)
	}
	r.hook = nil
	r.crash()
	r.must(r.run(r.connect))
}

// A comparison of a snapshot from before somebody wrote to the replica says nothing of what was written (a replica changed
// and a process killed in the middle of the next round: the damage was never found, failpoints seed 13).
func TestI8_ComparisonOfAnOlderSnapshotEndsNoDoubt(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.othersThenACrash(200)
		if w, err := r.vm.OpenView(context.Background(), r.disks["a.raw"].ID(), ""); !errors.Is(err, ErrUnderWay) {
			t.Errorf("%+v, %v", w, err)
		}
		r.must(r.cycle())
		if bad := r.rotten("a.raw"); len(bad) == 0 || !slices.Equal(bad, r.doubted()) {
			t.Errorf("rotten %v, doubted %v", bad, r.doubted())
		}
		if found, _ := r.deep("a.raw"); !slices.Equal(found.Ranges(), []DiskRange{{Start: 200, End: 201}}) {
			t.Errorf("found %v", found.Ranges())
		}
		r.must(r.cycle())
		r.replicasAre(newestOf(r.vm.liveRecords()))
		if found, _ := r.deep("a.raw"); !found.Empty() {
			t.Errorf("found again %v", found.Ranges())
		}
	})
}

// The same, of one that was running when it was noticed, with nothing found, with damage found, and of one that had frozen
// a state for itself.
func TestI8_WhatOthersWroteDuringAComparisonIsLookedForAgain(t *testing.T) {
	for name, before := range map[string][]int64{"nothing found": nil, "damage found": {300}} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				r := replicated(t)
				r.scribble("a.raw", before...)
				ctx, id := context.Background(), r.disks["a.raw"].ID()
				w, err := r.vm.OpenView(ctx, id, "")
				r.must(err)
				var found extent.Set[extent.DiskBlock]
				d := resync.NewDeep(resync.DeepDeps{Replica: w, Table: r.vm.diskByID(id).table(), Forget: func(rs ...DiskRange) error {
					for _, one := range rs {
						found.Add(one)
					}
					return r.vm.ForgetBlocks(id, rs...)
				}}, resync.Options{})
				_, err = d.Run(ctx, 0)
				r.must(err)
				r.scribble("a.raw", 200)
				r.fill("a.raw", 100*kib, 5*kib, 60)
				r.must(r.cycle())
				r.must(r.vm.EndDeep(ctx, w, found.Blocks(), true))
				r.must(w.Close(ctx))
				r.must(r.cycle())
				if st := r.vm.diskByID(id).state.get(); st.Touched == "" {
					t.Errorf("it is not to be looked at again: %+v", st)
				}
				if again, _ := r.deep("a.raw"); !again.Contains(DiskRange{Start: 200, End: 201}) {
					t.Errorf("found %v", again.Ranges())
				}
				r.must(r.cycle())
				r.replicasAre(newestOf(r.vm.liveRecords()))
				if st := r.vm.diskByID(id).state.get(); st.Touched != "" || st.RepairAfter != 0 {
					t.Errorf("%+v", st)
				}
			})
		})
	}
}

// A damaged block that a later epoch carries is not compared: the points before that epoch are wrong, and stay doubted.
func TestADoubtEndsWithTheEpochThatCarriesWhatWasNotCompared(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.scribble("a.raw", 9)
		for i := range 3 {
			r.fill("a.raw", int64(100+i)*extent.BlockSize, extent.BlockSize, byte(60+i))
			r.must(r.run(r.vm.captureStep, r.vm.shipStep))
			if i == 0 {
				r.must(r.run(r.vm.applyStep))
			}
		}
		r.fill("a.raw", 9*extent.BlockSize, extent.BlockSize, 99)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep))
		if found, _ := r.deep("a.raw"); !found.Empty() {
			t.Errorf("found %v, which a later epoch carries", found.Ranges())
		}
		if bad := r.rotten("a.raw"); len(bad) != 3 || !slices.Equal(bad, r.doubted()) {
			t.Errorf("rotten %v, doubted %v", bad, r.doubted())
		}
		r.must(r.cycle())
		if bad := r.rotten("a.raw"); len(bad) != 3 || !slices.Equal(bad, r.doubted()) {
			t.Errorf("in the end rotten %v, doubted %v", bad, r.doubted())
		}
	})
}
