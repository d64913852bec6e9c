package shipper

import (
	"context"
	"slices"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// noteTouched remembers that a replica is not as we left it: somebody else wrote
// to it. What is wrong with it only a comparison tells; until then the points that
// are made of it are doubted.
func (v *VM) noteTouched(ctx context.Context, d *disk) error {
	const why = "the replica was changed by others"
	v.opts.Log.Error(why+"; it has to be compared", "disk", d.src.Name(), "code", "replica-changed", "action", "run: vhdrelay resync "+v.opts.Name+" --deep --now")
	snaps, err := v.snapshots(ctx, d.state.get().Key)
	if err != nil {
		return err
	}
	var newest catalog.PointID
	if len(snaps) > 0 {
		newest = snaps[len(snaps)-1].Point
	}
	err = d.note(func(s *diskRecord) { s.ETag, s.Touched, s.TouchedAt = "", why, newest })
	v.notify()
	return err
}

// doubtFrom writes into vm.json that points from one on are made of a replica that
// may not hold what it should, before there is a snapshot that they are made of.
func (v *VM) doubtFrom(ctx context.Context, d *disk, from catalog.PointID) error {
	st := d.state.get()
	if st.Touched == "" {
		return nil
	}
	return v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		open := slices.ContainsFunc(doc.Doubts, func(have catalog.Doubt) bool { return have.DiskID == st.Key && have.Until.IsZero() })
		if !open {
			doc.Doubts = append(doc.Doubts, catalog.Doubt{DiskID: st.Key, From: from, Since: v.opts.Now().UTC(), Why: st.Touched})
		}
		return nil
	})
}

// endDoubts says in vm.json from which point on a disk's points are good again,
// and drops the doubts that no point is left of.
func (v *VM) endDoubts(ctx context.Context, key string, until catalog.PointID) error {
	return v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		var kept []catalog.Doubt
		for _, doubt := range doc.Doubts {
			if doubt.DiskID == key && doubt.Until.IsZero() {
				doubt.Until = until
			}
			if doubt.From.Less(doubt.Until) || doubt.Until.IsZero() {
				kept = append(kept, doubt)
			}
		}
		doc.Doubts = kept
		return nil
	})
}

// settleDoubts ends the doubts of disks whose repair is recorded: the first point
// that was sealed after the damage was made unknown carries all of it.
func (v *VM) settleDoubts(ctx context.Context) error {
	for _, d := range v.disks() {
		st := d.state.get()
		if st.RepairAfter == 0 {
			continue
		}
		good, ok := v.firstPointAfter(st.RepairAfter, st.Key)
		if !ok {
			continue
		}
		if st.Again { // what was written since is still to be found
			if err := d.state.update(func(s *diskRecord) { s.RepairAfter, s.Again = 0, false }); err != nil {
				return err
			}
			continue
		}
		if err := v.endDoubts(ctx, st.Key, good); err != nil {
			return err
		}
		if err := d.state.update(func(s *diskRecord) { s.RepairAfter, s.Touched, s.TouchedAt = 0, "", catalog.PointID{} }); err != nil {
			return err
		}
		v.opts.Log.Info("the replica's damage is repaired", "disk", d.src.Name(), "point", good.String())
	}
	return nil
}

func (v *VM) firstPointAfter(epoch uint64, key string) (catalog.PointID, bool) {
	for _, r := range v.liveRecords() {
		if rd, ok := r.Disk(key); ok && rd.State == catalog.StateComplete && r.Generation == v.generation() && r.Epoch > epoch {
			return r.ID(), true
		}
	}
	return catalog.PointID{}, false
}

// pruneDoubts drops the doubts that are about no point any more.
func (v *VM) pruneDoubts(ctx context.Context) error {
	v.mu.Lock()
	doubts := v.mu.doubts
	v.mu.Unlock()
	records := v.liveRecords()
	gone := func(d catalog.Doubt) bool {
		about := func(r catalog.Record) bool { return r.ID().Less(d.Until) && !r.ID().Less(d.From) }
		return !d.Until.IsZero() && !slices.ContainsFunc(records, about)
	}
	if !slices.ContainsFunc(doubts, gone) {
		return nil
	}
	return v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		doc.Doubts = slices.DeleteFunc(doc.Doubts, gone)
		return nil
	})
}
