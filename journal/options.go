package journal

import (
	"log/slog"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Defaults of Options.
const (
	DefaultActivityRegions   = 8192 // 32 GiB of a disk
	DefaultActivationTimeout = time.Second
	DefaultHeartbeat         = 10 * time.Second
	DefaultRetry             = time.Second
)

// MaxFileSize bounds the images that are tracked, bytes. A change beyond it is
// refused with ErrTooLarge; the largest page blob holds 8 TiB.
const MaxFileSize = 64 << 40

// wideChange is the size in bytes from which a discard or truncate no longer
// saves the blocks a capture wants: the epoch is torn instead (design §3).
const wideChange = 16 << 20

// Options of a Journal.
type Options struct {
	ActivityRegions   int           // cap of active regions per disk; 0: DefaultActivityRegions
	ActivationTimeout time.Duration // a commit over it makes the journal failing; 0: DefaultActivationTimeout
	Heartbeat         time.Duration // how often the owner calls Heartbeat; 0: DefaultHeartbeat
	Retry             time.Duration // pause between attempts to leave the failing state; 0: DefaultRetry
	Log               *slog.Logger  // nil: discarded
	// Hook is called at every point of Points, with no lock of this package held
	// that a Begin of the steady state needs. For failpoints and traces; nil: none.
	Hook func(point string)
	// Saved is the directory of saved-block files and the heartbeat. Empty: no
	// block can be saved (an epoch that needs one is torn) and changes behind our
	// back within one boot go unseen.
	Saved string
	Now   func() time.Time // nil: time.Now
	Boot  func() Boot      // nil: the running kernel's
}

// Boot identifies a boot of the host.
type Boot struct {
	ID    string    // /proc/sys/kernel/random/boot_id
	Start time.Time // from /proc/stat, btime
}

// Identity of an image: device, inode, inode generation.
type Identity struct{ Dev, Ino, Gen uint64 }

// Recovery is the state of a disk's comparison, bytes of the image file.
type Recovery struct {
	SuspectBytes   int64 // suspect when it began
	ComparedBytes  int64 // of these compared
	DifferingBytes int64 // marked by Mark since
	Reason         string
}

// SealRequest says what a seal needs to know from its caller.
type SealRequest struct {
	// Extra lists by disk id file blocks that the capture reads besides the
	// changed ones: unknown entries and metadata.
	Extra map[string][]extent.Range[extent.FileBlock]
	// Whole lists by disk id the translated images: only their capture finds out what
	// it will read, so every block is protected until it calls Narrow.
	Whole      map[string]bool
	SavedLimit int64 // bytes of saved blocks the epoch may hold, all disks together
}

// Points are the names Options.Hook is called with, each after the gap it sits
// in. The memory model and the real store see the same list.
const (
	BeforeActivationCommit  = "before activation commit"
	AfterActivationCommit   = "after activation commit"
	BeforeImageMark         = "before image mark"
	AfterImageMark          = "after image mark"
	BeforeDeactivationSync  = "before deactivation sync"
	AfterDeactivationSync   = "after deactivation sync"
	BeforeDeactivationApply = "before deactivation delete"
	AfterDeactivationApply  = "after deactivation delete"
	BeforeEvictionForget    = "before eviction makes entries unknown"
	AfterEvictionForget     = "after eviction makes entries unknown"
	AfterEvictionApply      = "after eviction delete"
	BeforeEpochReserve      = "before epoch reservation"
	AfterEpochReserve       = "after epoch reservation"
	AfterPhaseSwitch        = "after phase switch"
	AfterSettle             = "after capture list fixed"
	AfterBlocksClaimed      = "after blocks claimed, before save"
	AfterBlocksSaved        = "after blocks saved, before write"
	BeforeReaderSwap        = "after read of a sealed block, before swap"
	AfterMergeBack          = "after merge-back, before epoch end"
	AfterEpochEnd           = "after epoch end"
	AfterSessionStart       = "after session start"
	AfterDiskUnclean        = "after disk's clean flag removed"
	BeforeCleanSets         = "before change sets written at stop"
	AfterCleanSets          = "after change sets written, before clean flag"
	AfterCleanFlag          = "after clean flag"
	BeforeRewrite           = "before active set rewritten"
	AfterRewrite            = "after active set rewritten, before mark removed"
	AfterMarkRemoved        = "after mark removed"
)

// Points lists every hook point.
func Points() []string {
	return []string{
		BeforeActivationCommit, AfterActivationCommit, BeforeImageMark, AfterImageMark,
		BeforeDeactivationSync, AfterDeactivationSync, BeforeDeactivationApply, AfterDeactivationApply,
		BeforeEvictionForget, AfterEvictionForget, AfterEvictionApply, BeforeEpochReserve, AfterEpochReserve,
		AfterPhaseSwitch, AfterSettle, AfterBlocksClaimed, AfterBlocksSaved, BeforeReaderSwap,
		AfterMergeBack, AfterEpochEnd, AfterSessionStart, AfterDiskUnclean, BeforeCleanSets, AfterCleanSets,
		AfterCleanFlag, BeforeRewrite, AfterRewrite, AfterMarkRemoved,
	}
}
