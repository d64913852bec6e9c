package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// connectStep reconciles local state with the target before anything is shipped.
// Capture does not wait for it: it needs a generation only.
func (v *VM) connectStep(ctx context.Context) error {
	if err := v.openTarget(ctx); err != nil {
		return err
	}
	if err := v.lost(); err != nil {
		return err
	}
	var doc catalog.VMDoc
	err := v.repeat(ctx, func(ctx context.Context) (err error) {
		doc, _, err = catalog.LoadVM(ctx, v.target, v.opts.Name)
		return err
	})
	ours := v.state.get().Generation
	switch {
	case errors.Is(err, catalog.ErrNoVM) && ours == 0:
		return v.found(ctx)
	case errors.Is(err, catalog.ErrNoVM):
		return targetLost(v.opts.Name, "it has no vm.json at "+v.target.String()+", although points were made there")
	case err != nil:
		return err
	case ours == 0 && v.foundedByUs(doc):
		return v.adoptGeneration(ctx, doc)
	case ours == 0 && !v.sameHost(doc):
		return foreign(v.opts.Name, doc)
	case ours == 0:
		return v.takeOver(ctx, doc, "this host replicated the VM before and its state is gone")
	case doc.Generation != ours && v.takingOver(doc):
		return v.takeOver(ctx, doc, "a takeover of ours was interrupted")
	case doc.Generation != ours:
		return v.lose(doc, ours)
	}
	return v.reconcile(ctx, doc)
}

func (v *VM) openTarget(ctx context.Context) error {
	if v.target != nil {
		return nil
	}
	t, err := v.deps.Open(ctx)
	if err != nil {
		return err
	}
	v.target = t
	v.pruner = retention.NewPruner(t, v, v.opts.Name, retention.Options{Now: v.opts.Now})
	return nil
}

func (v *VM) sameHost(doc catalog.VMDoc) bool {
	return doc.Owner.MachineID == v.opts.Owner.MachineID && doc.Owner.StoreID == v.opts.Owner.StoreID
}

// foundedByUs recognises a vm.json of our own first start, whose answer was lost:
// the VM id is drawn by this state directory and known nowhere else.
func (v *VM) foundedByUs(doc catalog.VMDoc) bool {
	return v.sameHost(doc) && doc.VMID == v.opts.ID && doc.Generation == 1
}

// takingOver recognises the generation that our own unfinished takeover wrote.
func (v *VM) takingOver(doc catalog.VMDoc) bool {
	return v.sameHost(doc) && doc.VMID == v.opts.ID && v.state.get().TakingOver == doc.Generation
}

// found writes the first vm.json.
func (v *VM) found(ctx context.Context) error {
	doc := catalog.VMDoc{Version: catalog.FormatVersion, Name: v.opts.Name, VMID: v.opts.ID, Owner: v.opts.Owner, Generation: 1, Updated: v.opts.Now().UTC()}
	if err := v.repeat(ctx, func(ctx context.Context) error { return catalog.CreateVM(ctx, v.target, doc) }); err != nil {
		return err
	}
	return v.adoptGeneration(ctx, doc)
}

func (v *VM) adoptGeneration(ctx context.Context, doc catalog.VMDoc) error {
	if err := v.state.update(func(s *vmRecord) { s.Version, s.Generation = stateVersion, doc.Generation }); err != nil {
		return err
	}
	return v.reconcile(ctx, doc)
}

// reconcile compares the newest record with what we counted. A record we made
// and did not come to count is counted now, as vm.json, read after it, names us
// still (I7); anything else that differs means that one of the two was reverted:
// nothing is believed any more, and a new generation keeps old names out of the
// way.
func (v *VM) reconcile(ctx context.Context, doc catalog.VMDoc) error {
	now, records, err := v.load(ctx)
	if err != nil {
		return err
	}
	if now.Generation != doc.Generation {
		return v.lose(now, doc.Generation)
	}
	v.noteDescribed(now)
	why, err := v.mistrust(ctx, records)
	if err != nil {
		return err
	}
	if why != "" {
		return v.takeOver(ctx, now, why)
	}
	if v.state.get().TakingOver != 0 { // it did not come as far as vm.json, and is not needed any more
		if err := v.state.update(func(s *vmRecord) { s.TakingOver = 0 }); err != nil {
			return err
		}
	}
	v.setRecords(records)
	if newest := newestOf(records); v.state.get().Recorded.Less(newest.ID()) {
		v.setRecords(records[:len(records)-1])
		if err := v.count(newest); err != nil {
			return err
		}
	}
	return v.releaseShipped()
}

