package journal

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Sealed is an epoch that is sealed and has not ended. It ends by Spooled or by
// MergeBack; until then the VM cannot be sealed again.
//
// Its claims:
//  1. Once the old phase has no unmarked writer its change sets never grow.
//  2. Once it is drained and settled, the capture list (change set and extra)
//     and the sizes are fixed, and the listed blocks hold the bytes of the seal
//     until a writer claims them.
//  3. A writer of a later phase that touches the list passes claim 2 first, then
//     claims and saves; so a pread followed by a successful swap wanted → read
//     returned the bytes of the seal.
type Sealed struct {
	Epoch uint64
	UUID  [16]byte
	Time  time.Time
	Disks []*SealedDisk

	vm      *VM
	phase   *phase // the old one
	limit   int64  // bytes of saved blocks
	byIndex []*SealedDisk

	settling sync.Once
	settled  atomic.Bool // claim 2
	torn     atomic.Bool // a block was lost: later reads of it give live bytes
	partial  atomic.Bool // Return was called
	ended    atomic.Bool
	saved    atomic.Int64 // bytes
	void     atomic.Pointer[string]
	sizeErr  error // of settling

	ending sync.Mutex // one end at a time; held over waiting for savers
}

// addDisks lists the attached disks. The caller holds vm.mu.
func (s *Sealed) addDisks(disks []*Disk, r SealRequest) {
	s.byIndex = make([]*SealedDisk, len(disks))
	for i, d := range disks {
		if d == nil {
			continue
		}
		sd := &SealedDisk{Disk: d, Size: d.size.Load(), SuspectAtSeal: d.sus.bits.Count() > 0, s: s, changes: s.phase.set(i)}
		extra := extent.Of(r.Extra[d.id]...)
		sd.extra.Store(&extra)
		sd.whole.Store(r.Whole[d.id])
		sd.pending.Store(new(blockMap))
		sd.shards.init()
		s.byIndex[i] = sd
		s.Disks = append(s.Disks, sd)
	}
}

// disk returns the sealed view of d, nil if d joined after the seal.
func (s *Sealed) disk(d *Disk) *SealedDisk {
	if d.index >= len(s.byIndex) {
		return nil
	}
	return s.byIndex[d.index]
}

// Wait returns when every write of the epoch has been answered and the capture
// list and sizes are fixed. It may be called again after an error of ctx.
func (s *Sealed) Wait(ctx context.Context) error {
	select {
	case <-s.phase.drained:
	case <-ctx.Done():
		return ctx.Err()
	}
	s.settle()
	return s.sizeErr
}

// settle fixes sizes and lists, once the old phase is drained. Whoever needs it
// first does it, a guest's write perhaps: it takes as long as copying the
// change sets (32 MiB a TiB all dirty).
func (s *Sealed) settle() {
	s.settling.Do(func() {
		for _, sd := range s.Disks {
			// Writes of later phases that change the size wait for this.
			size, err := sd.Disk.file.Size()
			if err != nil {
				s.sizeErr = errors.Join(s.sizeErr, fmt.Errorf("size of %s at the seal: %w", sd.Disk.Name(), err))
			} else {
				sd.Size = size
			}
			list := sd.changes.Clone()
			for _, r := range sd.extra.Load().Ranges() {
				list.Set(r)
			}
			if sd.whole.Load() {
				list.Set(extent.Cover[extent.FileBlock](0, sd.Size))
			}
			sd.pending.Store(list)
			sd.listed.Store(sd.countList())
		}
		s.settled.Store(true)
		s.vm.j.hook(AfterSettle)
	})
}

// protect is called by a write of a later phase, marked and not yet done: it
// returns when no block of r is wanted any more. resize: the write changes the
// size. wide: it is too large to save for.
func (s *Sealed) protect(d *Disk, r blockRange, resize, wide bool) {
	sd := s.disk(d)
	if sd == nil {
		return
	}
	if !s.settled.Load() {
		s.phase.awaitMarked()
		if !resize && !sd.touches(r) {
			return
		}
		<-s.phase.drained
		s.settle()
	}
	sd.keep(r, wide)
}

