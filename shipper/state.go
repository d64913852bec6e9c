package shipper

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// Stage is where a disk stands on its way to being replicated.
type Stage string

// The stages of a disk, in order.
const (
	StageWaiting  Stage = "waiting"  // known, its initial replication has not begun
	StageInitial  Stage = "initial"  // its blocks go straight to the replica
	StageComplete Stage = "complete" // epochs carry it
)

// vmRecord is the durable state of a VM's pipeline. It is written whole, and
// only after what it claims is true at the target.
type vmRecord struct {
	Version    int             `json:"version"`
	Generation uint64          `json:"generation"` // 0: no vm.json of ours yet
	Recorded   catalog.PointID `json:"recorded"`   // newest point counted (I7)
	RecordedAt time.Time       `json:"recorded_at"`
	// Unrecorded are the segments of open epochs that are durable at the target
	// and wait for the next record to list them.
	Unrecorded        []catalog.SegmentRef `json:"unrecorded,omitempty"`
	UnrecordedThrough uint64               `json:"unrecorded_through"`
	TakingOver        uint64               `json:"taking_over,omitempty"` // generation of an unfinished takeover
	ApplyEnd          catalog.PointID      `json:"apply_end"`             // intent: no apply ends earlier (I6)
	Applied           catalog.PointID      `json:"applied"`
	// Carried are the ids of the disks that the newest manifest lists complete: a
	// disk that an epoch went by without begins anew.
	Carried []string `json:"carried,omitempty"`
	// Distrust is why the next connection opens a new generation, "" if it need not.
	Distrust string `json:"distrust,omitempty"`
	// Adopt: an operator wants the VM, whoever has it.
	Adopt bool `json:"adopt,omitempty"`
}

// diskRecord is the durable state of one disk's replication.
type diskRecord struct {
	Key         string `json:"key"` // the disk's name in blob names
	Stage       Stage  `json:"stage"`
	Lease       string `json:"lease"` // id of the infinite lease on the replica
	VirtualSize int64  `json:"virtual_size"`
	TableReady  bool   `json:"table_ready"` // the table is initialised and synced
	Base        uint64 `json:"base"`        // the first epoch that lists the disk complete is later
	MostBytes   int64  `json:"most_bytes"`  // the largest virtual size it has had
	// Resized: the next epoch carries the size even if nothing else differs.
	Resized bool `json:"resized,omitempty"`
	// Gone: the disk left the VM, and epochs went by that do not carry it.
	Gone bool `json:"gone,omitempty"`
	// Birth is the sequence number that the replica is created with, by which a blob
	// that is there already is told from our own first attempt; Created: it is ours.
	Birth   int64 `json:"birth,omitempty"`
	Created bool  `json:"created,omitempty"`
	// Seed: the replica is not ours, and is to be compared instead of cleared.
	Seed bool `json:"seed,omitempty"`
	// Matching: the table is found out by comparing source and replica, which is done
	// up to block MatchedTo; nothing is captured before.
	Matching  bool             `json:"matching,omitempty"`
	MatchedTo extent.DiskBlock `json:"matched_to,omitempty"`
	// ETag is the replica's after our last seal, "" while a round of puts is under way.
	ETag string `json:"etag,omitempty"`
	// Touched is why the replica may not hold what it should, "" if nothing says so.
	Touched string `json:"touched,omitempty"`
	// TouchedAt was the newest snapshot when that was noticed: what others wrote is in
	// later ones only. Zero: the snapshots that are there may have it.
	TouchedAt catalog.PointID `json:"touched_at,omitzero"`
	// Again: a comparison that found damage was of a state from before others wrote
	// once more; another one is due after the repair.
	Again bool `json:"again,omitempty"`
	// Verified is the newest snapshot that a comparison found to be what it should.
	Verified catalog.PointID `json:"verified,omitzero"`
	// RepairAfter: damage was found, and the first point after this epoch is good
	// again; 0: nothing to repair.
	RepairAfter uint64 `json:"repair_after,omitempty"`
	// Blocks is the number of the block table that the entries were read through, 0 if
	// the disk needs none.
	Blocks uint64      `json:"blocks,omitempty"`
	Former []formerKey `json:"former,omitempty"`
}

// formerKey is a name in blob names that the disk had up to an epoch.
type formerKey struct {
	Key     string `json:"key"`
	Through uint64 `json:"through"`
}

// keyAt is the disk's name in the blob names of an epoch.
func (r diskRecord) keyAt(epoch uint64) string {
	for _, f := range r.Former {
		if epoch <= f.Through {
			return f.Key
		}
	}
	return r.Key
}

const stateVersion = 1

// document is one durable JSON document and its copy in memory.
type document[T any] struct {
	docs Documents
	key  string
	val  atomic.Pointer[T] // what is durable; who looks waits for no write
	mu   struct {
		sync.Mutex // held over the synced write: writers of one document are rare
		retired    bool
	}
}

// errRetired is a document whose object another one has taken the place of.
var errRetired = errors.New("disk was removed")

func openDocument[T any](docs Documents, key string) (*document[T], bool, error) {
	d := &document[T]{docs: docs, key: key}
	var val T
	found, err := docs.Load(key, &val)
	d.val.Store(&val)
	return d, found, err
}

// get returns a copy. It does not wait for a change under way: the status of a hundred VMs would wait for hundreds of synced
// writes while they begin.
func (d *document[T]) get() T { return *d.val.Load() }

// update changes the document durably; on error the old value stays.
func (d *document[T]) update(change func(*T)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.retired {
		return errRetired
	}
	next := d.get()
	change(&next)
	if err := d.docs.Save(d.key, next); err != nil {
		return err
	}
	d.val.Store(&next)
	return nil
}

// retire refuses all later updates: the document may have another object soon.
func (d *document[T]) retire() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.retired = true
}
