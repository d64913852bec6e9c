package shipper

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
)

// Which images are disks. An image that another one of the VM lies over is no disk of its
// own: what the VM writes to is above it. So
//
//   - a new image over the one that a disk begins with is a snapshot: the disk goes on in
//     the new one, with its replica and all that is known of it;
//   - when the image that a disk begins with is gone, the disk goes on in what has its name
//     or lay right below it, unless others lie over that: it was merged. Else it is gone.
//
// It is decided before every seal and before initial replication begins, from the images
// as they are then.

// leaves is the durable record of which file a disk begins with, for those that lie over
// others or began with another file.
type leaves struct {
	Disk map[string]string `json:"disk"` // by file id
}

func (v *VM) openLeaves() (err error) {
	v.leaves, _, err = openDocument[leaves](v.deps.Docs, "leaves/"+v.opts.ID)
	return err
}

// diskFor is the id of the disk that begins with a file. A file that another disk began
// with once is a new one.
func (v *VM) diskFor(file string) string {
	known := v.leaves.get().Disk
	if id, ok := known[file]; ok {
		return id
	}
	for _, id := range known {
		if id == file {
			return file + "+"
		}
	}
	return file
}

// bind notes durably which file a disk begins with.
func (v *VM) bind(disk, file string) error {
	if v.leaves.get().Disk[file] == disk {
		return nil
	}
	return v.leaves.update(func(l *leaves) {
		now := maps.Clone(l.Disk)
		if now == nil {
			now = map[string]string{}
		}
		maps.DeleteFunc(now, func(_, have string) bool { return have == disk })
		now[file] = disk
		l.Disk = now
	})
}

// unbind forgets a disk that is gone.
func (v *VM) unbind(disk string) error {
	known := v.leaves.get().Disk
	if !slices.Contains(slices.Collect(maps.Values(known)), disk) {
		return nil
	}
	return v.leaves.update(func(l *leaves) {
		l.Disk = maps.Clone(l.Disk)
		maps.DeleteFunc(l.Disk, func(_, have string) bool { return have == disk })
	})
}

// placeNow is place between two captures.
func (v *VM) placeNow() error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	return v.place()
}

// place decides which images are disks. The caller holds captureGate. Where it cannot be
// told what a new image lies over, because somebody is writing to one of them, v.unclear
// says so: the guest may be using it.
func (v *VM) place() error {
	v.unclear = ""
	for _, d := range v.disks() {
		if d.state.get().Key == "" && !d.src.lost() && v.stillHere(d) {
			if err := v.placeNew(d); err != nil {
				return err
			}
		}
	}
	for _, d := range v.disks() {
		if d.src.lost() {
			if err := v.placeLost(d); err != nil {
				return err
			}
		}
	}
	return nil
}

// placeNew says whether an image that is no disk yet is to be one.
func (v *VM) placeNew(n *disk) error {
	mine := n.src.get().stat
	for _, d := range v.disks() {
		if d != n && !d.src.lost() && d.liesOver(mine) {
			v.setAside(n, d)
			return nil
		}
	}
	line := n.lineage()
	if err := n.brokenChain(); err != nil && !errors.Is(err, image.ErrParent) {
		v.unclear = fmt.Sprintf("what image %s lies over cannot be read: %v", n.src.Path(), err)
	}
	for _, below := range line[min(1, len(line)):] {
		for _, d := range v.disks() {
			if d != n && !d.src.lost() && d.state.get().Key != "" && d.src.get().stat.SameFile(below) {
				return v.goOn(d, n.src.get(), "a new image lies over it")
			}
		}
	}
	return nil
}

// liesOver tells whether the disk is read through a file below its own.
func (d *disk) liesOver(st chain.Stat) bool {
	if st.Inode == 0 || d.src.get().stat.SameFile(st) {
		return false
	}
	if k, had := d.previous().has(st); had && k > 0 {
		return true
	}
	return slices.ContainsFunc(d.lineage(), st.SameFile)
}

// lineage is which files the disk's image lies over, itself first; of an image that is not
// whole, only itself. They are looked for again when the image was written, until the
// disk is one.
func (d *disk) lineage() []chain.Stat {
	st, err := d.src.Stat()
	if err != nil {
		return nil
	}
	d.mu.Lock()
	line, looked, whole := d.mu.line, d.mu.looked, d.mu.chainErr == nil
	d.mu.Unlock()
	if looked == st && whole || line != nil && d.state.get().Key != "" {
		return line
	}
	return d.followChain()
}

// followChain looks for what the disk's image lies over.
func (d *disk) followChain() []chain.Stat {
	st, err := d.src.Stat()
	if err != nil {
		return nil
	}
	line := []chain.Stat{identity(st)}
	below, err := d.parents(st)
	line = append(line, below...)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.line, d.mu.looked, d.mu.chainErr = line, st, err
	return line
}

// brokenChain is why it is not known what a differencing image lies over; nil if it is
// known, or the image lies over nothing.
func (d *disk) brokenChain() error {
	d.lineage()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.chainErr
}

