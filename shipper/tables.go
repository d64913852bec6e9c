package shipper

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// commitTables enters the epoch's checksums into the tables; a redo is harmless.
func (v *VM) commitTables(m *spool.Manifest) error {
	for _, md := range m.Disks {
		if md.State != spool.Complete || md.Segment == nil {
			continue
		}
		if err := v.commitTable(m, md); err != nil {
			return fmt.Errorf("disk %s: checksum table, epoch %d: %w", md.Name, m.Epoch, err)
		}
	}
	return nil
}

func (v *VM) commitTable(m *spool.Manifest, md spool.ManifestDisk) error {
	d := v.diskByID(md.ID)
	if d == nil {
		return v.markGone(md.ID) // its table misses this epoch
	}
	st, table := d.state.get(), d.table()
	if st.Stage != StageComplete || m.Epoch <= st.Base {
		return nil // of an earlier life of the disk
	}
	if table == nil {
		return errors.New("no table is open")
	}
	if m.Epoch <= table.Position() {
		return nil
	}
	return v.commitSegment(table, m, md)
}

// commitSegment enters the checksums of one segment into a table.
func (v *VM) commitSegment(table *checksum.Table, m *spool.Manifest, md spool.ManifestDisk) error {
	f, err := v.deps.Spool.OpenSegment(m, md.ID)
	if err != nil {
		return err
	}
	defer f.Close()
	r, err := segment.Open(f, md.Segment.Size)
	if err != nil {
		return err
	}
	return table.Commit(m.Epoch, diskBlocks(md.VirtualSize), r.Changes())
}

// mendTables opens every table anew that an error of its disk took out of use, so
// that an error that passes needs no restart.
func (v *VM) mendTables() error {
	for _, d := range v.disks() {
		if err := v.mendTable(d); err != nil {
			return fmt.Errorf("disk %s: checksum table opened anew: %w", d.src.Name(), err)
		}
	}
	return nil
}

// mendTable holds the disk's lock throughout: nothing may be forgotten in a table
// that a redo is still to change. Until the new table is ready the old one refuses
// everything.
func (v *VM) mendTable(d *disk) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.mu.table
	if old == nil || old.Err() == nil {
		return nil
	}
	t, err := checksum.OpenTableIn(v.opts.Tree, v.tablePath(d))
	if err != nil {
		return err
	}
	if err := v.redoTable(d, t); err != nil {
		return errors.Join(err, t.Close())
	}
	d.mu.table = t
	v.opts.Log.Info("checksum table is in use again", "disk", d.src.Name(), "cause", old.Err())
	return old.Close()
}

// redoTable brings a table that was opened anew up to the spool, as a start does.
func (v *VM) redoTable(d *disk, t *checksum.Table) error {
	st := d.state.get()
	for _, m := range v.deps.Spool.Manifests() {
		if from, pending := v.deps.Spool.GiveUpFrom(); pending && m.Epoch >= from {
			break
		}
		md := m.Disk(d.src.ID())
		if md == nil || md.State != spool.Complete || md.Segment == nil || st.Stage != StageComplete || m.Epoch <= max(st.Base, t.Position()) {
			continue
		}
		if err := v.commitSegment(t, m, *md); err != nil {
			return err
		}
	}
	return nil
}

func (v *VM) keepFactsOf(d *disk, md spool.ManifestDisk) error {
	st := d.state.get()
	moved := st.Stage == StageComplete && md.Blocks > st.Blocks // a redo comes by older epochs first
	if st.VirtualSize == md.VirtualSize && !st.Resized && st.MostBytes >= md.VirtualSize && !moved {
		return nil
	}
	err := d.state.update(func(s *diskRecord) {
		s.VirtualSize, s.MostBytes = md.VirtualSize, max(s.MostBytes, md.VirtualSize)
		s.Resized = s.Resized && md.Segment == nil // one that carries the size has a segment
		if moved {
			s.Blocks = md.Blocks
		}
	})
	if err == nil && moved && v.redone.Load() { // before, a later manifest may name another
		v.sweepBlocks(d, md.Blocks)
	}
	if err == nil && moved && !d.src.lost() {
		err = v.bindChain(d, d.previous())
	}
	return err
}

// keepFacts makes the sizes of an epoch the disks' own, and notes whom it carries.
func (v *VM) keepFacts(m *spool.Manifest) error {
	var carried []string
	for _, md := range m.Disks {
		if md.State != spool.Complete {
			continue
		}
		carried = append(carried, md.ID)
		d := v.diskByID(md.ID)
		if d == nil || m.Epoch <= d.state.get().Base {
			continue
		}
		if err := v.keepFactsOf(d, md); err != nil {
			return err
		}
	}
	if slices.Equal(carried, v.state.get().Carried) {
		return nil
	}
	return v.state.update(func(s *vmRecord) { s.Carried = carried })
}
