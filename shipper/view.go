package shipper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

type diskSet = extent.Set[extent.DiskBlock]

// metaPurpose marks a snapshot that a comparison took for itself. It has none of
// our own metadata: it is no base of anything.
const metaPurpose = "vhdrelay_purpose"

// View is a disk at the target, frozen, for a comparison; resync.Replica. Close it.
type View struct {
	vm       *VM
	d        *disk
	key      string
	name     string
	snapshot string
	point    catalog.PointID // what it holds, later epochs excepted
	size     int64           // bytes of virtual disk in it; beyond it reads as zeros
	own      bool            // taken for this comparison, of a replica that others changed
	etag     string          // of the replica when it was taken
	touched  catalog.PointID // the disk's TouchedAt when it was opened

	// mu guards what is known to be carried; it is held over the reading of indices.
	mu struct {
		sync.Mutex
		seen    map[catalog.PointID]bool
		carried diskSet
	}
}

// Snapshot names it, for a comparison that goes on later.
func (w *View) Snapshot() string { return w.snapshot }

// Point is the epoch it holds.
func (w *View) Point() catalog.PointID { return w.point }

// notConnected is the error of a comparison before the target is known.
func (v *VM) notConnected() error {
	return &Problem{Code: "not-connected", Class: retry.Recoverable, Err: errors.New("the target has not been reached yet"),
		Action: "none: it goes on when the target answers"}
}

// Unchanged tells, with one request, whether a disk's replica is as we left it: its
// ETag, which changes with every write and with the sequence number.
func (v *VM) Unchanged(ctx context.Context, diskID string) (bool, error) {
	d := v.diskByID(diskID)
	if d == nil || !v.Connected() {
		return false, v.notConnected()
	}
	d.round.Lock()
	defer d.round.Unlock()
	st := d.state.get()
	if st.ETag == "" || st.Touched != "" {
		return false, nil
	}
	p, err := v.properties(ctx, catalog.ReplicaName(v.opts.Name, st.Key))
	return err == nil && p.ETag == st.ETag, err
}

func (v *VM) properties(ctx context.Context, name string) (p target.Properties, err error) {
	err = v.repeat(ctx, func(ctx context.Context) error {
		p, err = v.target.Properties(ctx, name, "")
		return err
	})
	return p, err
}

// OpenView freezes a complete disk's replica for a comparison: the snapshot of that
// id if there is one, else the newest. A replica that others changed since is
// frozen as it is now, by a snapshot of its own. ErrUnderWay: what they did is in no
// snapshot yet, and there is a round of puts to be ended first.
func (v *VM) OpenView(ctx context.Context, diskID, snapshot string) (*View, error) {
	d := v.diskByID(diskID)
	if d == nil || !v.Connected() {
		return nil, v.notConnected()
	}
	d.round.Lock()
	defer d.round.Unlock()
	st := d.state.get()
	snaps, err := v.snapshots(ctx, st.Key)
	if err != nil {
		return nil, err
	}
	if len(snaps) == 0 {
		return nil, targetLost(v.opts.Name, "the replica of disk "+d.src.Name()+" has no snapshot")
	}
	if err := v.dropViews(ctx, catalog.ReplicaName(v.opts.Name, st.Key)); err != nil {
		return nil, err
	}
	at := snaps[len(snaps)-1]
	w := &View{vm: v, d: d, key: st.Key, name: catalog.ReplicaName(v.opts.Name, st.Key)}
	w.mu.seen = map[catalog.PointID]bool{}
	i := slices.IndexFunc(snaps, func(s catalog.Snapshot) bool { return s.ID == snapshot && !st.touchedSince(s.Point) })
	if i >= 0 {
		at = snaps[i]
	}
	if st.ETag == "" && !st.Matching && st.touchedSince(at.Point) {
		return nil, fmt.Errorf("replica of disk %s: %w", d.src.Name(), ErrUnderWay)
	}
	w.touched = st.TouchedAt
	w.snapshot, w.point, w.size, w.etag = at.ID, at.Point, at.Size-image.FooterSize, st.ETag
	if i >= 0 || st.ETag == "" || st.Matching {
		// A replica in the middle of a round is no state; and a table is found out by
		// what points are made of, which what others wrote since is no part of.
		return w, nil
	}
	p, err := v.properties(ctx, w.name)
	if err != nil || p.ETag == st.ETag {
		return w, err
	}
	return w, w.freeze(ctx, p)
}