// Torn says that the epoch can only be open: a block could not be saved and was
// or will be read as it is now, or Return took some from the list. A torn
// block is in the next change set.
func (s *Sealed) Torn() bool { return s.torn.Load() || s.partial.Load() }

// Voided says that the epoch must be merged back. A capture asks after its
// last read and before its manifest.
func (s *Sealed) Voided() bool { return s.void.Load() != nil }

// VoidReason returns why, "" if the epoch is not void.
func (s *Sealed) VoidReason() string {
	if r := s.void.Load(); r != nil {
		return *r
	}
	return ""
}

// Void makes the epoch void; the first reason stays. Nothing is saved for it
// any more.
func (s *Sealed) Void(reason string) { s.void.CompareAndSwap(nil, &reason) }

// tear gives up the bytes of the seal for some blocks, before their bits are
// cleared and before the write that needs them goes on.
//
// That goes for translated images as well: their claim about the block table
// (shipper/README.md) holds with a torn one, for what was lost is in the next set.
func (s *Sealed) tear() {
	s.torn.Store(true)
}

// SavedBytes returns the bytes of blocks saved for the epoch.
func (s *Sealed) SavedBytes() int64 { return s.saved.Load() }

// Return merges blocks back into the current change set and takes them from the
// capture list: a prefix capture leaves them out. Blocks that are only extra
// just leave the list, their entries are unknown still. The epoch is open from
// then on. Call it after Wait.
func (s *Sealed) Return(diskID string, ranges ...extent.Range[extent.FileBlock]) {
	for _, sd := range s.Disks {
		if sd.Disk.id != diskID {
			continue
		}
		s.partial.Store(true)
		s.vm.merge(func(p *phase) { // first: at no time is a block in no set
			for _, r := range ranges {
				for run := range sd.changes.Ranges(r, 0) {
					p.set(sd.Disk.index).Set(run)
				}
			}
		})
		sd.drop(ranges)
	}
}

// MergeBack ends the epoch by returning every changed block to the current
// change set: it is void, or its capture failed. It waits for the epoch's
// writers, since a later seal must not meet them. ErrEnded if it has ended.
func (s *Sealed) MergeBack() error {
	<-s.phase.drained
	s.settle()
	s.ending.Lock()
	defer s.ending.Unlock()
	if s.ended.Load() {
		return ErrEnded
	}
	s.vm.merge(func(p *phase) {
		for _, sd := range s.Disks {
			p.set(sd.Disk.index).Or(sd.changes)
		}
	})
	s.vm.j.hook(AfterMergeBack)
	return s.endLocked()
}

// Spooled ends the epoch: its manifest and the table's update are durable.
// ErrVoid: it was voided before, merge it back. ErrNotSettled: Wait did not return.
func (s *Sealed) Spooled() error {
	s.ending.Lock()
	defer s.ending.Unlock()
	switch {
	case s.ended.Load():
		return ErrEnded
	case s.Voided():
		return ErrVoid
	case !s.settled.Load():
		return ErrNotSettled
	}
	return s.endLocked()
}

// endLocked lets the VM be sealed again once no writer is saving for this
// epoch: a late save would land in the next epoch's file. The caller holds ending.
func (s *Sealed) endLocked() error {
	s.ended.Store(true)
	var err error
	for _, sd := range s.Disks {
		sd.saving.Lock()
		if sd.Disk.gone.Load() {
			err = errors.Join(err, sd.Disk.saved.close())
		} else {
			err = errors.Join(err, sd.Disk.saved.empty())
		}
		sd.saving.Unlock()
	}
	s.vm.sealed.Store(nil)
	s.vm.j.hook(AfterEpochEnd)
	if err != nil {
		return fmt.Errorf("epoch %d has ended, but its saved blocks are not freed: %w", s.Epoch, err)
	}
	return nil
}
