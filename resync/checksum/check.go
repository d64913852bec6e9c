package checksum

import (
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Check reads the whole table and compares it with the memory: header, side
// list, unknown entries, checksum. It returns ErrInvariant where they differ,
// and changes nothing.
func (t *Table) Check() error {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	for _, check := range []func() error{t.checkHeaderLocked, t.checkSideLocked, t.checkUnknownLocked, t.checkSumLocked} {
		if err := check(); err != nil {
			return fmt.Errorf("checking %s: %w", t.path, err)
		}
	}
	return nil
}

func (t *Table) checkHeaderLocked() error {
	slots := make([]byte, entriesStart)
	if _, err := t.f.ReadAt(slots, 0); err != nil {
		return err
	}
	h, err := decodeSlots(slots)
	if err != nil {
		return err
	}
	// A Commit that was broken off has resized the memory only.
	h.blocks = t.update.header.blocks
	if h != t.update.header || h.position != t.mu.position || h.blocks != t.mu.blocks {
		return fmt.Errorf("%w: header %+v, in memory %+v, published %d blocks at %d", ErrInvariant, h, t.update.header, int64(t.mu.blocks), t.mu.position)
	}
	if t.update.window.dirty != 0 || len(t.update.window.zeros) != 0 {
		return fmt.Errorf("%w: an update left pages unwritten", ErrInvariant)
	}
	return nil
}

func (t *Table) checkSideLocked() error {
	p, err := t.f.LoadSide()
	if err != nil || p == nil && t.mu.side.Count() == 0 {
		return err
	}
	blocks, err := decodeSide(p, t.update.header.id)
	if err != nil {
		return err
	}
	if !slices.IsSorted(blocks) || int64(len(blocks)) != t.mu.side.Count() {
		return fmt.Errorf("%w: side list of %d blocks, in memory %d", ErrInvariant, len(blocks), t.mu.side.Count())
	}
	for _, b := range blocks {
		if !t.mu.side.Test(b) {
			return fmt.Errorf("%w: block %d is in the side list and not in memory", ErrInvariant, int64(b))
		}
	}
	return nil
}

func (t *Table) checkUnknownLocked() error {
	var read extent.Bitmap[extent.DiskBlock]
	all := diskRange{End: t.update.header.blocks}
	err := t.scan(all, func(start extent.DiskBlock, raw []byte) {
		for run := range zeroRuns(start, raw) {
			read.Set(run)
		}
	})
	if err != nil {
		return err
	}
	for run := range t.mu.side.Ranges(all, 0) {
		read.Clear(run)
	}
	inFile := slices.Collect(read.Ranges(all, 0))
	inMemory := slices.Collect(t.unknown.Ranges(diskRange{End: max(all.End, t.unknown.End())}, 0))
	if !slices.Equal(inFile, inMemory) || t.unknown.Count() != read.Count() {
		return fmt.Errorf("%w: %d unknown entries in the file, %d in memory", ErrInvariant, read.Count(), t.unknown.Count())
	}
	return nil
}

func (t *Table) checkSumLocked() error {
	if !t.update.summed {
		return nil
	}
	s, err := t.sumLocked(diskRange{End: t.update.header.blocks})
	if err == nil && s != t.update.sum {
		err = fmt.Errorf("%w: entries combine to %016x, kept is %016x", ErrInvariant, uint64(s), uint64(t.update.sum))
	}
	return err
}
