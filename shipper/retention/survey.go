package retention

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// surveyed is everything a run decides on.
type surveyed struct {
	vm        string
	doc       catalog.VMDoc
	all       []catalog.Record // void ones and those beyond a cut included
	live      []catalog.Record
	kept      []catalog.Record // filled by pruneRecords
	snapshots map[string][]catalog.Snapshot
	segments  []segment
	disks     map[string]bool // that have a blob, or are named
	pins      []catalog.Pin
}

// segment is a log blob that is there.
type segment struct {
	name, disk string
	id         catalog.PointID
}

// survey reads the VM. The pins come last but for the snapshots: what a reader
// pins it has seen a record of, and what was unneeded an hour ago had none.
func survey(ctx context.Context, t target.Target, vm string) (*surveyed, error) {
	s := &surveyed{vm: vm, disks: map[string]bool{}}
	var err error
	if s.all, err = catalog.AllRecords(ctx, t, vm); err != nil {
		return nil, err
	}
	if s.doc, _, err = catalog.LoadVM(ctx, t, vm); err != nil {
		return nil, err
	}
	s.live = s.doc.Live(s.all)
	if err = catalog.CheckChain(s.live); err != nil {
		return nil, err
	}
	if err = s.list(ctx, t); err != nil {
		return nil, err
	}
	s.nameDisks()
	if s.snapshots, err = catalog.SnapshotsOf(ctx, t, vm, s.disks); err != nil {
		return nil, err
	}
	s.pins, err = catalog.Pins(ctx, t, vm)
	return s, err
}

func (s *surveyed) list(ctx context.Context, t target.Target) error {
	prefix := catalog.EncodeName(s.vm) + "/"
	for item, err := range t.List(ctx, prefix) {
		if err != nil {
			return err
		}
		if _, disk, id, err := catalog.ParseSegment(item.Name); err == nil {
			s.segments = append(s.segments, segment{item.Name, disk, id})
			s.disks[disk] = true
			continue
		}
		disk, rest, err := catalog.DecodeName(strings.TrimPrefix(item.Name, prefix))
		if err == nil && rest != "" && item.Name == catalog.ReplicaName(s.vm, disk) {
			s.disks[disk] = true
		}
	}
	return nil
}

func (s *surveyed) nameDisks() {
	for _, d := range s.doc.Disks {
		s.disks[d.ID] = true
	}
	for _, r := range s.all {
		for _, d := range r.Disks {
			s.disks[d.ID] = true
		}
	}
}

// unnamed are the disks nobody claims any more.
func (s *surveyed) unnamed() []string {
	named := map[string]bool{}
	for _, d := range s.doc.Disks {
		named[d.ID] = !d.Removed
	}
	for _, r := range s.kept {
		for _, d := range r.Disks {
			named[d.ID] = true
		}
	}
	var ids []string
	for id := range s.disks {
		if !named[id] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// candidate is something unneeded.
type candidate struct {
	key    string
	remove func(context.Context, target.Target, *Result) error
}

// candidates lists what may go, records first, then segments and snapshots.
func (s *surveyed) candidates(now time.Time) []candidate {
	needs := s.needs()
	for _, pin := range s.pins {
		if !pin.Expired(now) {
			needs.pin(pin)
		}
	}
	found := s.deadRecords()
	for _, seg := range s.segments {
		if !needs.segments[seg.name] && s.superfluous(seg) {
			found = append(found, removeSegment(seg))
		}
	}
	for disk, list := range s.snapshots {
		for _, snap := range list {
			if !needs.snapshots[snapshotKey(disk, snap.ID)] {
				found = append(found, removeSnapshot(s.vm, disk, snap.ID))
			}
		}
	}
	return append(found, s.deadPins(now)...)
}

// superfluous tells of a segment that no kept point needs whether it may go: it
// is in the replica already, or never will be. What is newer than the newest
// snapshot is what the next apply reads.
func (s *surveyed) superfluous(seg segment) bool {
	if s.voided(seg.id) || seg.id.Generation < s.doc.Generation && !s.doc.Counts(seg.id) {
		return true
	}
	newest, ok := s.doc.Newest(s.snapshots[seg.disk], newestID)
	return ok && !newest.Point.Less(seg.id)
}

func (s *surveyed) voided(id catalog.PointID) bool {
	i, found := slices.BinarySearchFunc(s.all, id, func(r catalog.Record, id catalog.PointID) int { return r.ID().Compare(id) })
	return found && s.all[i].Void
}

// deadRecords are those beyond a cut, and tombstones older than every point: no
// request is late by the age of the oldest point and an hour.
func (s *surveyed) deadRecords() []candidate {
	var found []candidate
	for _, r := range s.all {
		beyond := r.Generation < s.doc.Generation && !s.doc.Counts(r.ID())
		buried := r.Void && len(s.kept) > 0 && r.ID().Less(s.kept[len(s.kept)-1].ID())
		if beyond || buried {
			found = append(found, removeRecord(s.vm, r.ID()))
		}
	}
	return found
}

func (s *surveyed) deadPins(now time.Time) []candidate {
	var found []candidate
	for _, p := range s.pins {
		if p.Expired(now) {
			found = append(found, removePin(s.vm, p.ID))
		}
	}
	return found
}

// needed is by blob name, and by disk and snapshot id.
type needed struct{ segments, snapshots map[string]bool }

// needs is what restoring the kept points takes, and what the next apply starts
// from.
func (s *surveyed) needs() needed {
	n := needed{map[string]bool{}, map[string]bool{}}
	for disk, list := range s.snapshots {
		if len(list) > 0 {
			n.snapshots[snapshotKey(disk, list[len(list)-1].ID)] = true
		}
		if newest, ok := s.doc.Newest(list, newestID); ok {
			n.snapshots[snapshotKey(disk, newest.ID)] = true
		}
	}
	for _, r := range s.kept {
		for _, d := range r.Disks {
			if d.State == catalog.StateComplete {
				s.needFold(n, d.ID, r.ID())
			}
		}
	}
	return n
}

// needFold adds the snapshot at or before the point and the segments from there.
func (s *surveyed) needFold(n needed, disk string, point catalog.PointID) {
	start, ok := s.doc.Newest(s.snapshots[disk], point)
	if ok {
		n.snapshots[snapshotKey(disk, start.ID)] = true
	}
	for i := len(s.live) - 1; i >= 0 && start.Point.Less(s.live[i].ID()); i-- {
		if point.Less(s.live[i].ID()) {
			continue
		}
		for _, ref := range s.live[i].Segments {
			if ref.DiskID == disk && start.Point.Less(ref.ID()) {
				n.segments[ref.Blob] = true
			}
		}
	}
}

func (n needed) pin(p catalog.Pin) {
	for _, need := range p.Needs {
		n.snapshots[snapshotKey(need.DiskID, need.Snapshot)] = true
		for _, name := range need.Segments {
			n.segments[name] = true
		}
	}
}

func snapshotKey(disk, id string) string { return disk + "/" + id }
