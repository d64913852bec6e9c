package checksum

import (
	"fmt"
	"iter"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Change is new checksums of a range, one a block. Sums nil: every block is
// zeros.
type Change struct {
	Range extent.Range[extent.DiskBlock]
	Sums  []Sum
}

// clip checks a change against the one before it, which ended at last, and
// against the size of the table. What a zero extent has past the end is cut
// off: a segment that shrinks a disk carries it.
func (c Change) clip(last, blocks extent.DiskBlock) (Change, error) {
	if c.Range.Empty() && len(c.Sums) == 0 {
		return Change{}, nil
	}
	if c.Range.Start < last {
		return c, fmt.Errorf("%w: blocks %v after %d", ErrOrder, c.Range, int64(last))
	}
	if c.Sums == nil {
		c.Range = c.Range.Intersect(diskRange{End: blocks})
		return c, nil
	}
	return c, fits(c.Range, c.Sums, blocks)
}

func fits(r diskRange, sums []Sum, blocks extent.DiskBlock) error {
	if r.Start < 0 || r.End > blocks || r.End < r.Start || sums != nil && r.Len() != int64(len(sums)) {
		return fmt.Errorf("%w: blocks %v of %d, %d checksums", ErrRange, r, int64(blocks), len(sums))
	}
	return nil
}

// clipped yields the changes that are not empty, clipped and checked.
func clipped(blocks extent.DiskBlock, changes iter.Seq2[Change, error]) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		var last extent.DiskBlock
		for c, err := range changes {
			if err == nil {
				c, err = c.clip(last, blocks)
			}
			if err == nil && c.Range.Empty() {
				continue
			}
			last = c.Range.End
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// Commit applies the changes of one epoch, in increasing order, and moves the
// position to it: entries written and synced, then the header written and
// synced. blocks is the size of the table from this epoch on; new entries are
// ZeroBlock, those past the end are dropped.
//
// An epoch at or before the position is a redo of what is there: nothing
// happens. If changes yields an error (a segment that cannot be read) it is
// returned; what came before it stays applied, the position does not move, and
// the table can be used: repeat the Commit, or Forget the ranges of the epoch.
// If the file fails, the table is out of use.
func (t *Table) Commit(epoch uint64, blocks extent.DiskBlock, changes iter.Seq2[Change, error]) error {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	if epoch <= t.update.header.position {
		return nil
	}
	if blocks < 0 || blocks > maxBlocks {
		return fmt.Errorf("committing epoch %d to %s: %w: %d blocks", epoch, t.path, ErrRange, int64(blocks))
	}
	if err := t.resizeLocked(blocks); err != nil {
		return t.fail(err)
	}
	for c, err := range clipped(blocks, changes) {
		if err != nil {
			return t.stopLocked(fmt.Errorf("committing epoch %d to %s: %w", epoch, t.path, err))
		}
		if err := t.putLocked(c.Range, values{sums: c.Sums, fill: ZeroBlock}); err != nil {
			return t.fail(err)
		}
	}
	return t.finishLocked(epoch)
}

// stopLocked ends an update that its caller broke off: the entries so far are
// written, so that file and memory agree.
func (t *Table) stopLocked(why error) error {
	if err := t.flushLocked(); err != nil {
		return t.fail(err)
	}
	return why
}

// finishLocked makes the entries durable, and then the position.
func (t *Table) finishLocked(epoch uint64) error {
	if err := t.flushLocked(); err != nil {
		return t.fail(err)
	}
	t.reached("after entries")
	if err := t.f.Datasync(); err != nil {
		return t.fail(err)
	}
	t.reached("after entries sync")
	h := t.update.header
	h.serial, h.position = h.serial+1, epoch
	if _, err := t.f.WriteAt(h.encode(), int64(h.serial%2)*slotSize); err != nil {
		return t.fail(err)
	}
	t.reached("after header")
	if err := t.f.Datasync(); err != nil {
		return t.fail(err)
	}
	t.reached("after header sync")
	t.update.header = h
	t.mu.Lock()
	t.mu.position = epoch
	t.mu.Unlock()
	return t.trimLocked()
}

// trimLocked gives back what a shrink has left behind the table's last page. It
// need not be durable: a longer file is legal.
func (t *Table) trimLocked() error {
	want := entriesStart + (int64(t.update.header.blocks)+pageEntries-1)/pageEntries*4096
	size, err := t.f.Size()
	if err == nil && size > want {
		t.update.window.loaded = 0 // it may hold what the file loses
		err = t.f.Truncate(want)
	}
	if err != nil {
		return t.fail(err)
	}
	return nil
}

// resizeLocked changes the number of blocks, in memory and in the entries; the
// header follows with the position.
func (t *Table) resizeLocked(blocks extent.DiskBlock) error {
	old := t.update.header.blocks
	if blocks < old {
		return t.shrinkLocked(diskRange{Start: blocks, End: old})
	}
	if blocks == old {
		return nil
	}
	grown := diskRange{Start: old, End: blocks}
	t.update.sum = shift(t.update.sum, grown.Bytes())
	t.update.header.blocks = blocks
	if err := t.putLocked(grown, values{fill: ZeroBlock, fresh: true}); err != nil {
		return err
	}
	if err := t.flushLocked(); err != nil {
		return err
	}
	t.publishBlocksLocked()
	return nil
}

func (t *Table) shrinkLocked(tail diskRange) error {
	if t.update.summed {
		dropped, err := t.sumLocked(tail)
		if err != nil {
			return err
		}
		t.update.sum = unshift(t.update.sum^dropped, tail.Bytes())
	}
	t.update.header.blocks = tail.Start
	t.publishBlocksLocked()
	t.unknown.Clear(tail)
	return nil
}

func (t *Table) publishBlocksLocked() {
	t.mu.Lock()
	t.mu.blocks = t.update.header.blocks
	t.mu.Unlock()
}

// Forget makes the entries of the ranges unknown; durable when it returns. It
// is for a caller who has brought the position to the newest manifest (else a
// redo brings back what was forgotten). May be repeated. What lies outside the
// table is ignored.
func (t *Table) Forget(ranges ...extent.Range[extent.DiskBlock]) error {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	set := extent.Of(ranges...).Intersect(extent.Of(diskRange{End: t.update.header.blocks}))
	if set.Empty() {
		return nil
	}
	t.noteForgottenLocked(set)
	for _, r := range set.Ranges() {
		t.unknown.Set(r)
	}
	if err := t.unlistLocked(set.Ranges()...); err != nil {
		return t.fail(err)
	}
	for _, r := range set.Ranges() {
		if err := t.putLocked(r, values{forget: true}); err != nil {
			return t.fail(err)
		}
	}
	if err := t.flushLocked(); err != nil {
		return t.fail(err)
	}
	t.reached("after forgetting")
	return t.syncLocked()
}

// Learn sets the entries of r: an acknowledged put of the initial replication,
// one checksum a block, or sums nil for zeros. It is durable after Sync, and
// may become so before.
func (t *Table) Learn(r extent.Range[extent.DiskBlock], sums []Sum) error {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	if err := fits(r, sums, t.update.header.blocks); err != nil {
		return fmt.Errorf("learning from a put to %s: %w", t.path, err)
	}
	if err := t.putLocked(r, values{sums: sums, fill: ZeroBlock}); err != nil {
		return t.fail(err)
	}
	if err := t.flushLocked(); err != nil {
		return t.fail(err)
	}
	return nil
}

// Sync makes every Learn that has returned durable.
func (t *Table) Sync() error {
	t.update.Lock()
	defer t.update.Unlock()
	if err := t.broken(); err != nil {
		return err
	}
	return t.syncLocked()
}

func (t *Table) syncLocked() error {
	if err := t.f.Datasync(); err != nil {
		return t.fail(err)
	}
	return nil
}
