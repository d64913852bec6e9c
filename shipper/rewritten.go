package shipper

import (
	"fmt"
)

// writtenOver looks whether a complete disk's image was written over in place with
// one that has a block table, and has it read through that from the next seal on.
// While it can be read as neither, the epochs say so. Call it between two epochs.
func (v *VM) writtenOver(d *disk) error {
	info, err := d.info()
	if d.translated() || err == nil && !info.Format.Translated() {
		return nil
	}
	now, err := d.probe()
	if err != nil || !now.Format.Translated() {
		return nil
	}
	if err := v.readAnew(d); err != nil {
		return fmt.Errorf("disk %s was written over: %w", d.src.Name(), err)
	}
	d.setInfo(now, nil)
	v.setCatchUp(fmt.Sprintf("disk %s was written over with an image of another format", d.src.Name()))
	v.opts.Log.Info("the image was written over with one of another format; the next epoch compares the whole disk", "disk", d.src.Name(),
		"was", info.Format, "is", now.Format)
	return nil
}

// readAnew gives a disk the block table that its image has now, in the place of none
// or of a lost one. What was known was read through another, and is forgotten first:
// a block that went elsewhere since is different in neither table.
func (v *VM) readAnew(d *disk) error {
	t := d.table()
	if t == nil {
		return errRetired
	}
	if err := t.Forget(DiskRange{End: t.Blocks()}); err != nil {
		return err
	}
	if d.state.get().MatchedTo != 0 {
		if err := d.state.update(func(s *diskRecord) { s.MatchedTo = 0 }); err != nil {
			return err
		}
	}
	return v.beginBlocks(d)
}
