package checksum

import (
	"encoding/binary"
	"fmt"
	"iter"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// sumLocked returns the checksum of the entries of r, unknown ones as 0.
func (t *Table) sumLocked(r diskRange) (Sum, error) {
	var s Sum
	err := t.scan(r, func(_ extent.DiskBlock, raw []byte) {
		for i := 0; i < len(raw); i += entrySize {
			s = next(s) ^ Sum(binary.LittleEndian.Uint64(raw[i:]))
		}
	})
	return s, err
}

// recombineLocked makes sum valid: from all entries, once after an open; every
// update keeps it so at the price of the entries it changes.
func (t *Table) recombineLocked() error {
	if t.update.summed {
		return nil
	}
	s, err := t.sumLocked(diskRange{End: t.update.header.blocks})
	if err != nil {
		return t.fail(err)
	}
	t.update.sum, t.update.summed = s, true
	return nil
}

// DiskSum returns the checksum of the whole disk, rounded up to blocks, and
// false if an entry is unknown or the table is out of use. The first call after
// an open reads the whole table; later ones cost nothing.
func (t *Table) DiskSum() (Sum, bool) {
	t.update.Lock()
	defer t.update.Unlock()
	if t.broken() != nil || t.unknown.Count() != 0 || t.recombineLocked() != nil {
		return 0, false
	}
	return t.update.sum, true
}

// SumAfter returns what DiskSum will be after a Commit of the same: for the
// manifest, which must be durable before the table changes. It costs as much as
// DiskSum and the changes. An error of changes is returned; nothing is changed.
func (t *Table) SumAfter(blocks extent.DiskBlock, changes iter.Seq2[Change, error]) (Sum, bool, error) {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return 0, false, err
	}
	if blocks < 0 || blocks > maxBlocks {
		return 0, false, fmt.Errorf("checksum of %s: %w: %d blocks", t.path, ErrRange, int64(blocks))
	}
	if err := t.recombineLocked(); err != nil {
		return 0, false, err
	}
	s, err := t.resizedSumLocked(blocks)
	if err != nil {
		return 0, false, t.fail(err)
	}
	kept := diskRange{End: min(blocks, t.update.header.blocks)}
	unknown := t.unknown.CountIn(kept)
	for c, err := range clipped(blocks, changes) {
		if err != nil {
			return 0, false, fmt.Errorf("checksum of %s: %w", t.path, err)
		}
		delta, err := t.deltaLocked(c, kept.End)
		if err != nil {
			return 0, false, t.fail(err)
		}
		s ^= shift(delta, int64(blocks-c.Range.End)*extent.BlockSize)
		if unknown != 0 {
			unknown -= t.unknown.CountIn(c.Range.Intersect(kept))
		}
	}
	return s, unknown == 0, nil
}

// resizedSumLocked returns the checksum after a resize and no change.
func (t *Table) resizedSumLocked(blocks extent.DiskBlock) (Sum, error) {
	old := t.update.header.blocks
	if blocks >= old {
		n := diskRange{Start: old, End: blocks}.Bytes()
		return Combine(t.update.sum, Zeros(n), n), nil
	}
	tail := diskRange{Start: blocks, End: old}
	dropped, err := t.sumLocked(tail)
	return unshift(t.update.sum^dropped, tail.Bytes()), err
}

// deltaLocked returns the checksum of old xor new over a change; blocks from
// grown on are zeros before it.
func (t *Table) deltaLocked(c Change, grown extent.DiskBlock) (delta Sum, err error) {
	v := values{sums: c.Sums, fill: ZeroBlock}
	i := 0
	for piece := range c.Range.Split(windowEntries) {
		if piece.Start < grown {
			if err := t.moveLocked(piece); err != nil {
				return 0, err
			}
		}
		for b := piece.Start; b < piece.End; b++ {
			old := ZeroBlock
			if b < grown {
				old = Sum(binary.LittleEndian.Uint64(t.update.window.at(b)))
			}
			delta = next(delta) ^ old ^ v.at(i)
			i++
		}
	}
	return delta, nil
}
