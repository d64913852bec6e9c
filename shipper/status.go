package shipper

import (
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Status is what the pipeline knows of itself. Sizes are bytes.
type Status struct {
	Generation  uint64
	Connected   bool
	LastPoint   catalog.PointID
	LastPointAt time.Time // of its seal
	LastSeal    time.Time
	Applied     catalog.PointID
	Pending     int64 // changed and not yet in the spool
	Spooled     int64 // taken by the spool
	Quota       int64
	Backlog     int64 // recorded and not yet in the replica, as stored
	OverQuota   bool
	CatchUp     string // why points are paused, empty if they are not
	OpenReason  string // why the newest epoch is no point
	LastCycle   Cycle
	Cycles      []CycleTime // since the start, oldest first; the newest thousand or so
	Resting     bool
	RestsSince  time.Time // since when the quota has kept seals back, zero if it does not
	// SpooledBytes and SentBytes count what went into the spool and what the target
	// took of it since the start, as stored: their rates say whether it fills.
	SpooledBytes, SentBytes int64
	Troubles                []Trouble
	Disks                   []DiskStatus
}

// DiskStatus is one disk of the pipeline.
type DiskStatus struct {
	ID, Name                  string
	Format                    image.Format
	VirtualSize               int64
	Stage                     Stage
	InitialDone, InitialTotal int64
	Pending                   int64
	Unknown                   int64  // bytes whose content at the target is unknown
	Unshipped                 int64  // changed bytes that the target does not hold, in the spool or not
	Touched                   string // why the replica may not hold what it should, "" if nothing says so
	Repairing                 bool   // damage was found, and the point that repairs it is to come
	Matching                  bool   // its table is found out by a comparison with the replica
	Err                       error  // the image cannot be read as what it is
}

// Status may be asked at any time; it does no network I/O.
func (v *VM) Status() Status {
	st := v.state.get()
	s := Status{
		Generation: st.Generation, LastPoint: st.Recorded, LastPointAt: st.RecordedAt, Applied: st.Applied,
		Spooled: v.deps.Spool.Bytes(), Quota: v.opts.Quota(), Troubles: v.Troubles(), Resting: v.Resting(),
	}
	select {
	case <-v.connected:
		s.Connected = true
	default:
	}
	for _, d := range v.disks() {
		ds := d.status()
		ds.Unshipped = ds.Pending + v.unshippedOf(ds.ID)
		s.Pending += ds.Pending
		s.Disks = append(s.Disks, ds)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	s.LastSeal, s.OverQuota, s.CatchUp, s.OpenReason, s.LastCycle = v.mu.lastSeal, v.mu.overQuota, v.mu.catchUp, v.mu.openReason, v.mu.lastCycle
	s.Cycles, s.RestsSince = slices.Clone(v.mu.cycles), v.mu.restsSince
	s.SpooledBytes, s.SentBytes = v.mu.spooledBytes, v.mu.sentBytes
	for _, r := range v.mu.records {
		if st.Applied.Less(r.ID()) {
			for _, seg := range r.Segments {
				s.Backlog += seg.Size
			}
		}
	}
	return s
}

func (d *disk) status() DiskStatus {
	info, err := d.info()
	st := d.state.get()
	ds := DiskStatus{ID: d.src.ID(), Name: d.src.Name(), Format: info.Format, VirtualSize: info.VirtualSize, Stage: st.Stage, Err: err}
	ds.Pending = d.src.PendingBlocks() * extent.BlockSize
	ds.InitialTotal = info.VirtualSize
	ds.Touched, ds.Repairing, ds.Matching = st.Touched, st.RepairAfter > 0, st.Stage == StageComplete && st.Matching
	if t := d.table(); t != nil {
		ds.Unknown = t.UnknownCount() * extent.BlockSize
		ds.InitialDone = max(0, info.VirtualSize-ds.Unknown)
	}
	if st.Stage == StageComplete {
		ds.InitialDone = ds.InitialTotal
	}
	return ds
}

// Troubles are the failures that stages are in now.
func (v *VM) Troubles() []Trouble {
	var all []Trouble
	for _, s := range v.stages() {
		if t := s.trouble(); t != nil {
			all = append(all, *t)
		}
	}
	return all
}

// diskByID is nil for a disk that is not in the pipeline.
func (v *VM) diskByID(id string) *disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.disks[id]
}

// keyOf is the disk's name in the blob names of an epoch, also of a disk that was
// removed.
func (v *VM) keyOf(id, name string, epoch uint64) string {
	if d := v.diskByID(id); d != nil {
		return d.state.get().keyAt(epoch)
	}
	var gone diskRecord
	if found, err := v.deps.Docs.Load(v.diskKey(id), &gone); err == nil && found && gone.keyAt(epoch) != "" {
		return gone.keyAt(epoch)
	}
	return name
}

func (v *VM) diskKey(id string) string { return "disk/" + v.opts.ID + "/" + id }
