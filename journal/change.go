package journal

import (
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Begin is called before a change touches the image; when it returns nil the
// change may go ahead, and End must follow. What holds then: the regions are in
// the activity log on stable storage, or the image carries the mark (I1); the
// blocks are in the change set of the phase the change belongs to (I2); no
// block it overwrites is still wanted by a capture unsaved (I3). In the steady
// state it takes no lock, does no I/O and allocates nothing. Errors are
// ErrUntracked and ErrTooLarge; End must not follow them.
func (d *Disk) Begin(c extent.Change) (extent.Pass, error) {
	if c.Kind == extent.Truncate || pastEnd(c, d.size.Load()) {
		return d.beginResize(c)
	}
	r := c.Blocks()
	span := regionsOf(r)
	if !d.regions.pinAll(span) {
		if err := d.pinSlow(span); err != nil {
			return nil, err
		}
	}
	vm := d.vm
	p := vm.enter()
	if pastEnd(c, d.size.Load()) { // a shrink came first: this change resizes after all
		vm.leave(p, phaseIn)
		d.regions.unpinAll(span)
		return d.beginResize(c)
	}
	p.set(d.index).Set(r)
	p.writers.Add(^uint64(phaseMarked - 1))
	if s := vm.sealed.Load(); s != nil && s.phase != p {
		s.protect(d, r, false, c.Kind != extent.Write && c.Len > wideChange)
	}
	return p, nil
}

// pastEnd says whether a change reaches past size; numbers that are negative or overflow do.
func pastEnd(c extent.Change, size int64) bool {
	return uint64(c.Off)+uint64(c.Len) > uint64(size) || c.Off < 0 || c.Len < 0
}

// End is called after the change, with what it returned; p is Begin's.
func (d *Disk) End(c extent.Change, p extent.Pass, _ error) {
	switch p := p.(type) {
	case *phase:
		d.vm.leave(p, phaseOut)
		d.regions.unpinAll(regionsOf(c.Blocks()))
	case *resizing:
		d.endResize(p)
	}
}

// resizing is the pass of a change that may change the file's size.
type resizing struct {
	phase  *phase
	blocks [2]blockRange // what it marked
	shrank bool
}

// beginResize is Begin for such a change. It holds d.resize until its End and
// waits for the writers of an old phase, so that the file's size is the same
// from the seal until these are done.
func (d *Disk) beginResize(c extent.Change) (extent.Pass, error) {
	if c.Off < 0 || c.Len < 0 || c.Off > MaxFileSize-c.Len {
		return nil, ErrTooLarge
	}
	d.resize.Lock()
	old := d.size.Load()
	z := &resizing{}
	z.blocks, z.shrank = resizeBlocks(c, old)
	for i, r := range z.blocks {
		if err := d.pinSlow(regionsOf(r)); err != nil {
			for _, r := range z.blocks[:i] {
				d.regions.unpinAll(regionsOf(r))
			}
			d.resize.Unlock()
			return nil, err
		}
	}
	if z.shrank { // before entering: a later write past the new end must queue behind us
		d.size.Store(c.Off)
	}
	z.phase = d.vm.enter()
	for _, r := range z.blocks {
		z.phase.set(d.index).Set(r)
	}
	z.phase.writers.Add(^uint64(phaseMarked - 1))
	if s := d.vm.sealed.Load(); s != nil && s.phase != z.phase {
		for _, r := range z.blocks {
			s.protect(d, r, true, c.Kind != extent.Write && r.Bytes() > wideChange)
		}
	}
	return z, nil
}

// resizeBlocks returns the blocks a change marks in a file of old bytes. Growing
// marks the last block of the old file and what is written; the hole between was
// nothing and reads zero, as the table has it after the next epoch. Shrinking
// marks everything cut off and the new last block.
func resizeBlocks(c extent.Change, old int64) (blocks [2]blockRange, shrinks bool) {
	tail := func(size int64) blockRange {
		from := max(0, size-extent.BlockSize)
		return extent.Cover[extent.FileBlock](from, size-from)
	}
	switch {
	case c.Kind != extent.Truncate:
		return [2]blockRange{tail(old), c.Blocks()}, false
	case c.Off < old:
		from := max(0, c.Off-extent.BlockSize)
		return [2]blockRange{extent.Cover[extent.FileBlock](from, old-from)}, true
	default:
		return [2]blockRange{tail(old)}, false
	}
}

func (d *Disk) endResize(z *resizing) {
	// A size that cannot be had stays at the smaller of the two: too small only
	// sends later writes through here.
	if size, err := d.file.Size(); err == nil {
		d.size.Store(size)
	}
	d.vm.leave(z.phase, phaseOut)
	for _, r := range z.blocks {
		d.regions.unpinAll(regionsOf(r))
	}
	d.resize.Unlock()
}

// Mark puts blocks into the current change set: a comparison found them to
// differ. Their regions are activated first, so that a crash compares them
// again. If that is impossible the blocks are marked all the same, and Compared
// refuses to move on until a Mark of the disk succeeds.
func (d *Disk) Mark(r extent.Range[extent.FileBlock]) {
	span := regionsOf(r)
	err := d.pinSlow(span)
	d.sus.note(err)
	d.vm.merge(func(p *phase) {
		d.sus.differing.Add(p.set(d.index).SetIfClear(r) * extent.BlockSize)
	})
	if err == nil {
		d.regions.unpinAll(span)
	}
}
