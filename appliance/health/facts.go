package health

import (
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// Facts are what a VM's health is a function of. Sizes are bytes.
type Facts struct {
	VM       string
	Now      time.Time
	Interval time.Duration // between seals

	Paused   bool
	Troubles []Trouble
	Disks    []Disk
	Foreign  []string         // files whose format is not protected
	Store    []control.Reason // what the store says itself, of images it cannot track

	LastPoint time.Time // its seal; zero: none yet
	Pending   int64     // changed and not at the target
	Cycles    []Cycle   // oldest first
	// SealsRest is since when the quota has kept seals back; zero: it does not.
	SealsRest      time.Time
	Spooled, Quota int64
	Scarce         string    // the directory whose lack of space makes the quota that small; "": it does not
	Forecast       *Forecast // nil: nothing fills

	CatchUp          string // why points pause until the changes are shipped; "": they do not
	Marked           *Mark  // a disk that has to be compared whole
	Comparing        bool   // that is being done
	ComparisonPaused bool   // by an operator
	Comparison       error  // why the newest comparison ended early
	Journal          error  // why the journal takes no records
	Leaving          error  // why an unprotect has not come to its end
}

// Trouble is what keeps a stage of the pipeline from going on.
type Trouble struct {
	Stage   string
	Class   retry.Class
	Code    string // of the error
	Cause   string // its text
	Action  string
	Since   time.Time
	NextTry time.Time // zero: nobody tries by itself
}

// Disk is one disk of the VM.
type Disk struct {
	Name     string
	Foreign  bool  // served, never protected
	Complete bool  // its initial replication has ended
	Err      error // why the image cannot be read as what it is; nil also while it is being written
	NotYet   error // why it is no whole image yet
	Chain    error // what is missing of what it lies over
}

// Cycle is an epoch from its seal to its point.
type Cycle struct {
	SealedAt  time.Time
	DurableAt time.Time // zero: not yet, or never
	Open      bool      // never
}

// Mark is a disk that waits for its comparison.
type Mark struct{ Disk, Reason string }
