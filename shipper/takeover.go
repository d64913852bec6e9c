package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// takeOver makes us the writer of a new generation; every step may be repeated
// (DESIGN §4, takeover). What was in the spool belongs to the old generation and
// goes; the tables are forgotten, and found out anew by a comparison of source and
// replica before the next capture.
// from is the vm.json that we decided on.
func (v *VM) takeOver(ctx context.Context, from catalog.VMDoc, why string) error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	if v.state.get().Adopt { // asked for by who knows of the other writer
		v.mu.Lock()
		v.mu.lostTo = nil
		v.mu.Unlock()
	}
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
		s.Version, s.Generation, s.TakingOver, s.Distrust, s.Adopt = stateVersion, doc.Generation, 0, "", false
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
	next := diskRecord{Key: have.ID, Stage: StageInitial, Lease: newLease(), Former: d.state.get().Former, Created: true}
	if len(snaps) == 0 {
		next.Seed = true // its initial replication never ended; what came so far need not come again
		return d.state.update(func(s *diskRecord) { *s = next })
	}
	next.VirtualSize, next.Resized, next.Base, next.Matching = have.VirtualSize, true, v.deps.Volume.LastEpoch(), true
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
