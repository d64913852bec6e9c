package retention

import (
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Policy says for how long points are kept, by age before the newest point.
type Policy struct {
	Dense  time.Duration // every point
	Hourly time.Duration // one an hour
	Daily  time.Duration // one a day (UTC)
}

// DefaultPolicy is the configuration's default.
var DefaultPolicy = Policy{Dense: 2 * time.Hour, Hourly: 24 * time.Hour, Daily: 7 * 24 * time.Hour}

// Point is what Keep has to know of a recovery point.
type Point struct {
	ID       catalog.PointID
	Time     time.Time
	Snapshot bool // every complete disk has a snapshot of exactly this epoch
	// Base is where the fold of the disk that starts earliest starts; the records
	// of all points after it, up to this one, list the segments of the fold. Equal
	// to ID if Snapshot; zero if a disk has no snapshot to start from.
	Base catalog.PointID
}

// Keep returns the ids, in order, of the points to keep; points are in order.
//
// Kept are the newest, all that are younger than Dense, and of those younger
// than Hourly and Daily the oldest of each hour and day among the points that
// need no segment: the first, because it then stays the choice whatever comes
// later. And with a point every point whose record its fold reads, and theirs:
// a point that is listed can be restored.
//
// Ages count from the newest point, never from now: a VM that stands still, or a
// clock that jumps, costs no point.
func Keep(points []Point, p Policy) []catalog.PointID {
	if len(points) == 0 {
		return nil
	}
	keep := make([]bool, len(points))
	newest := points[len(points)-1]
	keep[len(points)-1] = true
	for i, point := range points {
		keep[i] = keep[i] || newest.Time.Sub(point.Time) <= p.Dense
	}
	keepOldest(points, keep, p.Hourly, time.Hour)
	keepOldest(points, keep, p.Daily, 24*time.Hour)
	keepFolds(points, keep)
	var ids []catalog.PointID
	for i, point := range points {
		if keep[i] {
			ids = append(ids, point.ID)
		}
	}
	return ids
}

// keepOldest keeps the oldest point with snapshots of each period of absolute
// time, as long as it is at most age old.
func keepOldest(points []Point, keep []bool, age, period time.Duration) {
	newest := points[len(points)-1].Time
	taken := map[time.Time]bool{}
	for i, point := range points {
		bucket := point.Time.UTC().Truncate(period)
		if !point.Snapshot || taken[bucket] {
			continue
		}
		taken[bucket] = true // also when too old: the next one must not take its place
		keep[i] = keep[i] || newest.Sub(point.Time) <= age
	}
}

// keepFolds goes from the newest to the oldest, so that what a fold adds is
// looked at too.
func keepFolds(points []Point, keep []bool) {
	need := newestID // records after this one are read by a fold of a kept point
	for i := len(points) - 1; i >= 0; i-- {
		keep[i] = keep[i] || need.Less(points[i].ID)
		if keep[i] && points[i].Base.Less(need) {
			need = points[i].Base
		}
		if !need.Less(points[i].ID) {
			need = newestID // every fold so far starts here or later
		}
	}
}

var newestID = catalog.PointID{Generation: ^uint64(0), Epoch: ^uint64(0)}

// pointsOf makes Keep's points of live records.
func pointsOf(doc catalog.VMDoc, live []catalog.Record, snapshots map[string][]catalog.Snapshot) []Point {
	points := make([]Point, len(live))
	for i, r := range live {
		points[i] = Point{ID: r.ID(), Time: r.Time, Snapshot: catalog.HasSnapshot(r, snapshots), Base: r.ID()}
		for _, d := range r.Disks {
			if d.State != catalog.StateComplete {
				continue
			}
			start, _ := doc.Newest(snapshots[d.ID], r.ID()) // none: zero, all before is needed
			if start.Point.Less(points[i].Base) {
				points[i].Base = start.Point
			}
		}
	}
	return points
}

// keptOf is Keep over the records, and Latest, which an operator would ask for
// while a disk is replicated anew.
func keptOf(doc catalog.VMDoc, live []catalog.Record, snapshots map[string][]catalog.Snapshot, p Policy) map[catalog.PointID]bool {
	points := pointsOf(doc, live, snapshots)
	ids := Keep(points, p)
	if latest, ok := catalog.Latest(doc, live); ok && !slices.Contains(ids, latest.ID()) {
		through := slices.IndexFunc(points, func(q Point) bool { return q.ID == latest.ID() })
		ids = append(ids, Keep(points[:through+1], Policy{})...)
	}
	kept := make(map[catalog.PointID]bool, len(ids))
	for _, id := range ids {
		kept[id] = true
	}
	return kept
}
