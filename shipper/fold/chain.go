package fold

import (
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Chain lists the segments of a disk that records in (start, through] name,
// those and no others (I5), oldest first; records are live and in order. The
// records must follow each other without a gap, and carry the disk without a gap:
// else the error is catalog.ErrChain, because a fold over a gap is no state.
func Chain(records []catalog.Record, start catalog.Snapshot, through catalog.PointID, disk string) ([]catalog.SegmentRef, error) {
	var segments []catalog.SegmentRef
	before, carried := start.Point, start.Kind == catalog.KindApply
	first := true
	for _, r := range records {
		if !start.Point.Less(r.ID()) || through.Less(r.ID()) {
			continue
		}
		broken := r.Previous != before
		if first && start.Kind == catalog.KindBase {
			broken = before.Less(r.Previous) // a base lies between points
		}
		if broken {
			return nil, &catalog.ChainError{At: r.ID(), Previous: r.Previous, Before: before}
		}
		before, first = r.ID(), false
		d, _ := r.Disk(disk)
		complete := d.State == catalog.StateComplete
		if carried && !complete {
			return nil, fmt.Errorf("%w: point %s does not carry %s", catalog.ErrChain, r.ID(), disk)
		}
		carried = complete
		segments = appendSegments(segments, r, start.Point, disk)
	}
	slices.SortStableFunc(segments, func(a, b catalog.SegmentRef) int { return a.ID().Compare(b.ID()) })
	return segments, nil
}

func appendSegments(segments []catalog.SegmentRef, r catalog.Record, after catalog.PointID, disk string) []catalog.SegmentRef {
	for _, s := range r.Segments {
		if s.DiskID == disk && after.Less(s.ID()) {
			segments = append(segments, s)
		}
	}
	return segments
}
