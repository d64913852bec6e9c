package retention

import (
	"context"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Every removal is idempotent: what is gone already counts as removed.

func removeSegment(seg segment) candidate {
	return candidate{"segment " + seg.name, func(ctx context.Context, t target.Target, result *Result) error {
		err := t.Delete(ctx, seg.name)
		if err == nil {
			result.Segments = append(result.Segments, seg.name)
		}
		return err
	}}
}

func removeSnapshot(vm, disk, id string) candidate {
	key := snapshotKey(disk, id)
	return candidate{"snapshot " + key, func(ctx context.Context, t target.Target, result *Result) error {
		err := t.DeleteSnapshot(ctx, catalog.ReplicaName(vm, disk), id)
		if err == nil {
			result.Snapshots = append(result.Snapshots, key)
		}
		return err
	}}
}

func removeRecord(vm string, id catalog.PointID) candidate {
	return candidate{"record " + id.String(), func(ctx context.Context, t target.Target, result *Result) error {
		err := t.Delete(ctx, catalog.RecordName(vm, id))
		if err == nil {
			result.Records = append(result.Records, id)
		}
		return err
	}}
}

func removePin(vm, id string) candidate {
	return candidate{"pin " + id, func(ctx context.Context, t target.Target, result *Result) error {
		err := catalog.DeletePin(ctx, t, vm, id)
		if err == nil {
			result.Pins = append(result.Pins, id)
		}
		return err
	}}
}