// noteChain takes what the disk lies over from a chain that was opened.
func (d *disk) noteChain(c *chain.Chain) {
	line := make([]chain.Stat, len(c.Members))
	for i, m := range c.Members {
		line[i] = m.Stat
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.line = line
}

func (d *disk) parents(st chain.Stat) (below []chain.Stat, err error) {
	if st.Size, err = d.src.Size(); err != nil {
		return nil, nil // it is gone
	}
	switch info, _ := image.Probe(d.src.Path(), d.src, st.Size); info.Format { // refused or not, it says what it is
	case image.VHDDifferencing, image.VHDXDifferencing, image.VHDX:
	default:
		return nil, nil
	}
	c, err := d.openChain(st)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for _, m := range c.Members[1:] {
		below = append(below, m.Stat)
	}
	return below, nil
}

// below are the tracked files that the disk may be read through besides its own.
func (d *disk) below() (ids []string) {
	d.mu.Lock()
	line := d.mu.line
	d.mu.Unlock()
	prev, own := d.previous(), d.src.file()
	for _, a := range d.files.all() {
		id := a.src.ID()
		_, had := prev.has(a.stat)
		if id != own && (had || slices.ContainsFunc(line, a.stat.SameFile)) {
			ids = append(ids, id)
		}
	}
	return ids
}

// setAside takes an image out that is none of the VM's disks: others lie over it.
func (v *VM) setAside(n, over *disk) {
	v.forgetNew(n)
	v.opts.Log.Info("an image is no disk of its own: a disk lies over it", "path", n.src.Path(), "disk", over.src.Name())
}

// forgetNew takes a disk out that the target does not know.
func (v *VM) forgetNew(n *disk) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.takeOutLocked(n)
}

// goOn has a disk begin with another file.
func (v *VM) goOn(d *disk, a attached, why string) error {
	was := d.src.Path()
	if st := d.state.get(); st.Stage == StageComplete && st.Blocks == 0 {
		if err := v.beginChain(d); err != nil {
			return fmt.Errorf("disk %s goes on in %s: %w", d.src.Name(), a.src.Path(), err)
		}
	}
	if err := v.bind(d.src.ID(), a.src.ID()); err != nil {
		return fmt.Errorf("disk %s goes on in %s: %w", d.src.Name(), a.src.Path(), err)
	}
	for _, n := range v.disks() {
		if n != d && n.src.file() == a.src.ID() {
			v.forgetNew(n)
		}
	}
	d.src.set(a)
	d.setInfo(a.probe())
	d.followChain()
	v.opts.Log.Info("a disk goes on in another image; nothing is sent again", "disk", d.src.Name(), "path", a.src.Path(), "was", was, "why", why)
	v.notify()
	return nil
}

// beginChain gives a disk that needed no block table one that knows nothing: its next
// epoch reads all of it once, and sends what differs.
func (v *VM) beginChain(d *disk) error {
	n := v.deps.Volume.LastEpoch() + 1
	if err := v.deps.Volume.RaiseEpoch(n); err != nil {
		return err
	}
	if err := v.writeBlocks(d, n, &previous{at: v.opts.Now(), chain: closed()}); err != nil {
		return err
	}
	return d.state.update(func(s *diskRecord) { s.Blocks = n })
}

// placeLost finds the image that a disk goes on in whose own is gone.
func (v *VM) placeLost(d *disk) error {
	prev := d.previous()
	best, rank := attached{}, 0
	for _, a := range v.files.all() {
		if r := v.successor(d, prev, a); r > 0 && (rank == 0 || r < rank) {
			best, rank = a, r
		}
	}
	if rank == 0 {
		return v.drop(d)
	}
	return v.goOn(d, best, "its image is gone, and this is what it was merged into, or lies over what is left")
}

// successor ranks an image that a lost disk may go on in; 0: it cannot.
func (v *VM) successor(d *disk, prev *previous, a attached) int {
	for _, o := range v.disks() {
		switch {
		case o == d || o.src.lost():
		case o.src.file() == a.src.ID() && o.state.get().Key != "", o.liesOver(a.stat):
			return 0
		}
	}
	rank, related := 0, false
	if k, had := prev.has(a.stat); had {
		rank, related = k+2, true
	} else if n := v.diskWith(a.src.ID()); n != nil {
		rank = len(v.files.all()) + 64
		related = slices.ContainsFunc(n.lineage(), func(st chain.Stat) bool { _, had := prev.has(st); return had })
	}
	switch {
	case !related:
		return 0
	case a.src.Name() == d.src.Name():
		return 1
	}
	return rank
}

// diskWith is the disk that begins with a file.
func (v *VM) diskWith(file string) *disk {
	for _, d := range v.disks() {
		if d.src.file() == file {
			return d
		}
	}
	return nil
}

// diskOf is the disk of an id, or that begins with the file of one.
func (v *VM) diskOf(id string) *disk { return cmp.Or(v.diskWith(id), v.diskByID(id)) }

// DiskOf is the id of the disk that begins with a file; false if none does.
func (v *VM) DiskOf(file string) (string, bool) {
	d := v.diskWith(file)
	if d == nil {
		return "", false
	}
	return d.src.ID(), true
}

// Unread tells whether what is suspect of a file need not be compared: it lies in a chain,
// and is to go to the change set as it is. The next capture compares it with the table,
// and what equals that is not sent.
func (v *VM) Unread(file string) bool {
	a, ok := v.files.get(file)
	if !ok || !v.redone.Load() {
		return false
	}
	for _, d := range v.disks() {
		if d.liesOver(a.stat) {
			return true
		}
		if d.src.file() == file {
			return d.state.get().TableReady && d.translated() && len(d.previousMarks()) != 1
		}
	}
	return true // set aside
}

func (d *disk) previousMarks() chain.Identity {
	if p := d.previous(); p != nil {
		return p.marks
	}
	return nil
}
