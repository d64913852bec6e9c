package shipper

import (
	"context"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
)

// pruneInterval is how often retention is looked after.
const pruneInterval = 5 * time.Minute

// pruneStep deletes the points that the policy no longer keeps, and what only
// they needed.
func (v *VM) pruneStep(ctx context.Context) error {
	if err := v.checkGeneration(ctx); err != nil {
		return err
	}
	result, err := v.pruner.Prune(ctx, v.live().Policy, v.state.get().Generation)
	if len(result.Records) > 0 {
		if observe := v.opts.Observer.Pruned; observe != nil {
			observe(len(result.Records), len(result.Segments), len(result.Snapshots))
		}
		// It comes by the clock, so it is no news.
		v.opts.Log.Debug("recovery points pruned", "points", len(result.Records), "segments", len(result.Segments), "snapshots", len(result.Snapshots))
		v.forgetRecords(result.Records)
	}
	if err != nil {
		return err
	}
	return v.pruneDoubts(ctx)
}

func (v *VM) forgetRecords(gone []catalog.PointID) {
	dead := map[catalog.PointID]bool{}
	for _, id := range gone {
		dead[id] = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var live []catalog.Record
	for _, r := range v.mu.records {
		if !dead[r.ID()] {
			live = append(live, r)
		}
	}
	v.mu.records = live
}

// ServiceTime is the target's clock: vm.json carries our time of its last write,
// the listing the target's. It is written for that: a clock that jumped since the
// write before would not show.
func (v *VM) ServiceTime(ctx context.Context) (time.Time, error) {
	if err := v.updateDoc(ctx, func(*catalog.VMDoc) error { return nil }); err != nil {
		return time.Time{}, err
	}
	doc, _, err := catalog.LoadVM(ctx, v.target, v.opts.Name)
	if err != nil {
		return time.Time{}, err
	}
	name := catalog.VMDocName(v.opts.Name)
	for item, err := range v.target.List(ctx, name) {
		if err != nil {
			return time.Time{}, err
		}
		if item.Name == name {
			return v.opts.Now().Add(item.Modified.Sub(doc.Updated)), nil
		}
	}
	return v.opts.Now(), nil
}

var _ retention.Clock = (*VM)(nil)