// mistrust says why the target and the state directory cannot be of one history,
// "" if they can.
func (v *VM) mistrust(ctx context.Context, records []catalog.Record) (string, error) {
	st, newest := v.state.get(), newestOf(records)
	switch newest.ID().Compare(st.Recorded) {
	case -1:
		return fmt.Sprintf("the target's newest point is %s, %s was counted there", newest.ID(), st.Recorded), nil
	case 1:
		if m := v.manifestOf(newest); m == nil || newest.Previous != st.Recorded {
			return fmt.Sprintf("the target holds point %s, which this state directory never made", newest.ID()), nil
		}
	}
	if st.Distrust != "" {
		return st.Distrust, nil
	}
	log, err := v.newestLog(ctx, st.Generation)
	if err == nil && log > v.deps.Volume.LastEpoch() {
		return fmt.Sprintf("the target holds epoch %d, this state directory only gave out %d", log, v.deps.Volume.LastEpoch()), nil
	}
	return "", err
}

// newestLog is the highest epoch of our generation that has a segment at the target.
func (v *VM) newestLog(ctx context.Context, generation uint64) (uint64, error) {
	var newest uint64
	err := v.repeat(ctx, func(ctx context.Context) error {
		for item, err := range v.target.List(ctx, catalog.EncodeName(v.opts.Name)+"/") {
			if err != nil {
				return err
			}
			if _, _, id, err := catalog.ParseSegment(item.Name); err == nil && id.Generation == generation {
				newest = max(newest, id.Epoch)
			}
		}
		return nil
	})
	return newest, err
}

func newestOf(records []catalog.Record) (newest catalog.Record) {
	if len(records) > 0 {
		newest = records[len(records)-1]
	}
	return newest
}

// manifestOf is the spooled epoch that a record of ours was made of.
func (v *VM) manifestOf(r catalog.Record) *spool.Manifest {
	for _, m := range v.deps.Spool.Manifests() {
		if m.Generation == r.Generation && m.Epoch == r.Epoch && m.EpochUUID == r.EpochUUID && m.RecordAttempted {
			return m
		}
	}
	return nil
}

// load reads the live records and, after them, the vm.json that judged them.
func (v *VM) load(ctx context.Context) (doc catalog.VMDoc, records []catalog.Record, err error) {
	err = v.repeat(ctx, func(ctx context.Context) error {
		doc, records, err = catalog.Load(ctx, v.target, v.opts.Name)
		return err
	})
	return doc, records, err
}

func (v *VM) setRecords(records []catalog.Record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.records = slices.Clone(records)
}

// takeOver makes us the writer of a new generation; every step may be repeated
// (DESIGN §4, takeover). What was in the spool belongs to the old generation and
// goes; the tables are forgotten, so that the next captures compare and carry all.
// from is the vm.json that we decided on.
func (v *VM) takeOver(ctx context.Context, from catalog.VMDoc, why string) error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	v.opts.Log.Warn("taking the VM over with a new generation", "why", why)
	doc, err := v.raiseGeneration(ctx, from.Generation)
	if err != nil {
		return err
	}
	cut, records, err := v.cutOff(ctx, doc)
	if err != nil {
		return err
	}
	if err := v.dropLocal(doc, cut); err != nil {
		return err
	}
	v.setRecords(records)
	// The old generation's end says nothing any more: a target that lacks its record was put back, replicas and all.
	if err := v.state.update(func(s *vmRecord) { s.ApplyEnd, s.Applied = cut, catalog.PointID{} }); err != nil {
		return err
	}
	if err := v.applyThrough(ctx, cut); err != nil {
		return err
	}
	if err := v.newBases(ctx); err != nil {
		return err
	}
	v.setCatchUp(why)
	err = v.state.update(func(s *vmRecord) {
		s.Version, s.Generation, s.TakingOver, s.Distrust = stateVersion, doc.Generation, 0, ""
		s.Recorded, s.RecordedAt, s.ApplyEnd, s.Applied = cut, newestOf(records).Time, cut, cut
		s.Unrecorded, s.UnrecordedThrough, s.Carried = nil, 0, nil
	})
	v.mu.Lock()
	v.mu.newestEpoch = v.newestSpooled()
	v.mu.Unlock()
	return err
}

