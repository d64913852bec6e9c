package control

import "time"

// Severity ranks a reason.
type Severity string

// The severities a reason can have.
const (
	SeverityWarning  Severity = "warning"
	SeverityCritical Severity = "critical"
)

// Health is the worst of a VM's reasons.
type Health string

// The healths of a VM.
const (
	HealthNormal   Health = "Normal"
	HealthWarning  Health = "Warning"
	HealthCritical Health = "Critical"
)

// ResyncState says what the resync worker does for a VM.
type ResyncState string

// The states of a resync.
const (
	ResyncIdle    ResyncState = "idle"
	ResyncWaiting ResyncState = "waiting"
	ResyncRunning ResyncState = "running"
	ResyncPaused  ResyncState = "paused"
)

// Status is what `status --json` prints. Times are UTC, sizes are bytes.
type Status struct {
	Version string `json:"version"`
	VMs     []VM   `json:"vms"`
	Pacer   *Pacer `json:"pacer,omitempty"`
}

// Pacer is the one limit on the rate of requests that the target's throttling set for the whole appliance.
type Pacer struct {
	Limited bool `json:"limited"`
	// BytesPerSecond is the rate in force, 0 if there is none.
	BytesPerSecond int64 `json:"bytes_per_second,omitempty"`
	// Throttled counts the target's refusals since the start; LastThrottled is the newest that lowered the rate.
	Throttled     int64     `json:"throttled"`
	LastThrottled time.Time `json:"last_throttled,omitzero"`
}

// Forecast says what is reached, and when, if everything goes on as it does now.
type Forecast struct {
	// What is "spool", or the disk that reaches its mark.
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
	Message string  `json:"message"`
}

// Unmounted is what `unmount` answers with: the stores whose mounts are gone, by name.
type Unmounted struct {
	Stores []string `json:"stores"`
}

// Moved is what a command that changes a VM's state answers with.
type Moved struct {
	VM    string `json:"vm"`
	State string `json:"state"`
}

// UnprotectOptions say how far an unprotect goes.
type UnprotectOptions struct {
	// DeleteReplica deletes the recovery points and the replica too.
	DeleteReplica bool `json:"delete_replica,omitempty"`
}

// VM is the state of one virtual machine.
type VM struct {
	Name            string    `json:"name"`
	State           string    `json:"state"`
	StateSince      time.Time `json:"state_since,omitzero"`
	Health          Health    `json:"health"`
	Reasons         []Reason  `json:"reasons"`
	IntervalSeconds float64   `json:"interval_seconds"`
	Generation      uint64    `json:"generation,omitempty"`
	// LastPoint is null before the first point.
	LastPoint *Point `json:"last_point"`
	// DurableRPOSeconds is now minus the newest point's seal; null before the first point.
	DurableRPOSeconds *float64 `json:"durable_rpo_seconds"`
	// PendingBytes are changed and not sealed, SpooledBytes sealed and not at the target.
	PendingBytes      int64 `json:"pending_bytes"`
	SpooledBytes      int64 `json:"spooled_bytes"`
	ApplyBacklogBytes int64 `json:"apply_backlog_bytes"`
	// AppliedEpoch is the epoch the replica holds, 0 for none.
	AppliedEpoch uint64   `json:"applied_epoch"`
	Resync       Resync   `json:"resync"`
	Disks        []Disk   `json:"disks"`
	Recovery     Recovery `json:"recovery"`
	Jobs         []Job    `json:"jobs,omitempty"`
	// Forecast is null while nothing fills.
	Forecast *Forecast `json:"forecast,omitempty"`
}

// Reason is why a VM is not healthy: a stable code, the cause, and the next action.
type Reason struct {
	Code     string    `json:"code"`
	Severity Severity  `json:"severity"`
	Cause    string    `json:"cause,omitempty"` // code of the error behind it
	Message  string    `json:"message"`
	Action   string    `json:"action"`
	Since    time.Time `json:"since"`
}

// Point names a recovery point; Time is its seal.
type Point struct {
	ID         string    `json:"id"`
	Generation uint64    `json:"generation"`
	Epoch      uint64    `json:"epoch"`
	Time       time.Time `json:"time"`
}

// Resync is the running comparison or the last one.
type Resync struct {
	State          ResyncState `json:"state"`
	ComparedBytes  int64       `json:"compared_bytes"`
	TotalBytes     int64       `json:"total_bytes"`
	DifferingBytes int64       `json:"differing_bytes"`
	// SentBytes is what the target took, as stored, from the beginning of the comparison to the point that holds what it found:
	// that and what the guests wrote meanwhile. 0 if nothing differed.
	SentBytes int64  `json:"sent_bytes,omitempty"`
	Reason    string `json:"reason,omitempty"`
	// Deep: the target was compared, and not only the source. Requests and DownloadedBytes are what that cost.
	Deep            bool      `json:"deep,omitempty"`
	Requests        int64     `json:"requests,omitempty"`
	DownloadedBytes int64     `json:"downloaded_bytes,omitempty"`
	Started         time.Time `json:"started,omitzero"`
	Ended           time.Time `json:"ended,omitzero"`
}

