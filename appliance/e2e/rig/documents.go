package rig

import "time"

// The documents are written down here a second time, from DESIGN §7 and not from the code that prints them: a field
// that is renamed there fails here.

// Status is what `status --json` prints.
type Status struct {
	Version string `json:"version"`
	VMs     []VM   `json:"vms"`
}

// VM is one virtual machine of a Status. Sizes are bytes.
type VM struct {
	Name              string   `json:"name"`
	State             string   `json:"state"`
	Health            string   `json:"health"`
	Reasons           []Reason `json:"reasons"`
	IntervalSeconds   float64  `json:"interval_seconds"`
	LastPoint         *Point   `json:"last_point"`
	DurableRPOSeconds *float64 `json:"durable_rpo_seconds"`
	PendingBytes      int64    `json:"pending_bytes"`
	SpooledBytes      int64    `json:"spooled_bytes"`
	ApplyBacklogBytes int64    `json:"apply_backlog_bytes"`
	AppliedEpoch      uint64   `json:"applied_epoch"`
	Resync            Resync   `json:"resync"`
	Disks             []Disk   `json:"disks"`
	Recovery          Recovery `json:"recovery"`
}

// Reason is why a VM is not healthy.
type Reason struct {
	Code     string    `json:"code"`
	Cause    string    `json:"cause"` // code of the error behind it
	Severity string    `json:"severity"`
	Message  string    `json:"message"`
	Action   string    `json:"action"`
	Since    time.Time `json:"since"`
}

// Point is a recovery point; Changed is known in a list of points only.
type Point struct {
	ID          string      `json:"id"`
	Generation  uint64      `json:"generation"`
	Epoch       uint64      `json:"epoch"`
	Time        time.Time   `json:"time"`
	Consistency string      `json:"consistency"`
	Snapshot    bool        `json:"snapshot"`
	Disks       []PointDisk `json:"disks"`
}

// PointDisk is a disk of a point.
type PointDisk struct {
	Name         string `json:"name"`
	VirtualSize  int64  `json:"virtual_size"`
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// Resync is the running comparison or the last one.
type Resync struct {
	State          string `json:"state"`
	ComparedBytes  int64  `json:"compared_bytes"`
	TotalBytes     int64  `json:"total_bytes"`
	DifferingBytes int64  `json:"differing_bytes"`
	// Beyond DESIGN §7: what a comparison of the replica cost.
	Requests        int64 `json:"requests"`
	DownloadedBytes int64 `json:"downloaded_bytes"`
}

// Disk is one disk of a VM.
type Disk struct {
	Name               string   `json:"name"`
	Format             string   `json:"format"`
	VirtualSize        int64    `json:"virtual_size"`
	InitialReplication Transfer `json:"initial_replication"`
	ActiveRegions      int      `json:"active_regions"`
}

// Transfer is how far something has come, in bytes.
type Transfer struct {
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// Recovery is what the last start found suspect, and what comparing it showed.
type Recovery struct {
	SuspectBytes   int64  `json:"suspect_bytes"`
	ComparedBytes  int64  `json:"compared_bytes"`
	DifferingBytes int64  `json:"differing_bytes"`
	Reason         string `json:"reason"`
}

// SyncResult is what `sync --wait --json` prints.
type SyncResult struct {
	Epoch uint64 `json:"epoch"`
	Point string `json:"point"`
}

// VM finds a VM by its name.
func (s Status) VM(name string) (VM, bool) {
	for _, vm := range s.VMs {
		if vm.Name == name {
			return vm, true
		}
	}
	return VM{}, false
}

// Has says whether a disk is part of a point.
func (p Point) Has(disk string) bool {
	for _, d := range p.Disks {
		if d.Name == disk {
			return true
		}
	}
	return false
}