// cutOff shuts the old writer out, and ends its generation at its newest record.
func (v *VM) cutOff(ctx context.Context, doc catalog.VMDoc) (cut catalog.PointID, records []catalog.Record, err error) {
	if _, records, err = v.load(ctx); err != nil {
		return cut, nil, err
	}
	if err := v.recoverDisks(ctx, doc, records); err != nil {
		return cut, nil, err
	}
	if err := v.writeCut(ctx, doc.Generation-1); err != nil {
		return cut, nil, err
	}
	_, records, err = v.load(ctx)
	return newestOf(records).ID(), records, err
}

// newBases gives a fold of the new generation a place to start from where no
// snapshot counts any more: those of the old one are beyond the cut. The first
// point carries every block, so what is in the replica does not matter.
func (v *VM) newBases(ctx context.Context) error {
	doc, _, err := v.load(ctx)
	if err != nil {
		return err
	}
	for _, d := range v.disksIn(StageComplete) {
		snaps, err := v.snapshots(ctx, d.state.get().Key)
		if err != nil {
			return err
		}
		if len(snaps) > 0 && doc.Counts(snaps[len(snaps)-1].Point) {
			continue
		}
		r, err := v.openReplica(ctx, d)
		if err != nil {
			return err
		}
		at := catalog.PointID{Generation: doc.Generation, Epoch: v.deps.Volume.LastEpoch()}
		if err := r.seal(ctx, at, catalog.KindBase); err != nil {
			return err
		}
	}
	return nil
}

// raiseGeneration names us in vm.json, unless a third has come between. The
// intent is durable first, so that a crash in the middle is not taken for another
// writer.
func (v *VM) raiseGeneration(ctx context.Context, from uint64) (catalog.VMDoc, error) {
	var doc catalog.VMDoc
	err := v.repeat(ctx, func(ctx context.Context) (err error) {
		doc, err = catalog.UpdateVM(ctx, v.target, v.opts.Name, func(d *catalog.VMDoc) error {
			if v.takingOver(*d) {
				return nil
			}
			if d.Generation != from {
				return v.lose(*d, from)
			}
			next := d.Generation + 1
			if err := v.state.update(func(s *vmRecord) { s.TakingOver = next }); err != nil {
				return err
			}
			d.Generation, d.Owner, d.VMID, d.Updated = next, v.opts.Owner, v.opts.ID, v.opts.Now().UTC()
			return nil
		})
		return err
	})
	return doc, err
}

// recoverDisks matches our disks with the replicas at the target by name, takes
// the leases of all replicas, and starts the tables of ours with nothing known. A
// disk that the target does not know begins with its initial replication.
func (v *VM) recoverDisks(ctx context.Context, doc catalog.VMDoc, records []catalog.Record) error {
	ours := map[string]bool{}
	for _, d := range v.disks() {
		i := slices.IndexFunc(doc.Disks, func(have catalog.DiskDoc) bool { return have.Name == d.src.Name() && !have.Removed })
		if i < 0 {
			if err := d.state.update(func(s *diskRecord) { *s = s.anew(v.deps.Volume.LastEpoch()) }); err != nil {
				return err
			}
			continue
		}
		ours[doc.Disks[i].ID] = true
		if err := v.recoverDisk(ctx, d, doc.Disks[i], records); err != nil {
			return fmt.Errorf("disk %s: %w", d.src.Name(), err)
		}
	}
	for _, other := range doc.Disks {
		err := error(nil)
		if !ours[other.ID] {
			err = v.seizeLease(ctx, catalog.ReplicaName(v.opts.Name, other.ID), newLease())
		}
		if err != nil && !errors.Is(err, target.ErrNotFound) {
			return fmt.Errorf("disk %s: %w", other.Name, err)
		}
	}
	return nil
}

func (v *VM) recoverDisk(ctx context.Context, d *disk, have catalog.DiskDoc, records []catalog.Record) error {
	snaps, err := v.snapshots(ctx, have.ID)
	if err != nil {
		return err
	}
	next := diskRecord{Key: have.ID, Stage: StageInitial, Lease: newLease(), Former: d.state.get().Former}
	if len(snaps) == 0 {
		// Its initial replication never ended; nothing at the target is worth keeping.
		return d.state.update(func(s *diskRecord) { *s = next })
	}
	next.VirtualSize, next.Resized, next.Base = have.VirtualSize, true, v.deps.Volume.LastEpoch()
	next.MostBytes = v.mostBytes(d, have, snaps, records)
	if err := d.state.update(func(s *diskRecord) { *s = next }); err != nil {
		return err
	}
	if err := v.seizeLease(ctx, catalog.ReplicaName(v.opts.Name, have.ID), next.Lease); err != nil {
		return err
	}
	t, err := v.newTable(d, next.MostBytes)
	if err != nil {
		return err
	}
	if err := d.publishTable(t); err != nil {
		return err
	}
	return d.state.update(func(s *diskRecord) { s.Stage, s.TableReady = StageComplete, true })
}

