package journal

import (
	"context"
	"io"
	"iter"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

type Journal struct{}

func Open(store kv.Store, opts Options) (*Journal, error) { return nil, ErrClosed }
func (j *Journal) WasClean() bool                         { return false }
func (j *Journal) Close(ctx context.Context) error        { return nil }
func (j *Journal) VM(name string) (*VM, error)            { return nil, ErrClosed }
func (j *Journal) VMs() []*VM                             { return nil }
func (j *Journal) Load(key string, v any) (bool, error)   { return false, nil }
func (j *Journal) Save(key string, v any) error           { return nil }
func (j *Journal) Remove(key string) error                { return nil }

// Session returns the ids of the session before this one (empty: none) and of this one.
// published says whether the previous session's id was known to have reached the store root.
func (j *Journal) Session() (previous, current string, published bool) { return "", "", false }

// PublishSession: the current id is durable at the store root.
func (j *Journal) PublishSession() error         { return nil }
func (j *Journal) Heartbeat(now time.Time) error { return nil }
func (j *Journal) Failing() error                { return nil }
func (j *Journal) Check() error                  { return nil }
func (j *Journal) Dump(w io.Writer) error        { return nil }
func (j *Journal) Stats() Stats                  { return Stats{} }

// Check and Dump of a store nobody has open as a journal; nothing in it changes.
func Check(store kv.Store) error             { return nil }
func Dump(store kv.Store, w io.Writer) error { return nil }

type Stats struct {
	Commits, Activations, Deactivations, Evictions, Active, Saved int64
	Failing                                                       bool
}

type VM struct{}

func (vm *VM) ID() string     { return "" }
func (vm *VM) Name() string   { return "" }
func (vm *VM) Disks() []*Disk { return nil }
func (vm *VM) AddDisk(name string, f File, id Identity, opts DiskOptions) (*Disk, error) {
	return nil, ErrClosed
}
func (vm *VM) RemoveDisk(d *Disk) error                    { return nil }
func (vm *VM) Seal(r SealRequest) (*Sealed, error)         { return nil, ErrClosed }
func (vm *VM) Sealed() *Sealed                             { return nil }
func (vm *VM) LastEpoch() uint64                           { return 0 }
func (vm *VM) RaiseEpoch(atLeast uint64) error             { return nil }
func (vm *VM) Deactivate(ctx context.Context) (int, error) { return 0, nil }
func (vm *VM) OnPressure(fn func())                        {}

type Disk struct{}

func (d *Disk) ID() string                                                { return "" }
func (d *Disk) Name() string                                              { return "" }
func (d *Disk) Begin(c extent.Change) (extent.Pass, error)                { return nil, nil }
func (d *Disk) End(c extent.Change, p extent.Pass, err error)             {}
func (d *Disk) Mark(r extent.Range[extent.FileBlock]) error               { return nil }
func (d *Disk) Suspect() []extent.Range[extent.FileBlock]                 { return nil }
func (d *Disk) SetSuspect(reason string) error                            { return nil }
func (d *Disk) Compared(r extent.Range[extent.FileBlock]) error           { return nil }
func (d *Disk) Recovery() Recovery                                        { return Recovery{} }
func (d *Disk) PendingBlocks() int64                                      { return 0 }
func (d *Disk) ActiveRegions() int                                        { return 0 }
func (d *Disk) Size() int64                                               { return 0 }
func (d *Disk) OnEvict(fn func(r []extent.Range[extent.FileBlock]) error) {}

type Sealed struct {
	Epoch uint64
	UUID  [16]byte
	Time  time.Time
	Disks []*SealedDisk
}

func (s *Sealed) Wait(ctx context.Context) error                            { return nil }
func (s *Sealed) Torn() bool                                                { return false }
func (s *Sealed) Voided() bool                                              { return false }
func (s *Sealed) Void(reason string)                                        {}
func (s *Sealed) VoidReason() string                                        { return "" }
func (s *Sealed) MergeBack() error                                          { return nil }
func (s *Sealed) Return(diskID string, r ...extent.Range[extent.FileBlock]) {}
func (s *Sealed) Spooled() error                                            { return nil }
func (s *Sealed) SavedBytes() int64                                         { return 0 }

type SealedDisk struct {
	Disk          *Disk
	Size          int64
	SuspectAtSeal bool
}

func (sd *SealedDisk) List(maxRun int64) iter.Seq[extent.Range[extent.FileBlock]]  { return nil }
func (sd *SealedDisk) ListBlocks() int64                                           { return 0 }
func (sd *SealedDisk) ReadBlocks(r extent.Range[extent.FileBlock], p []byte) error { return nil }
func (sd *SealedDisk) PeekBlocks(r extent.Range[extent.FileBlock], p []byte) error { return nil }