// Disk is one disk of a VM.
type Disk struct {
	Name               string   `json:"name"`
	Format             string   `json:"format"`
	VirtualSize        int64    `json:"virtual_size"`
	InitialReplication Transfer `json:"initial_replication"`
	PendingBytes       int64    `json:"pending_bytes,omitempty"`
	ActiveRegions      int      `json:"active_regions,omitempty"`
	// Chain is the image and everything it lies over, named within the store, only of a differencing image; ChainError says
	// why it ends early. Both are of the last look, at most a minute ago.
	Chain      []string `json:"chain,omitempty"`
	ChainError string   `json:"chain_error,omitempty"`
}

// Transfer is how far something long has come, in bytes.
type Transfer struct {
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// Recovery is what the last start found suspect and what comparing it showed.
type Recovery struct {
	SuspectBytes   int64  `json:"suspect_bytes"`
	ComparedBytes  int64  `json:"compared_bytes"`
	DifferingBytes int64  `json:"differing_bytes"`
	Reason         string `json:"reason"`
}

// Consistency says how a point was cut.
type Consistency string

// The consistencies of a recovery point.
const (
	ConsistencyCrash       Consistency = "crash"
	ConsistencyFlush       Consistency = "flush"
	ConsistencyApplication Consistency = "application"
)

// Points is what `points VM --json` prints, oldest first.
type Points struct {
	VM     string          `json:"vm"`
	Points []RecoveryPoint `json:"points"`
}

// RecoveryPoint is one point of the list.
type RecoveryPoint struct {
	Point
	Consistency Consistency `json:"consistency"`
	// Snapshot is true if the replicas have a snapshot of exactly this epoch.
	Snapshot bool `json:"snapshot"`
	// Doubted: a replica it is made of was found damaged, or was changed by others; latest avoids it.
	Doubted bool        `json:"doubted,omitempty"`
	Disks   []PointDisk `json:"disks"`
}

// PointDisk is a disk as of a point. ChangedBytes is what the point's segment carries, StoredBytes what it takes at the target.
type PointDisk struct {
	Name         string `json:"name"`
	VirtualSize  int64  `json:"virtual_size"`
	ChangedBytes int64  `json:"changed_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// Progress is one step of a long command. Total 0 means unknown.
type Progress struct {
	// Stage is what is being done, e.g. "sealing", "shipping", "exporting".
	Stage string `json:"stage"`
	// Item is what it is done to, e.g. a disk; may be empty.
	Item  string `json:"item,omitempty"`
	Done  int64  `json:"done"`
	Total int64  `json:"total"`
}

// SyncResult is what a sync achieved. Point is empty unless it was waited for, and if the epoch became no point.
type SyncResult struct {
	Epoch uint64 `json:"epoch"`
	Point string `json:"point,omitempty"`
}

// ResyncOptions say how a resync is started.
type ResyncOptions struct {
	// Now starts at once instead of in the window.
	Now bool `json:"now,omitempty"`
	// Deep compares the target with the table too.
	Deep bool `json:"deep,omitempty"`
	// Cancel stops a running resync and keeps what was compared.
	Cancel bool `json:"cancel,omitempty"`
}

// DumpOptions say how a journal is written.
type DumpOptions struct {
	JSON bool `json:"json,omitempty"`
}

// Normal returns s with every list that JSON must show as [] made non-nil and every time in UTC.
func (s Status) Normal() Status {
	s.VMs = append([]VM{}, s.VMs...)
	for i := range s.VMs {
		vm := &s.VMs[i]
		vm.Reasons = append([]Reason{}, vm.Reasons...)
		for j := range vm.Reasons {
			vm.Reasons[j].Since = vm.Reasons[j].Since.UTC()
		}
		vm.Disks = append([]Disk{}, vm.Disks...)
		if vm.LastPoint != nil {
			p := *vm.LastPoint
			p.Time = p.Time.UTC()
			vm.LastPoint = &p
		}
		if !vm.StateSince.IsZero() {
			vm.StateSince = vm.StateSince.UTC()
		}
	}
	return s
}

// Normal returns p with every list that JSON must show as [] made non-nil and every time in UTC.
func (p Points) Normal() Points {
	p.Points = append([]RecoveryPoint{}, p.Points...)
	for i := range p.Points {
		p.Points[i].Disks = append([]PointDisk{}, p.Points[i].Disks...)
		p.Points[i].Time = p.Points[i].Time.UTC()
	}
	return p
}
