package shipper

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// FileRange is a half-open range of 4 KiB blocks of an image file.
type FileRange = extent.Range[extent.FileBlock]

// DiskRange is a half-open range of 4 KiB blocks of a virtual disk.
type DiskRange = extent.Range[extent.DiskBlock]

// Volume is the change log of one VM as the pipeline consumes it.
type Volume interface {
	// Seal ends the current epoch of every disk at one moment (I2). At most one
	// sealed epoch exists; it ends with Spooled or MergeBack.
	Seal(SealRequest) (Epoch, error)
	// Deactivate drops the activity records of regions that the spool, the table
	// and a datasync have made safe. Only without a sealed epoch.
	Deactivate(context.Context) error
	// LastEpoch is the highest epoch number given out, RaiseEpoch makes the next
	// one larger than atLeast, durably.
	LastEpoch() uint64
	RaiseEpoch(atLeast uint64) error
}

// SealRequest says what a capture will read besides the changed blocks.
type SealRequest struct {
	Extra      map[string][]FileRange // by disk id: blocks with unknown entries, metadata
	Whole      map[string]bool        // by disk id: every block, until the capture narrows the list
	SavedLimit int64                  // bytes of saved blocks the epoch may hold
}

// Epoch is a sealed epoch: the state of all disks of a VM at one moment.
type Epoch interface {
	Number() uint64
	UUID() [16]byte
	Time() time.Time
	// Wait returns when the writers of the epoch have left and its capture list is fixed.
	Wait(context.Context) error
	// Torn: a block could not be saved; the epoch can only be open.
	Torn() bool
	// Voided: the sealed view is lost; the epoch must be merged back.
	Voided() bool
	// MergeBack ends the epoch and returns every changed block to the current change set.
	MergeBack() error
	// Return merges blocks back that this capture leaves out; the epoch must be open.
	Return(disk string, ranges ...FileRange)
	// ReturnDisk merges everything of a disk back that this epoch does not carry at all.
	ReturnDisk(disk string)
	// Spooled ends the epoch: manifest and table are durable.
	Spooled() error
	// Disks are the ids of all disks that the seal took changes of.
	Disks() []string
	// Disk is the sealed view of a disk, false if the seal does not know it.
	Disk(id string) (EpochDisk, bool)
}

// EpochDisk is the sealed view of one disk (I3).
type EpochDisk interface {
	FileSize() int64
	// SuspectAtSeal: what the epoch has of the disk may be none of its states. It
	// may become so until the manifest.
	SuspectAtSeal() bool
	// List is the capture list in order, runs cut at maxRun blocks.
	List(maxRun int64) iter.Seq[FileRange]
	ListBlocks() int64
	// ReadBlocks reads listed blocks as they were at the seal, once.
	ReadBlocks(r FileRange, p []byte) error
	// PeekBlocks reads the same bytes and keeps the blocks listed.
	PeekBlocks(r FileRange, p []byte) error
	// Narrow fixes the list of a disk that was sealed whole: these blocks and no
	// others. List tells the changed ones before.
	Narrow(list extent.Set[extent.FileBlock])
	// Done says that listed blocks are read for good.
	Done(r FileRange)
}

// Source is the live side of one image file. Its id is that of the change log.
type Source interface {
	ID() string
	// Name is the path of the image relative to its VM.
	Name() string
	// Path is the path of the image relative to its store.
	Path() string
	// Stat says which file it is.
	Stat() (chain.Stat, error)
	io.ReaderAt
	// Datasync returns when everything written so far is on stable storage.
	Datasync() error
	// Size of the image file in bytes.
	Size() (int64, error)
	// NextData returns the next range of the file that may hold data, at or after
	// off, and io.EOF when only a hole follows.
	NextData(off int64) (start, end int64, err error)
	// PendingBlocks counts the blocks in the current change set.
	PendingBlocks() int64
	// Suspect tells whether regions wait for a comparison.
	Suspect() bool
}

// Documents keeps small JSON documents durably; Save is synced when it returns.
type Documents interface {
	Load(key string, v any) (bool, error)
	Save(key string, v any) error
	Remove(key string) error
}
