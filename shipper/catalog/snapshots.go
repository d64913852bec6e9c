package catalog

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Kinds of a snapshot of a replica.
const (
	KindBase  = "base"  // ended an initial replication: a fold starts here, never a point itself
	KindApply = "apply" // the disk at the epoch it names, exactly
)

// Metadata keys of a snapshot. Stored: never change.
const (
	metaGeneration = "generation"
	metaEpoch      = "epoch"
	metaKind       = "kind"
)

// Snapshot is one of our snapshots of a replica.
type Snapshot struct {
	ID    string // the target's
	Point PointID
	Kind  string
	Size  int64 // bytes of the page blob, footer included
	Time  time.Time
}

// SnapshotMetadata is what a snapshot carries.
func SnapshotMetadata(point PointID, kind string) map[string]string {
	return map[string]string{
		metaGeneration: strconv.FormatUint(point.Generation, 10),
		metaEpoch:      strconv.FormatUint(point.Epoch, 10),
		metaKind:       kind,
	}
}

// Snapshots lists our snapshots of a disk's replica in the order of their
// points, of one point the newest last. Those without our metadata are
// somebody's own business: they are left out here and never deleted.
func Snapshots(ctx context.Context, t target.Target, vm, disk string) ([]Snapshot, error) {
	infos, err := t.Snapshots(ctx, ReplicaName(vm, disk))
	if err != nil {
		return nil, err
	}
	var ours []Snapshot
	for _, info := range infos {
		if s, ok := parseSnapshot(info); ok {
			ours = append(ours, s)
		}
	}
	slices.SortStableFunc(ours, func(a, b Snapshot) int {
		return cmp.Or(a.Point.Compare(b.Point), cmp.Compare(a.ID, b.ID))
	})
	return ours, nil
}

func parseSnapshot(info target.SnapshotInfo) (Snapshot, bool) {
	point, err := ParsePointID(info.Metadata[metaGeneration] + "-" + info.Metadata[metaEpoch])
	kind := info.Metadata[metaKind]
	if err != nil || kind != KindBase && kind != KindApply {
		return Snapshot{}, false
	}
	return Snapshot{ID: info.ID, Point: point, Kind: kind, Size: info.Size, Time: info.Time}, true
}

// AllSnapshots lists the snapshots of every disk that a record names, by id.
func AllSnapshots(ctx context.Context, t target.Target, vm string, records []Record) (map[string][]Snapshot, error) {
	disks := map[string]bool{}
	for _, r := range records {
		for _, d := range r.Disks {
			disks[d.ID] = true
		}
	}
	return SnapshotsOf(ctx, t, vm, disks)
}

// SnapshotsOf lists the snapshots of the given disks, by id.
func SnapshotsOf(ctx context.Context, t target.Target, vm string, disks map[string]bool) (map[string][]Snapshot, error) {
	ids := slices.Sorted(maps.Keys(disks))
	lists := make([][]Snapshot, len(ids))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(DefaultReaders)
	for i, id := range ids {
		g.Go(func() (err error) {
			lists[i], err = Snapshots(ctx, t, vm, id)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	byDisk := make(map[string][]Snapshot, len(ids))
	for i, id := range ids {
		byDisk[id] = lists[i]
	}
	return byDisk, nil
}

// Newest is the last snapshot of an ordered list at or before a point, base or
// apply, inside the cuts; false if there is none.
func (d VMDoc) Newest(snapshots []Snapshot, point PointID) (Snapshot, bool) {
	for i := len(snapshots) - 1; i >= 0; i-- {
		if s := snapshots[i]; !point.Less(s.Point) && d.Counts(s.Point) {
			return s, true
		}
	}
	return Snapshot{}, false
}

// HasSnapshot tells whether every complete disk of the record has a snapshot of
// exactly this epoch, so that the point needs no segment.
func HasSnapshot(r Record, snapshots map[string][]Snapshot) bool {
	complete := 0
	for _, d := range r.Disks {
		if d.State != StateComplete {
			continue
		}
		complete++
		if !slices.ContainsFunc(snapshots[d.ID], func(s Snapshot) bool {
			return s.Kind == KindApply && s.Point == r.ID()
		}) {
			return false
		}
	}
	return complete > 0
}
