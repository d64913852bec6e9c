package checksum

import (
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// maxSide bounds the side list, 8 MiB. One block in 2^64 has a checksum of 0 by
// chance, so only a guest that forges them reaches it; the entries beyond stay
// unknown, which costs that guest a capture of these blocks in each epoch.
const maxSide = 1 << 20

// listZerosLocked makes the zeros of the window durable members of the side
// list, and then known.
func (t *Table) listZerosLocked() error {
	w := &t.update.window
	if len(w.zeros) == 0 {
		return nil
	}
	fresh := false
	for _, b := range w.zeros {
		if t.mu.side.Count() < maxSide && !t.mu.side.Test(b) {
			t.mu.side.Set(single(b))
			fresh = true
		}
	}
	if fresh {
		if err := t.saveSideLocked(); err != nil {
			return err
		}
		t.reached("after side list")
	}
	for _, b := range w.zeros {
		if t.mu.side.Test(b) {
			t.unknown.ClearOne(b)
		}
	}
	w.zeros = w.zeros[:0]
	return nil
}

// unlistLocked takes r out of the side list durably, if anything of it is there.
func (t *Table) unlistLocked(ranges ...diskRange) error {
	changed := false
	for _, r := range ranges {
		if t.mu.side.Any(r) {
			t.mu.side.Clear(r)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	return t.saveSideLocked()
}

func (t *Table) saveSideLocked() error {
	blocks := make([]extent.DiskBlock, 0, t.mu.side.Count())
	for run := range t.mu.side.Ranges(diskRange{End: maxBlocks}, 0) {
		for b := run.Start; b < run.End; b++ {
			blocks = append(blocks, b)
		}
	}
	if err := t.f.SaveSide(encodeSide(t.update.header.id, blocks)); err != nil {
		return fmt.Errorf("saving side list: %w", err)
	}
	return nil
}
