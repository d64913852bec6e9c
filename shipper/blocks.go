package shipper

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// The *previous* block table of a translated disk is the mapping that its checksum
// table was read through. What it claims:
//
//	a block of the disk whose content is not what its known entry says either lies in
//	a file block that is in the change set or suspect, by this table or by the present
//	one, or the two tables have it at different places.
//
// So it moves with the manifest, which is what makes the entries true, and not
// before: an older one may hide that a block went elsewhere and came back. It need
// not be a table that the image ever had as a whole, only the one that was read
// through; if there is none, every block of the disk counts as changed.
//
// It is a file beside the checksum table, <disk>.blocks-<number>: see previous.encode.
// The disk's record and each manifest name the number, which is the epoch that read it;
// it is written and synced before that manifest. A crash leaves files that nobody names:
// they are removed when the record names another.

// blockTable is a previous table in memory; prev is nil if its file is lost.
type blockTable struct {
	number uint64
	prev   *previous
}

// ErrBlockTable: the file of a block table is damaged.
var ErrBlockTable = errors.New("block table is damaged")

func blocksPrefix(dir, id string) string { return filepath.Join(dir, id+".blocks-") }

func (v *VM) blocksPath(d *disk, number uint64) string {
	return fmt.Sprintf("%s%d", blocksPrefix(v.opts.TableDir, d.src.ID()), number)
}

// translated says whether the disk's epochs go through a block table.
func (d *disk) translated() bool { return d.state.get().Blocks != 0 }

// previousLocked is the table that the disk's entries were read through, nil if it
// is lost. It is read once.
func (d *disk) previousLocked() *previous {
	n := d.state.get().Blocks
	switch {
	case n == 0:
		return nil
	case d.mu.blocks.number == n:
	case d.mu.next.number == n:
		d.mu.blocks, d.mu.next = d.mu.next, blockTable{}
	default:
		t, err := d.loadBlocks(n)
		if err != nil {
			d.log.Error("block table is lost; the next epoch compares the whole disk", "disk", d.src.Name(), "code", "block-table-lost", "cause", err,
				"action", "look at the state directory's disk")
		}
		d.mu.blocks = blockTable{number: n, prev: t}
	}
	return d.mu.blocks.prev
}

func (d *disk) previous() *previous {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.previousLocked()
}

// layout is where the entries of the checksum table lie in the image; false: nobody
// knows.
func (d *disk) layout() (Layout, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.layoutLocked()
}

func (d *disk) layoutLocked() (Layout, bool) {
	if !d.translated() {
		return d.mu.info.Layout(), !d.mu.info.Format.Translated() // whose table was not read yet
	}
	p := d.previousLocked()
	switch {
	case p == nil || len(p.chain.Members) == 0:
		return image.Layout{}, false
	case len(p.chain.Members) > 1:
		return chainLayout{p.chain.Members[0].Table.Layout(), p, d.files}, true
	}
	return p.chain.Members[0].Table.Layout(), true
}

// writeBlocks makes a table durable under a number that no record names yet.
func (v *VM) writeBlocks(d *disk, number uint64, p *previous) error {
	b, err := p.encode()
	if err != nil {
		return err
	}
	if err := durable.WriteFileIn(v.opts.Tree, v.blocksPath(d, number), b); err != nil {
		return fmt.Errorf("write the block table: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.next = blockTable{number, p}
	return nil
}

// sweepBlocks removes the tables that the disk's record does not name. None may be
// named by a manifest that is not in the record yet.
func (v *VM) sweepBlocks(d *disk, keep uint64) {
	names, err := v.opts.Tree.ReadDir(v.opts.TableDir)
	prefix := filepath.Base(blocksPrefix("", d.src.ID()))
	kept := filepath.Base(v.blocksPath(d, keep))
	for _, name := range names {
		if strings.HasPrefix(name, prefix) && name != kept {
			err = errors.Join(err, v.opts.Tree.Remove(filepath.Join(v.opts.TableDir, name)))
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.opts.Log.Warn("block tables are left over", "disk", d.src.Name(), "cause", err)
	}
}

// readTries is how often an image is read that its writer may be changing.
const readTries = 5

// beginBlocks gives a disk of which nothing is known yet the table that it is read
// through from here on. What the writer moves meanwhile is different in the first
// epoch's table, or written, and goes with that.
func (v *VM) beginBlocks(d *disk) error {
	var p *previous
	var err error
	for range readTries {
		if p, err = v.lookThrough(d); err == nil || errors.Is(err, image.ErrParent) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("read the block table: %w", err)
	}
	n := v.deps.Volume.LastEpoch() + 1
	if err := v.deps.Volume.RaiseEpoch(n); err != nil {
		return err
	}
	if err := v.writeBlocks(d, n, p); err != nil {
		return err
	}
	if err := d.state.update(func(s *diskRecord) { s.Blocks = n }); err != nil {
		return err
	}
	v.sweepBlocks(d, n)
	return v.bindChain(d, p)
}

// bindChain notes durably which file a disk begins with that lies over others: if it is
// gone at the next start, the others tell of the disk.
func (v *VM) bindChain(d *disk, p *previous) error {
	if p == nil || len(p.marks) < 2 {
		return nil
	}
	return v.bind(d.src.ID(), d.src.file())
}

// blockRanges collects what a disk's layout says of ranges of its file.
func blockRanges(l Layout, file []FileRange) []DiskRange {
	var all []DiskRange
	for _, r := range file {
		all = append(all, l.DiskBlocks(r).Ranges()...)
	}
	return extent.Of(all...).Ranges()
}

// openChain opens the disk's image, of which st is known, and what it lies over, as they are now.
func (d *disk) openChain(st chain.Stat) (*chain.Chain, error) {
	return chain.Open(d.files.parents(), chain.Leaf{Name: d.src.Path(), R: d.src, Stat: identity(st)}, chain.Options{Known: d.previousMarks()})
}

// lookThrough reads the tables of a disk's image, and of what it lies over, as they are now.
func (v *VM) lookThrough(d *disk) (*previous, error) {
	p := &previous{at: v.opts.Now(), chain: closed()}
	st, err := d.src.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size, err = d.src.Size(); err != nil {
		return nil, err
	}
	c, err := d.openChain(st)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for i, mark := range c.Identity() {
		file := ""
		if i == 0 { // what is below may be written, and the change set of it be another disk's by the time this one is complete
			file = d.src.file()
		}
		p.add(mark, file, c.Members[i].Table)
	}
	return p, nil
}