// mostBytes is the largest size the disk may have had: the target may hold
// something in every block of it.
func (v *VM) mostBytes(d *disk, have catalog.DiskDoc, snaps []catalog.Snapshot, records []catalog.Record) int64 {
	most := have.VirtualSize
	if info, err := d.probe(); err == nil {
		most = max(most, info.VirtualSize)
	}
	for _, s := range snaps {
		most = max(most, s.Size-image.FooterSize)
	}
	for _, r := range records {
		if rd, ok := r.Disk(have.ID); ok {
			most = max(most, rd.VirtualSize)
		}
	}
	return most
}

func (v *VM) seizeLease(ctx context.Context, name, id string) error {
	return v.repeat(ctx, func(ctx context.Context) error {
		if err := v.target.BreakLease(ctx, name); err != nil {
			return err
		}
		return v.target.AcquireLease(ctx, name, id)
	})
}

// writeCut ends the old generation at its newest record: no apply of it can have
// gone further (I6). Written before, it stands.
func (v *VM) writeCut(ctx context.Context, old uint64) error {
	_, records, err := v.load(ctx)
	if err != nil {
		return err
	}
	cut := catalog.Cut{Generation: old}
	for _, r := range records {
		if r.Generation == old {
			cut.Epoch = r.Epoch
		}
	}
	return v.updateDoc(ctx, func(d *catalog.VMDoc) error {
		if !slices.ContainsFunc(d.Cuts, func(c catalog.Cut) bool { return c.Generation == old }) {
			d.Cuts = append(d.Cuts, cut)
		}
		return nil
	})
}

// dropLocal forgets what belongs to the old generation here: every spooled epoch
// with its blocks, and numbers that the target may have seen.
func (v *VM) dropLocal(doc catalog.VMDoc, cut catalog.PointID) error {
	if err := v.deps.Volume.RaiseEpoch(max(cut.Epoch, v.newestSpooled())); err != nil {
		return err
	}
	if err := v.forgetAll("a new generation begins"); err != nil {
		return err
	}
	if err := v.dropUnfinished(); err != nil {
		return err
	}
	if from, pending := v.deps.Spool.GiveUpFrom(); pending {
		if err := v.redoGiveUp(from); err != nil {
			return err
		}
	}
	for _, epoch := range v.spooledEpochs() {
		if err := v.deps.Spool.Release(epoch); err != nil {
			return err
		}
	}
	return nil
}

// dropUnfinished takes the blocks of an epoch back that is dropped before its end.
func (v *VM) dropUnfinished() error {
	v.mu.Lock()
	u := v.mu.unfinished
	v.mu.Unlock()
	if u == nil {
		return nil
	}
	if err := u.epoch.MergeBack(); err != nil {
		return err
	}
	v.setUnfinished(nil)
	return nil
}

// updateDoc changes vm.json as long as it names our generation.
func (v *VM) updateDoc(ctx context.Context, change func(*catalog.VMDoc) error) error {
	if err := v.lost(); err != nil {
		return err
	}
	ours := v.generation()
	return v.repeat(ctx, func(ctx context.Context) error {
		doc, err := catalog.UpdateVM(ctx, v.target, v.opts.Name, func(d *catalog.VMDoc) error {
			if d.Generation != ours {
				return v.lose(*d, ours)
			}
			if err := change(d); err != nil {
				return err
			}
			d.Updated = v.opts.Now().UTC().Truncate(time.Second)
			return nil
		})
		if err == nil {
			v.noteDescribed(doc)
		}
		return err
	})
}

func (v *VM) snapshots(ctx context.Context, key string) (snaps []catalog.Snapshot, err error) {
	err = v.repeat(ctx, func(ctx context.Context) error {
		snaps, err = catalog.Snapshots(ctx, v.target, v.opts.Name, key)
		if errors.Is(err, target.ErrNotFound) {
			err = nil
		}
		return err
	})
	return snaps, err
}
