package catalog

import (
	"context"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// SpecLatest asks FindPoint for Latest.
const SpecLatest = "latest"

// Latest is the newest point that is complete for every disk that was complete
// at any point and is not removed; false if there is none. One that is doubted is
// taken only if all are.
func Latest(doc VMDoc, records []Record) (Record, bool) {
	removed := map[string]bool{}
	for _, d := range doc.Disks {
		removed[d.ID] = d.Removed
	}
	wanted := map[string]bool{}
	for _, r := range records {
		for _, d := range r.Disks {
			if d.State == StateComplete && !removed[d.ID] {
				wanted[d.ID] = true
			}
		}
	}
	var last Record
	for i := len(records) - 1; i >= 0; i-- {
		switch r := records[i]; {
		case !r.completeFor(wanted):
		case !doc.Doubted(r):
			return r, true
		case last.Epoch == 0:
			last = r
		}
	}
	return last, last.Epoch != 0
}

// Doubted tells whether a disk of the point is made of a replica that did not
// hold what it should.
func (d VMDoc) Doubted(r Record) bool {
	for _, doubt := range d.Doubts {
		if rd, ok := r.Disk(doubt.DiskID); ok && rd.State == StateComplete && doubt.covers(r.ID()) {
			return true
		}
	}
	return false
}

func (d Doubt) covers(id PointID) bool {
	return !id.Less(d.From) && (d.Until.IsZero() || id.Less(d.Until))
}

func (r Record) completeFor(wanted map[string]bool) bool {
	complete := map[string]bool{}
	for _, d := range r.Disks {
		if d.State == StateComplete {
			complete[d.ID] = true
		}
	}
	for id := range wanted {
		if !complete[id] {
			return false
		}
	}
	return len(complete) > 0
}

// FindPoint finds what the operator asks for: "latest", an id, or an RFC 3339
// time, which means the newest point at or before it. ErrNoPoint if there is
// none.
func FindPoint(doc VMDoc, records []Record, spec string) (Record, error) {
	if spec == "" || spec == SpecLatest {
		if r, ok := Latest(doc, records); ok {
			return r, nil
		}
		return Record{}, fmt.Errorf("%w: none of the %d points of %s is complete", ErrNoPoint, len(records), doc.Name)
	}
	if id, err := ParsePointID(spec); err == nil {
		for _, r := range records {
			if r.ID() == id {
				return r, nil
			}
		}
		return Record{}, fmt.Errorf("%w: %s has no point %s", ErrNoPoint, doc.Name, id)
	}
	at, err := time.Parse(time.RFC3339, spec)
	if err != nil {
		return Record{}, fmt.Errorf("%w: %q is neither latest, nor an id like 1-12, nor an RFC 3339 time", ErrNoPoint, spec)
	}
	for i := len(records) - 1; i >= 0; i-- {
		if !records[i].Time.After(at) {
			return records[i], nil
		}
	}
	return Record{}, fmt.Errorf("%w: %s has none at or before %s", ErrNoPoint, doc.Name, spec)
}

// PointsDoc is what `points VM --json` prints.
type PointsDoc struct {
	VM     string  `json:"vm"`
	Points []Point `json:"points"`
}

// Point is a recovery point as the operator sees it.
type Point struct {
	ID          string      `json:"id"`
	Generation  uint64      `json:"generation"`
	Epoch       uint64      `json:"epoch"`
	Time        time.Time   `json:"time"`
	Consistency string      `json:"consistency"`
	Snapshot    bool        `json:"snapshot"` // every complete disk has a snapshot of exactly this epoch
	Doubted     bool        `json:"doubted,omitempty"`
	Disks       []PointDisk `json:"disks"`
}

// PointDisk is a complete disk of a point. Sizes are bytes.
type PointDisk struct {
	Name         string `json:"name"`
	VirtualSize  int64  `json:"virtual_size"`
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// Points makes the operator's list of the records. snapshots are by disk id.
func Points(of VMDoc, records []Record, snapshots map[string][]Snapshot) PointsDoc {
	doc := PointsDoc{VM: of.Name, Points: make([]Point, 0, len(records))}
	for _, r := range records {
		p := Point{ID: r.ID().String(), Generation: r.Generation, Epoch: r.Epoch, Time: r.Time.UTC(),
			Consistency: r.Consistency, Snapshot: HasSnapshot(r, snapshots), Doubted: of.Doubted(r), Disks: []PointDisk{}}
		for _, d := range r.Disks {
			if d.State == StateComplete {
				p.Disks = append(p.Disks, PointDisk{Name: d.Name, VirtualSize: d.VirtualSize,
					ChangedBytes: d.ChangedBytes, StoredBytes: d.StoredBytes})
			}
		}
		doc.Points = append(doc.Points, p)
	}
	return doc
}

// LoadPoints reads everything Points needs. As with Records, the document is
// valid with an ErrChain.
func LoadPoints(ctx context.Context, t target.Target, vm string) (PointsDoc, error) {
	of, records, chain := Load(ctx, t, vm)
	if chain != nil && records == nil {
		return PointsDoc{}, chain
	}
	snapshots, err := AllSnapshots(ctx, t, vm, records)
	if err != nil {
		return PointsDoc{}, err
	}
	return Points(of, records, snapshots), chain
}
