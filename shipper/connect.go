package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

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
		return v.takeOver(ctx, "this host replicated the VM before and its state is gone")
	case doc.Generation != ours && v.takingOver(doc):
		return v.takeOver(ctx, "a takeover of ours was interrupted")
	case doc.Generation != ours:
		return fenced(v.opts.Name, doc, ours)
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
// and did not come to count is counted now; anything else that differs means that
// one of the two was reverted: nothing is believed any more, and a new generation
// keeps old names out of the way.
func (v *VM) reconcile(ctx context.Context, doc catalog.VMDoc) error {
	records, err := v.loadRecords(ctx)
	if err != nil {
		return err
	}
	st := v.state.get()
	var newest catalog.Record
	if len(records) > 0 {
		newest = records[len(records)-1]
	}
	switch newest.ID().Compare(st.Recorded) {
	case -1:
		return v.takeOver(ctx, fmt.Sprintf("the target's newest point is %s, %s was counted there", newest.ID(), st.Recorded))
	case 1:
		m := v.manifestOf(newest)
		if m == nil {
			return v.takeOver(ctx, fmt.Sprintf("the target holds point %s, which this state directory never made", newest.ID()))
		}
		v.setRecords(records[:len(records)-1])
		if err := v.count(newest); err != nil {
			return err
		}
	default:
		v.setRecords(records)
	}
	return v.releaseShipped()
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

func (v *VM) loadRecords(ctx context.Context) (records []catalog.Record, err error) {
	err = v.repeat(ctx, func(ctx context.Context) error {
		records, err = catalog.Records(ctx, v.target, v.opts.Name)
		return err
	})
	return records, err
}

func (v *VM) setRecords(records []catalog.Record) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.records = slices.Clone(records)
}

// takeOver makes us the writer of a new generation; every step may be repeated
// (DESIGN §4, takeover). What was in the spool belongs to the old generation and
// goes; the tables are forgotten, so that the next captures compare and carry all.
func (v *VM) takeOver(ctx context.Context, why string) error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	v.opts.Log.Warn("taking the VM over with a new generation", "why", why)
	doc, err := v.raiseGeneration(ctx)
	if err != nil {
		return err
	}
	if err := v.recoverDisks(ctx, doc); err != nil {
		return err
	}
	cut, err := v.writeCut(ctx, doc)
	if err != nil {
		return err
	}
	if err := v.dropLocal(doc, cut); err != nil {
		return err
	}
	records, err := v.loadRecords(ctx)
	if err != nil {
		return err
	}
	v.setRecords(records)
	if err := v.applyThrough(ctx, cut); err != nil {
		return err
	}
	v.setCatchUp(why)
	return v.state.update(func(s *vmRecord) {
		s.Version, s.Generation, s.TakingOver = stateVersion, doc.Generation, 0
		s.Recorded, s.ApplyEnd, s.Applied = cut, cut, cut
		s.Unrecorded, s.UnrecordedThrough = nil, 0
		if len(records) > 0 {
			s.RecordedAt = records[len(records)-1].Time
		}
	})
}

