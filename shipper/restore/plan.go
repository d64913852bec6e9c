package restore

import (
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/fold"
)

// Plan is what one disk of a point is made of.
type Plan struct {
	VM       string
	Point    catalog.PointID
	UUID     string    // of the point's epoch
	Time     time.Time // of the point
	Disk     catalog.RecordDisk
	Snapshot catalog.Snapshot
	Segments []catalog.SegmentRef // (Snapshot.Point, Point], oldest first
}

// Need is the plan as a pin names it.
func (p Plan) Need() catalog.Need {
	need := catalog.Need{DiskID: p.Disk.ID, Snapshot: p.Snapshot.ID}
	for _, s := range p.Segments {
		need.Segments = append(need.Segments, s.Blob)
	}
	return need
}

// MakePlan decides it, from the live records, in order, and the disk's
// snapshots, in order. It refuses to fold across a place where a record is
// missing (catalog.ErrChain).
func MakePlan(doc catalog.VMDoc, records []catalog.Record, snapshots []catalog.Snapshot, point catalog.PointID, disk string) (Plan, error) {
	last := slices.IndexFunc(records, func(r catalog.Record) bool { return r.ID() == point })
	if last < 0 {
		return Plan{}, fmt.Errorf("%w: %s has no point %s", catalog.ErrNoPoint, doc.Name, point)
	}
	recorded, ok := records[last].Disk(disk)
	if !ok || recorded.State != catalog.StateComplete {
		return Plan{}, fmt.Errorf("%w: %s of %s at %s", ErrNoDisk, disk, doc.Name, point)
	}
	start, ok := doc.Newest(snapshots, point)
	if !ok {
		return Plan{}, fmt.Errorf("%w: %s/%s at %s", ErrNoBase, doc.Name, recorded.Name, point)
	}
	segments, err := fold.Chain(records, start, point, disk)
	if err != nil {
		return Plan{}, err
	}
	return Plan{VM: doc.Name, Point: point, UUID: records[last].EpochUUID,
		Time: records[last].Time, Disk: recorded, Snapshot: start, Segments: segments}, nil
}
