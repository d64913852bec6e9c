package shipper

import (
	"errors"
	"fmt"
	"slices"

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
		if st := d.state.get(); st.VirtualSize == md.VirtualSize && !st.Resized && st.MostBytes >= md.VirtualSize {
			continue
		}
		err := d.state.update(func(s *diskRecord) {
			s.VirtualSize, s.MostBytes, s.Resized = md.VirtualSize, max(s.MostBytes, md.VirtualSize), false
		})
		if err != nil {
			return err
		}
	}
	if slices.Equal(carried, v.state.get().Carried) {
		return nil
	}
	return v.state.update(func(s *vmRecord) { s.Carried = carried })
}