// dropViews removes what a comparison that died had frozen for itself; of a disk
// one runs at a time.
func (v *VM) dropViews(ctx context.Context, name string) error {
	return v.repeat(ctx, func(ctx context.Context) error {
		all, err := v.target.Snapshots(ctx, name)
		for _, s := range all {
			if s.Metadata[metaPurpose] != "" {
				err = errors.Join(err, v.target.DeleteSnapshot(ctx, name, s.ID))
			}
		}
		return err
	})
}

// freeze takes a snapshot of a replica that others changed.
func (w *View) freeze(ctx context.Context, p target.Properties) error {
	if err := w.d.state.update(func(s *diskRecord) { s.Touched = "the replica was changed by others" }); err != nil {
		return err
	}
	var id string
	err := w.vm.once(ctx, func(ctx context.Context) (err error) {
		id, err = w.vm.target.Snapshot(ctx, w.name, "", p.ETag, map[string]string{metaPurpose: "comparison"})
		return err
	})
	if err != nil {
		return fmt.Errorf("freeze %s: %w", w.name, err)
	}
	w.snapshot, w.size, w.own, w.etag = id, p.Size-image.FooterSize, true, p.ETag
	return nil
}

// Close removes what was frozen for this view alone.
func (w *View) Close(ctx context.Context) error {
	if !w.own {
		return nil
	}
	return w.vm.repeat(ctx, func(ctx context.Context) error { return w.vm.target.DeleteSnapshot(ctx, w.name, w.snapshot) })
}

// inside is the part of r that the view has, in bytes.
func (w *View) inside(r DiskRange) int64 {
	return max(0, min(offsetOf(r.End), w.size)-offsetOf(r.Start))
}

// Sum implements resync.Replica.
func (w *View) Sum(ctx context.Context, r DiskRange) (sum checksum.Sum, ok bool, err error) {
	n := w.inside(r)
	if n > 0 {
		err = w.vm.repeat(ctx, func(ctx context.Context) error {
			sum, err = w.vm.target.Sum(ctx, w.name, w.snapshot, offsetOf(r.Start), n)
			return err
		})
	}
	if errors.Is(err, target.ErrNoSum) {
		return 0, false, nil
	}
	beyond := r.Bytes() - n
	return checksum.Combine(sum, checksum.Zeros(beyond), beyond), err == nil, err
}

// Read implements resync.Replica.
func (w *View) Read(ctx context.Context, r DiskRange, p []byte) error {
	n := w.inside(r)
	clear(p[n:])
	if n == 0 {
		return nil
	}
	return w.vm.repeat(ctx, func(ctx context.Context) error {
		return w.vm.target.ReadPages(ctx, w.name, w.snapshot, offsetOf(r.Start), p[:n])
	})
}

// Allocated implements resync.Replica.
func (w *View) Allocated(ctx context.Context, r DiskRange) (set diskSet, err error) {
	n := w.inside(r)
	if n == 0 {
		return set, nil
	}
	var ranges []target.ByteRange
	err = w.vm.repeat(ctx, func(ctx context.Context) error {
		ranges, err = w.vm.target.Ranges(ctx, w.name, w.snapshot, offsetOf(r.Start), n)
		return err
	})
	for _, b := range ranges {
		set.Add(extent.Cover[extent.DiskBlock](b.Off, b.Len))
	}
	return set, err
}

// Carried implements resync.Replica. What is in the spool is looked at first: it
// leaves the spool only for the records.
func (w *View) Carried(ctx context.Context) (diskSet, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range w.vm.deps.Spool.Manifests() {
		id := catalog.PointID{Generation: m.Generation, Epoch: m.Epoch}
		if md := m.Disk(w.d.src.ID()); md != nil && md.Segment != nil && w.wantsLocked(id) {
			ranges, err := w.vm.segmentRanges(m, *md)
			if errors.Is(err, spool.ErrMissing) {
				continue // released meanwhile
			}
			if err != nil {
				return diskSet{}, err
			}
			w.addLocked(id, ranges)
		}
	}
	for _, ref := range w.vm.refsAfter(w.point, w.key) {
		if w.wantsLocked(ref.ID()) {
			ranges, err := w.vm.blobRanges(ctx, ref)
			if err != nil {
				return diskSet{}, err
			}
			w.addLocked(ref.ID(), ranges)
		}
	}
	return w.mu.carried.Clone(), nil
}

// good is the first point that is what it should be if no compared block differs: what
// later epochs carry was not compared, and the points before them may lack it.
func (w *View) good() catalog.PointID {
	w.mu.Lock()
	defer w.mu.Unlock()
	newest := w.point
	for id := range w.mu.seen {
		if newest.Less(id) {
			newest = id
		}
	}
	return newest
}

func (w *View) wantsLocked(id catalog.PointID) bool { return w.point.Less(id) && !w.mu.seen[id] }