// raiseGeneration names us in vm.json. The intent is durable first, so that a
// crash in the middle is not taken for another writer.
func (v *VM) raiseGeneration(ctx context.Context) (catalog.VMDoc, error) {
	var doc catalog.VMDoc
	err := v.repeat(ctx, func(ctx context.Context) (err error) {
		doc, err = catalog.UpdateVM(ctx, v.target, v.opts.Name, func(d *catalog.VMDoc) error {
			if v.state.get().TakingOver == d.Generation {
				return nil
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
// their leases, and starts their tables with nothing known.
func (v *VM) recoverDisks(ctx context.Context, doc catalog.VMDoc) error {
	for _, d := range v.disks() {
		i := slices.IndexFunc(doc.Disks, func(have catalog.DiskDoc) bool { return have.Name == d.src.Name() && !have.Removed })
		if i < 0 {
			continue // new to the target: initial replication
		}
		if err := v.recoverDisk(ctx, d, doc.Disks[i]); err != nil {
			return fmt.Errorf("disk %s: %w", d.src.Name(), err)
		}
	}
	return nil
}

func (v *VM) recoverDisk(ctx context.Context, d *disk, have catalog.DiskDoc) error {
	name := catalog.ReplicaName(v.opts.Name, have.ID)
	snaps, err := v.snapshots(ctx, have.ID)
	if err != nil {
		return err
	}
	if len(snaps) == 0 {
		// Its initial replication never ended; nothing at the target is worth keeping.
		return d.state.update(func(s *diskRecord) { *s = diskRecord{Key: have.ID, Stage: StageInitial, Lease: newLease()} })
	}
	lease := newLease()
	if err := d.state.update(func(s *diskRecord) {
		s.Key, s.Lease, s.VirtualSize = have.ID, lease, have.VirtualSize
	}); err != nil {
		return err
	}
	if err := v.seizeLease(ctx, name, lease); err != nil {
		return err
	}
	t, err := v.newTable(d, have.VirtualSize)
	if err != nil {
		return err
	}
	if err := d.publishTable(t); err != nil {
		return err
	}
	return d.state.update(func(s *diskRecord) { s.Stage, s.TableReady = StageComplete, true })
}

func (v *VM) seizeLease(ctx context.Context, name, id string) error {
	return v.repeat(ctx, func(ctx context.Context) error {
		if err := v.target.BreakLease(ctx, name); err != nil {
			return err
		}
		return v.target.AcquireLease(ctx, name, id)
	})
}

// writeCut ends the old generations at their newest record: no apply of theirs
// can have gone further (I6). Written before, it stands.
func (v *VM) writeCut(ctx context.Context, doc catalog.VMDoc) (catalog.PointID, error) {
	old := doc.Generation - 1
	records, err := v.loadRecords(ctx)
	if err != nil {
		return catalog.PointID{}, err
	}
	var cut catalog.PointID
	for _, r := range records {
		if r.Generation <= old {
			cut = r.ID()
		}
	}
	err = v.updateDoc(ctx, func(d *catalog.VMDoc) error {
		if slices.ContainsFunc(d.Cuts, func(c catalog.Cut) bool { return c.Generation == old }) {
			return nil
		}
		epoch := uint64(0)
		if cut.Generation == old {
			epoch = cut.Epoch
		}
		d.Cuts = append(d.Cuts, catalog.Cut{Generation: old, Epoch: epoch})
		return nil
	})
	return cut, err
}

// dropLocal forgets what belongs to the old generation here: every spooled epoch
// with its blocks, and numbers that the target may have seen.
func (v *VM) dropLocal(doc catalog.VMDoc, cut catalog.PointID) error {
	if err := v.deps.Volume.RaiseEpoch(max(cut.Epoch, v.newestSpooled())); err != nil {
		return err
	}
	for _, d := range v.disksIn(StageComplete) {
		if t := d.table(); t != nil {
			if err := t.Forget(DiskRange{End: t.Blocks()}); err != nil {
				return err
			}
		}
	}
	for _, m := range v.deps.Spool.Manifests() {
		if m.Generation < doc.Generation {
			if err := v.deps.Spool.Release(m.Epoch); err != nil {
				return err
			}
		}
	}
	return nil
}

// updateDoc changes vm.json as long as it names our generation.
func (v *VM) updateDoc(ctx context.Context, change func(*catalog.VMDoc) error) error {
	st := v.state.get()
	ours := max(st.Generation, st.TakingOver)
	return v.repeat(ctx, func(ctx context.Context) error {
		_, err := catalog.UpdateVM(ctx, v.target, v.opts.Name, func(d *catalog.VMDoc) error {
			if d.Generation != ours {
				return fenced(v.opts.Name, *d, ours)
			}
			if err := change(d); err != nil {
				return err
			}
			d.Updated = v.opts.Now().UTC().Truncate(time.Second)
			return nil
		})
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
