package shipper

import (
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// budget cuts a capture that does not fit to a part that does: the rest is merged
// back before anything is read, and the epoch stays open. Each cut goes on where
// the one before ended, over the disks and within each, so that a busy stretch
// cannot keep the others from ever being captured.
func (c *capture) budget(disks []*disk) error {
	var listed int64
	for _, d := range disks {
		if tr := c.translated[d]; tr != nil {
			if tr.chain != nil {
				listed += tr.data().Blocks()
			}
		} else if ed, ok := c.epoch.Disk(c.files[d]); ok {
			listed += ed.ListBlocks()
		}
	}
	c.room = max(c.vm.freeQuota()/2/extent.BlockSize, minPrefixBlocks)
	if listed <= c.room {
		return nil
	}
	c.prefix = true
	c.leaveOpen(fmt.Sprintf("%d of %d changed blocks fit into the spool's quota", c.room, listed))
	first := c.vm.cutTurn()
	for i := range disks {
		d := disks[(first+i)%len(disks)]
		if tr := c.translated[d]; tr != nil {
			if tr.chain == nil {
				continue
			}
			if err := c.cutTranslated(tr); err != nil {
				return err
			}
		} else if ed, ok := c.epoch.Disk(c.files[d]); ok {
			c.cut(d, ed)
		}
	}
	return nil
}

// cutTurn counts the cuts of the VM.
func (v *VM) cutTurn() int {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.cuts++
	return v.mu.cuts - 1
}

// cut keeps c.room blocks of a disk's list, and its metadata, without which they
// cannot be read, and returns the others.
func (c *capture) cut(d *disk, ed EpochDisk) {
	var list []FileRange
	for r := range ed.List(0) {
		list = append(list, r)
	}
	var kept extent.Set[extent.FileBlock]
	kept, d.cutFrom, c.room = keepFrom(list, d.cutFrom, c.room)
	rest := extent.Of(list...).Subtract(kept)
	info, _ := d.info()
	for _, meta := range info.Layout().Metadata() {
		rest.Remove(meta)
	}
	c.epoch.Return(c.files[d], rest.Ranges()...)
}

// keepFrom takes the first room blocks of an ordered list, beginning at block
// from and going round, and returns them, where the next cut begins, and what is
// left of the room.
func keepFrom[B extent.Block](list []extent.Range[B], from B, room int64) (kept extent.Set[B], next B, left int64) {
	next = from
	take := func(r extent.Range[B]) {
		if n := min(r.Len(), room); n > 0 {
			room -= n
			next = r.Start + B(n)
			kept.Add(extent.Range[B]{Start: r.Start, End: next})
		}
	}
	for _, r := range list {
		take(extent.Range[B]{Start: max(r.Start, from), End: r.End})
	}
	for _, r := range list {
		take(extent.Range[B]{Start: r.Start, End: min(r.End, from)})
	}
	return kept, next, room
}
