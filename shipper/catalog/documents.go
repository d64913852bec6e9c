package catalog

import (
	"time"

	"github.com/google/uuid"
)

// The format ladder of the documents. A rung is never reused.
//
//	1  the first
//	2  vm.json may have doubts; one without them is still written as 1
const (
	FormatVersion = 1 // of records and pins, and of a vm.json without doubts
	vmVersion     = 2
)

// States of a disk in a record.
const (
	StateComplete = "complete" // the segments carry it: part of the point
	StateInitial  = "initial"  // in initial replication: named, not part of the point
)

// Consistency of a point.
const (
	ConsistencyCrash       = "crash"
	ConsistencyFlush       = "flush"
	ConsistencyApplication = "application"
)

// VMDoc is vm.json: whose the VM is, what it consists of, and how far older
// generations count.
type VMDoc struct {
	Version        int       `json:"version"`
	Name           string    `json:"name"`
	VMID           string    `json:"vm_id"` // UUID, stable
	Owner          Owner     `json:"owner"`
	Generation     uint64    `json:"generation"` // from 1; raised by each takeover
	Cuts           []Cut     `json:"cuts,omitempty"`
	Disks          []DiskDoc `json:"disks,omitempty"`
	Doubts         []Doubt   `json:"doubts,omitempty"`
	UnchangedUntil time.Time `json:"unchanged_until,omitzero"` // up to then the newest point was the truth
	Updated        time.Time `json:"updated"`
}

// Doubt says that a disk's replica did not hold what it should: points from one
// on, up to the first that is good again, are made of it.
type Doubt struct {
	DiskID string    `json:"disk_id"`
	From   PointID   `json:"from"`
	Until  PointID   `json:"until"` // the first good one; 0-0: none yet
	Since  time.Time `json:"since"`
	Why    string    `json:"why"`
}

// Owner is the appliance that writes.
type Owner struct {
	Host      string `json:"host"`
	MachineID string `json:"machine_id"`
	StoreID   string `json:"store_id"`
}

// Cut ends a generation: its records beyond Epoch do not count.
type Cut struct {
	Generation uint64 `json:"generation"`
	Epoch      uint64 `json:"epoch"` // 0: the generation has no point
}

// DiskDoc is one disk of a VM.
type DiskDoc struct {
	ID          string `json:"id"`
	Name        string `json:"name"`         // path of the image relative to the VM
	Format      string `json:"format"`       // of the source image, e.g. "vhd-fixed"
	VirtualSize int64  `json:"virtual_size"` // bytes
	Removed     bool   `json:"removed,omitempty"`
}

// Record makes an epoch a recovery point, or a void one a tombstone.
type Record struct {
	Version     int          `json:"version"`
	VM          string       `json:"vm"`
	VMID        string       `json:"vm_id"`
	Generation  uint64       `json:"generation"`
	Epoch       uint64       `json:"epoch"`
	EpochUUID   string       `json:"epoch_uuid"`
	Time        time.Time    `json:"time"` // of the seal
	Void        bool         `json:"void,omitempty"`
	Consistency string       `json:"consistency,omitempty"`
	Previous    PointID      `json:"previous"` // the record before this one, void ones not counted; "0-0": none
	Disks       []RecordDisk `json:"disks,omitempty"`
	Segments    []SegmentRef `json:"segments,omitempty"` // all since the previous record, open epochs included
}

// ID is the point the record makes.
func (r Record) ID() PointID { return PointID{r.Generation, r.Epoch} }

// Disk finds a disk of the record by its id.
func (r Record) Disk(id string) (RecordDisk, bool) {
	for _, d := range r.Disks {
		if d.ID == id {
			return d, true
		}
	}
	return RecordDisk{}, false
}

// RecordDisk is the state of one disk at the point.
type RecordDisk struct {
	ID           string `json:"id"`
	Name         string `json:"name"`
	Format       string `json:"format"`
	State        string `json:"state"`
	VirtualSize  int64  `json:"virtual_size"`  // bytes
	Sum          string `json:"sum,omitempty"` // CRC-64/NVME of the disk, padded to 4 KiB; 16 hex digits; always there when complete
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// SegmentRef is one segment a fold takes.
type SegmentRef struct {
	DiskID      string `json:"disk_id"`
	Blob        string `json:"blob"` // name, relative to the target's prefix
	Generation  uint64 `json:"generation"`
	Epoch       uint64 `json:"epoch"`
	Size        int64  `json:"size"` // bytes, a multiple of 512
	Sum         string `json:"sum"`  // CRC-64/NVME of the whole blob, 16 hex digits
	UUID        string `json:"uuid"`
	VirtualSize int64  `json:"virtual_size"` // bytes of the disk at that epoch
}

// ID is the epoch that the segment belongs to.
func (s SegmentRef) ID() PointID { return PointID{s.Generation, s.Epoch} }

// Pin is a reader at work: what it names is not pruned before Until.
type Pin struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	VM      string    `json:"vm"`
	Point   PointID   `json:"point"`
	Reader  string    `json:"reader"` // who, for the operator
	Needs   []Need    `json:"needs"`
	Created time.Time `json:"created"`
	Until   time.Time `json:"until"`
}

// Need is what a reader needs of one disk, by name: the record that tells it may
// be gone before the reader is done.
type Need struct {
	DiskID   string   `json:"disk_id"`
	Snapshot string   `json:"snapshot"`           // id
	Segments []string `json:"segments,omitempty"` // blob names
}

// NewPinID makes up the id of a pin.
func NewPinID() string { return uuid.NewString() }
