package shipper

import (
	"fmt"

	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// matching tells whether a table is being found out by a comparison of source and
// replica. Captured now, its disk would be sent whole.
func (v *VM) matching() bool { return len(v.unmatched()) > 0 }

// Matching lists the disks whose tables wait to be found out, once the target is
// known.
func (v *VM) Matching() []string {
	if !v.Connected() {
		return nil
	}
	return v.unmatched()
}

func (v *VM) unmatched() []string {
	var ids []string
	for _, d := range v.disksIn(StageComplete) {
		if d.state.get().Matching {
			ids = append(ids, d.src.ID())
		}
	}
	return ids
}

// MatchTable is the table of such a disk and its layout; false if it is none.
func (v *VM) MatchTable(diskID string) (*checksum.Table, Layout, bool) {
	d := v.diskByID(diskID)
	if d == nil || !v.redone.Load() || d.table() == nil || !d.state.get().Matching {
		return nil, nil, false
	}
	if err := v.readyToMatch(d); err != nil {
		v.opts.Log.Warn("the comparison with the replica waits for the image", "disk", d.src.Name(), "cause", err)
		return nil, nil, false
	}
	layout, ok := d.layout()
	return d.table(), layout, ok
}

// readyToMatch sees to it that it is known where the image has the disk.
func (v *VM) readyToMatch(d *disk) error {
	info, err := d.info()
	if err != nil {
		info, err = d.probe()
		d.setInfo(info, err)
	}
	if err != nil || !info.Format.Translated() || d.findable() {
		return err
	}
	return v.readAnew(d)
}

// findable tells whether all that the disk is read through is there.
func (d *disk) findable() bool {
	p := d.previous()
	if p == nil || len(p.marks) == 0 {
		return false
	}
	if len(p.marks) == 1 {
		return true // its own image, read as it is
	}
	for _, m := range p.marks {
		r, err := d.files.reader(m)
		if f, ok := r.(chain.File); ok {
			f.Close() // it was only looked for
		}
		if err != nil {
			d.log.Warn("an image is gone that a disk is read through; its comparison begins anew", "disk", d.src.Name(), "path", m.Name, "cause", err)
			return false
		}
	}
	return true
}

// MatchedTo is where the comparison of a disk goes on.
func (v *VM) MatchedTo(diskID string) extent.DiskBlock {
	d := v.diskByID(diskID)
	if d == nil {
		return 0
	}
	return d.state.get().MatchedTo
}

// NoteMatched says that everything before a block was compared, and is durable in
// the table.
func (v *VM) NoteMatched(diskID string, to extent.DiskBlock) error {
	d := v.diskByID(diskID)
	if d == nil {
		return errRetired
	}
	return d.state.update(func(s *diskRecord) { s.MatchedTo = to })
}

// EndMatch lets captures go on: what the table does not know differs.
func (v *VM) EndMatch(diskID string) error {
	d := v.diskByID(diskID)
	if d == nil {
		return errRetired
	}
	if err := d.state.update(func(s *diskRecord) { s.Matching, s.MatchedTo = false, 0 }); err != nil {
		return fmt.Errorf("disk %s: %w", d.src.Name(), err)
	}
	v.capture.wake()
	v.notify()
	return nil
}
