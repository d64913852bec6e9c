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
	adopt := v.state.get().Adopt
	if err := v.lost(); err != nil && !adopt {
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
	case ours == 0 && v.sameHost(doc):
		return v.takeOver(ctx, doc, "this host replicated the VM before and its state is gone")
	case adopt && doc.Generation != ours:
		return v.takeOver(ctx, doc, "asked for by an operator")
	case ours == 0:
		return foreign(v.opts.Name, doc)
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
	v.pruner = retention.NewPruner(t, v, v.opts.Name, retention.Options{Now: v.opts.Now, Hook: v.opts.Hook})
	return nil
}

func (v *VM) sameHost(doc catalog.VMDoc) bool {
	return doc.Owner.MachineID == v.opts.Owner.MachineID && doc.Owner.StoreID == v.opts.Owner.StoreID
}

// foundedByUs recognises a vm.json of our own first start, whose answer was lost:
// the VM id is drawn by this state directory and known nowhere else.
func (v *VM) foundedByUs(doc catalog.VMDoc) bool {
	return v.sameHost(doc) && doc.VMID == v.opts.ID && doc.Generation == v.firstGeneration()
}

func (v *VM) firstGeneration() uint64 { return max(1, v.opts.FirstGeneration) }

// takingOver recognises the generation that our own unfinished takeover wrote.
func (v *VM) takingOver(doc catalog.VMDoc) bool {
	return v.sameHost(doc) && doc.VMID == v.opts.ID && v.state.get().TakingOver == doc.Generation
}

// found writes the first vm.json.
func (v *VM) found(ctx context.Context) error {
	doc := catalog.VMDoc{Version: catalog.FormatVersion, Name: v.opts.Name, VMID: v.opts.ID, Owner: v.opts.Owner, Generation: v.firstGeneration(), Updated: v.opts.Now().UTC()}
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
	if st := v.state.get(); st.TakingOver != 0 || st.Adopt { // it did not come as far as vm.json, and is not needed any more
		if err := v.state.update(func(s *vmRecord) { s.TakingOver, s.Adopt = 0, false }); err != nil {
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