func (w *View) addLocked(id catalog.PointID, ranges []DiskRange) {
	w.mu.seen[id] = true
	w.mu.carried = w.mu.carried.Union(extent.Of(ranges...))
}

// refsAfter are the segments of a disk at the target after a point, recorded or not.
func (v *VM) refsAfter(point catalog.PointID, key string) []catalog.SegmentRef {
	all := slices.Clone(v.state.get().Unrecorded)
	for _, r := range v.liveRecords() {
		if point.Less(r.ID()) {
			all = append(all, r.Segments...)
		}
	}
	return slices.DeleteFunc(all, func(s catalog.SegmentRef) bool { return s.DiskID != key || !point.Less(s.ID()) })
}

// blobRanges reads what a segment at the target carries.
func (v *VM) blobRanges(ctx context.Context, ref catalog.SegmentRef) ([]DiskRange, error) {
	r, err := segment.Open(blobReader{ctx: ctx, vm: v, name: ref.Blob}, ref.Size)
	if err != nil {
		return nil, fmt.Errorf("segment %s: %w", ref.Blob, err)
	}
	return rangesOf(r), nil
}

func rangesOf(r *segment.Reader) []DiskRange {
	var all diskSet
	for e := range r.All() {
		all.Add(e.Range)
	}
	return all.Ranges()
}

// ForgetBlocks makes entries durably unknown: the target was found to hold
// something else. The next capture carries these blocks, whatever the source says.
func (v *VM) ForgetBlocks(diskID string, ranges ...DiskRange) error {
	d := v.diskByID(diskID)
	if d == nil || !v.redone.Load() {
		return fmt.Errorf("disk %s is not in the pipeline", diskID)
	}
	t := d.table()
	if t == nil {
		return errRetired
	}
	return t.Forget(clipped(ranges, t.Blocks())...)
}

// EndDeep takes the result of a comparison of a view with the table: found are the
// blocks that were made unknown; whole says that all of the view was compared.
func (v *VM) EndDeep(ctx context.Context, w *View, found int64, whole bool) error {
	st := w.d.state.get()
	older := st.touchedSince(w.point)
	if w.own { // of the replica as it was then
		older = st.TouchedAt != w.touched
	}
	switch {
	case found > 0:
		return v.damaged(ctx, w, st, older)
	case !whole, older: // others wrote since: Touched has it looked at again
		return nil
	case w.own: // others wrote what was there already
		return w.d.state.update(func(s *diskRecord) { s.Touched, s.TouchedAt, s.ETag = "", catalog.PointID{}, w.etag })
	}
	if st.Touched != "" {
		if err := v.endDoubts(ctx, w.key, w.good()); err != nil {
			return err
		}
	}
	return w.d.state.update(func(s *diskRecord) {
		s.Verified, s.Again = w.point, false
		if s.RepairAfter == 0 {
			s.Touched, s.TouchedAt = "", catalog.PointID{}
		}
	})
}

// touchedSince tells whether others changed the replica after a snapshot was taken.
func (r diskRecord) touchedSince(snapshot catalog.PointID) bool {
	return r.Touched != "" && !r.TouchedAt.IsZero() && !r.TouchedAt.Less(snapshot)
}

// damaged flags the points that are made of a damaged snapshot and has the repair
// captured. older: others wrote again after what was compared.
func (v *VM) damaged(ctx context.Context, w *View, st diskRecord, older bool) error {
	if !w.own && st.Touched == "" { // nothing said so before: it may have been so since the last look
		if err := w.d.state.update(func(s *diskRecord) { s.Touched = "the replica does not hold what it should" }); err != nil {
			return err
		}
		from, err := v.firstSnapshotAfter(ctx, w.key, st.Verified)
		if err != nil {
			return err
		}
		if err := v.doubtFrom(ctx, w.d, from); err != nil {
			return err
		}
	}
	err := w.d.state.update(func(s *diskRecord) {
		s.RepairAfter = max(1, v.deps.Volume.LastEpoch())
		s.Again = older
		if w.own && !older {
			s.ETag = w.etag // what others did is known now; what they do from here on is not
		}
	})
	v.opts.Log.Error("the replica is damaged; the next point repairs it", "disk", w.d.src.Name(), "code", "replica-damaged",
		"action", "none; points since the last good snapshot are flagged")
	v.capture.wake()
	return err
}

func (v *VM) firstSnapshotAfter(ctx context.Context, key string, verified catalog.PointID) (catalog.PointID, error) {
	snaps, err := v.snapshots(ctx, key)
	for _, s := range snaps {
		if verified.Less(s.Point) {
			return s.Point, err
		}
	}
	return verified, err
}
