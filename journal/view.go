package journal

import (
	"fmt"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// SealedDisk is one disk as it was at the seal.
//
// A listed block is wanted (its bit in pending is set), claimed (a writer is
// saving it), held (saved), read, or, in a torn epoch, lost:
//
//	wanted ─ reader ──► read ◄── reader ─ held
//	   └─ writer ─► claimed ─► held, or lost: read as it is now
type SealedDisk struct {
	Disk          *Disk
	Size          int64 // of the file at the seal, bytes; exact once Wait has returned
	SuspectAtSeal bool  // a comparison of the disk was owed or running

	s       *Sealed
	changes *blockMap
	whole   atomic.Bool                                  // every block is protected: Narrow was not called yet
	narrow  atomic.Bool                                  // Narrow was called: the list is extra alone
	extra   atomic.Pointer[extent.Set[extent.FileBlock]] // listed besides the changes; replaced by Return
	pending atomic.Pointer[blockMap]                     // wanted; fixed by settle
	listed  atomic.Int64
	claims  atomic.Int64 // writers that hold claims
	saving  sync.RWMutex // read-held over one save, its I/O included; write-held by the end of the epoch
	shards  shards
}

// List returns the capture list in order: the changed and the extra blocks, in
// runs of at most maxRun blocks if that is above 0, none across a multiple of
// 128 MiB. Call it after Wait.
func (sd *SealedDisk) List(maxRun int64) iter.Seq[extent.Range[extent.FileBlock]] {
	return func(yield func(extent.Range[extent.FileBlock]) bool) {
		extra := *sd.extra.Load()
		end := sd.changes.End()
		if n := len(extra.Ranges()); n > 0 {
			end = max(end, extra.Ranges()[n-1].End)
		}
		for window := range (blockRange{End: end}).Split(setPageBlocks) {
			if !sd.listWindow(window, extra, maxRun, yield) {
				return
			}
		}
	}
}

func (sd *SealedDisk) listWindow(window blockRange, extra extent.Set[extent.FileBlock], maxRun int64, yield func(blockRange) bool) bool {
	runs := extra.Intersect(extent.Of(window))
	if !sd.narrow.Load() {
		for run := range sd.changes.Ranges(window, 0) {
			runs.Add(run)
		}
	}
	for _, run := range runs.Ranges() {
		for maxRun > 0 && run.Len() > maxRun {
			if !yield(blockRange{Start: run.Start, End: run.Start + extent.FileBlock(maxRun)}) {
				return false
			}
			run.Start += extent.FileBlock(maxRun)
		}
		if !yield(run) {
			return false
		}
	}
	return true
}

// Narrow fixes the capture list of a disk that was sealed whole: these blocks and no
// others, the changed ones included. What was saved of the others is of no use any
// more and is not read. Call it once, after Wait, when List has told the changes.
func (sd *SealedDisk) Narrow(list extent.Set[extent.FileBlock]) {
	sd.saving.Lock() // no block is claimed between the two lists
	defer sd.saving.Unlock()
	old, wanted := sd.pending.Load(), new(blockMap)
	for _, r := range list.Ranges() {
		for run := range old.Ranges(r, 0) {
			wanted.Set(run)
		}
	}
	sd.extra.Store(&list)
	sd.narrow.Store(true)
	sd.pending.Store(wanted)
	sd.listed.Store(list.Blocks())
	sd.whole.Store(false) // last: touches says yes until the new list is there
}

// Done says that blocks of the list are read for good: a writer need not save them.
func (sd *SealedDisk) Done(r extent.Range[extent.FileBlock]) {
	pending := sd.pending.Load()
	for b := r.Start; b < r.End; b++ {
		if !pending.ClearOne(b) {
			sd.taken(b)
		}
	}
}

func (sd *SealedDisk) countList() (n int64) {
	for r := range sd.List(0) {
		n += r.Len()
	}
	return n
}

// ListBlocks returns the number of blocks on the capture list. Call it after Wait.
func (sd *SealedDisk) ListBlocks() int64 { return sd.listed.Load() }

// drop takes ranges from the list.
func (sd *SealedDisk) drop(ranges []blockRange) {
	extra := sd.extra.Load().Subtract(extent.Of(ranges...))
	sd.extra.Store(&extra)
	for _, r := range ranges {
		sd.pending.Load().Clear(r)
		sd.changes.Clear(r)
	}
	sd.listed.Store(sd.countList())
}

// ReadBlocks fills p, r.Bytes() long, with the blocks of r as they were at the
// seal; zeros past Size. Every block must be listed and is read once:
// ErrNotListed, ErrReadTwice. ErrNotSettled before Wait, ErrVoid, ErrEnded. After
// an error of the image the blocks are wanted still and may be read again.
func (sd *SealedDisk) ReadBlocks(r extent.Range[extent.FileBlock], p []byte) error {
	if err := sd.readable(r, p); err != nil {
		return err
	}
	if err := sd.readLive(r, p); err != nil {
		return err
	}
	sd.s.vm.j.hook(BeforeReaderSwap)
	pending := sd.pending.Load()
	for b := r.Start; b < r.End; b++ {
		if pending.ClearOne(b) {
			continue
		}
		if err := sd.readSaved(b, blockOf(r, p, b)); err != nil {
			return err
		}
		sd.taken(b)
	}
	sd.clearTail(r, p)
	return nil
}

// PeekBlocks is ReadBlocks for blocks that are read again: they stay wanted.
func (sd *SealedDisk) PeekBlocks(r extent.Range[extent.FileBlock], p []byte) error {
	if err := sd.readable(r, p); err != nil {
		return err
	}
	if err := sd.readLive(r, p); err != nil {
		return err
	}
	pending := sd.pending.Load()
	for b := r.Start; b < r.End; b++ {
		if pending.Test(b) { // wanted after the read: nobody overwrote it before
			continue
		}
		if err := sd.readSaved(b, blockOf(r, p, b)); err != nil {
			return err
		}
	}
	sd.clearTail(r, p)
	return nil
}

func (sd *SealedDisk) readable(r blockRange, p []byte) error {
	switch {
	case int64(len(p)) != r.Bytes():
		return fmt.Errorf("buffer of %d bytes for blocks %v", len(p), r)
	case sd.s.ended.Load():
		return ErrEnded
	case sd.s.Voided():
		return fmt.Errorf("%w: %s", ErrVoid, sd.s.VoidReason())
	case !sd.s.settled.Load():
		return ErrNotSettled
	}
	if sd.whole.Load() {
		return nil
	}
	extra := sd.extra.Load()
	for b := r.Start; b < r.End; b++ {
		if one := (blockRange{Start: b, End: b + 1}); !extra.Contains(one) && (sd.narrow.Load() || !sd.changes.Test(b)) {
			return fmt.Errorf("%w: block %d of %s", ErrNotListed, b, sd.Disk.Name())
		}
	}
	return nil
}

func (sd *SealedDisk) readLive(r blockRange, p []byte) error {
	if err := readFull(sd.Disk.file, p, r.Offset()); err != nil {
		return fmt.Errorf("read blocks %v of %s: %w", r, sd.Disk.Name(), err)
	}
	return nil
}

// readSaved reads a block that is not wanted any more: held, or lost.
func (sd *SealedDisk) readSaved(b extent.FileBlock, p []byte) error {
	if sd.isHeld(b) {
		if err := sd.Disk.saved.readAt(p, int64(b)*extent.BlockSize); err != nil {
			return fmt.Errorf("read saved block %d of %s: %w", b, sd.Disk.Name(), err)
		}
		return nil
	}
	if sd.s.torn.Load() {
		return sd.readLive(blockRange{Start: b, End: b + 1}, p)
	}
	return fmt.Errorf("%w: block %d of %s", ErrReadTwice, b, sd.Disk.Name())
}

func blockOf(r blockRange, p []byte, b extent.FileBlock) []byte {
	off := int64(b-r.Start) * extent.BlockSize
	return p[off : off+extent.BlockSize]
}

// clearTail zeroes what lies past the file's end at the seal.
func (sd *SealedDisk) clearTail(r blockRange, p []byte) {
	if over := r.Offset() + int64(len(p)) - sd.Size; over > 0 {
		clear(p[max(0, int64(len(p))-over):])
	}
}
