package shipper

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Probe reads the format and the size of an image as it is now.
type Probe func() (image.Info, error)

// disk is one disk in the pipeline. Its table is used by the stages only in the
// order the protocols give; the table has its own lock.
type disk struct {
	src     *head
	files   *files // of its VM
	state   *document[diskRecord]
	cutFrom extent.FileBlock // where the next cut of its change set begins; the capture stage's
	// cutFromDisk is the same of a translated disk.
	cutFromDisk extent.DiskBlock

	log        *slog.Logger
	loadBlocks func(number uint64) (*previous, error)
	broken     atomic.Bool // its chain had a missing link at the last seal

	// round is held from the first to the last request of a round that changes the
	// replica, and while a comparison decides what to look at. Held over network I/O.
	round gate

	mu struct {
		sync.Mutex // held over the table's local I/O when it is replaced or forgets
		info       image.Info
		infoErr    error
		table      *checksum.Table
		blocks     blockTable                   // as the record names it
		next       blockTable                   // written, and perhaps to be named
		line       []chain.Stat                 // what its image lay over when that was last looked for, itself first
		looked     chain.Stat                   // of the image then
		chainErr   error                        // why it was not found then
		forgotten  []DiskRange                  // while there is no table: unknown as soon as there is one
		owed       extent.Set[extent.FileBlock] // see owe
	}
}

// probe reads the format and the size of the disk's image as it is now.
func (d *disk) probe() (image.Info, error) { return d.src.get().probe() }

func (d *disk) table() *checksum.Table {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.table
}

// publishTable makes t the disk's table, without what was forgotten while there was none.
func (d *disk) publishTable(t *checksum.Table) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.mu.forgotten) > 0 {
		if err := t.Forget(clipped(d.mu.forgotten, t.Blocks())...); err != nil {
			return errors.Join(err, t.Close())
		}
	}
	d.mu.forgotten, d.mu.table = nil, t
	return nil
}

func (d *disk) closeTable() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.mu.table
	if t == nil {
		return nil
	}
	d.mu.table = nil
	return t.Close()
}

// forget makes the entries of blocks durably unknown: their activity records are
// about to go. It refuses blocks that the image grew by since the last capture:
// the table learns of them as zeros when it grows, which would undo it. The same
// goes for what a capture left out of a translated disk's growth.
func (d *disk) forget(id string, file []FileRange) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	ranges, err := d.heldLocked(id, file)
	if err != nil {
		return err
	}
	if owed := extent.Of(file...).Intersect(d.mu.owed); id == d.src.file() && !owed.Empty() {
		return fmt.Errorf("disk %s: block %d has no entry yet: the disk grew by it", d.src.Name(), owed.Ranges()[0].Start)
	}
	if d.mu.table == nil {
		d.mu.forgotten = append(d.mu.forgotten, ranges...)
		return nil
	}
	return d.mu.table.Forget(clipped(ranges, d.mu.table.Blocks())...)
}

// owe notes blocks of the file that only the change set tells of until the epoch
// under way has given their blocks of the disk an entry.
func (d *disk) owe(file extent.Set[extent.FileBlock]) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.owed = file
}

// heldLocked are the blocks of the disk that blocks of one of its files held.
func (d *disk) heldLocked(id string, file []FileRange) ([]DiskRange, error) {
	if d.translated() {
		p := d.previousLocked()
		if p == nil {
			return nil, fmt.Errorf("disk %s: no block table says what these blocks hold", d.src.Name())
		}
		var all extent.Set[extent.DiskBlock]
		for i, m := range p.chain.Members {
			// In an image that was none of them, all is in a new place. One without an id counts as written, by its time stamps.
			if p.files[i] == id || len(p.marks) == 1 && p.files[i] == "" {
				all = all.Union(m.Table.DiskBlocks(extent.Of(file...)))
			}
		}
		return all.Ranges(), nil
	}
	layout, ok := d.layoutLocked()
	if !ok {
		return nil, fmt.Errorf("disk %s: no block table says what these blocks hold", d.src.Name())
	}
	end := extent.Cover[extent.FileBlock](0, d.mu.info.FileSize).End
	for _, r := range file {
		if r.End > end {
			return nil, fmt.Errorf("disk %s: block %d has no entry yet: the image grew to it", d.src.Name(), r.End-1)
		}
	}
	return blockRanges(layout, file), nil
}

// clipped cuts ranges to a table; blocks beyond it have no entry to be wrong.
func clipped(ranges []DiskRange, end extent.DiskBlock) []DiskRange {
	var within []DiskRange
	for _, r := range ranges {
		if r.End = min(r.End, end); !r.Empty() && r.Len() > 0 {
			within = append(within, r)
		}
	}
	return within
}

// forgetCutOff makes the entries beyond the end of the image unknown: a crash took
// back a growth, or the change set of a shrink. No comparison need come there, and
// if the guest grows the image again before the next epoch, the hole that this
// leaves is in no change set, while the target holds what was cut off (I4).
func (d *disk) forgetCutOff() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	t := d.mu.table
	if t == nil || d.translated() || d.state.get().Stage != StageComplete {
		return nil
	}
	end := diskBlocks(d.mu.info.VirtualSize)
	if d.mu.infoErr != nil || d.mu.info.Format == "" {
		// Nobody can say how large the disk is, but a block beyond the end of its file it does not have.
		size, err := d.src.Size()
		if err != nil {
			return fmt.Errorf("disk %s: where its image ends: %w", d.src.Name(), err)
		}
		end = diskBlocks(size)
	}
	if t.Blocks() <= end {
		return nil
	}
	if err := t.Forget(DiskRange{Start: end, End: t.Blocks()}); err != nil {
		return fmt.Errorf("disk %s: forget what is beyond its end: %w", d.src.Name(), err)
	}
	return nil
}

func (d *disk) info() (image.Info, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.info, d.mu.infoErr
}

func (d *disk) setInfo(info image.Info, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.mu.info = info
	}
	d.mu.infoErr = err
}

// Forget makes the entries of blocks of a file durably unknown.
func (v *VM) Forget(fileID string, ranges []FileRange) error {
	if _, known := v.files.get(fileID); !known {
		return fmt.Errorf("image %s is not in the pipeline", fileID)
	}
	if !v.redone.Load() {
		return fmt.Errorf("image %s: a redo would bring back what is forgotten now", fileID)
	}
	for _, d := range v.disks() {
		if d.src.file() != fileID && !d.translated() {
			continue
		}
		if err := d.forget(fileID, ranges); err != nil {
			return err
		}
	}
	return nil
}

// Table is the checksum table of a disk and its layout, for a comparison; false
// while it has none, or one that a redo is still to change, or that is found out by
// a comparison with the replica: until then nothing is known that could differ.
func (v *VM) Table(fileID string) (*checksum.Table, Layout, bool) {
	d := v.diskOf(fileID)
	if d == nil || !v.redone.Load() || d.table() == nil || !d.state.get().TableReady || d.state.get().Matching {
		return nil, nil, false
	}
	info, err := d.info()
	if !d.translated() && (err != nil || info.Format == "") {
		return nil, nil, false // what lies where in it is not known: compared when it can be read again
	}
	layout, ok := d.layout()
	return d.table(), layout, ok
}
