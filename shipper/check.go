package shipper

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// Finding is one thing on disk that is not as it must be, and what an operator does about it.
type Finding struct {
	File   string // or directory, or key of the journal
	What   error
	Action string
}

// Error names the file and what is wrong with it.
func (f *Finding) Error() string { return fmt.Sprintf("%s: %v", f.File, f.What) }

// Unwrap returns what is wrong.
func (f *Finding) Unwrap() error { return f.What }

// ErrContradiction: two files that are each whole do not fit together.
var ErrContradiction = errors.New("does not fit the rest of the state")

// Files are where a VM's pipeline keeps what it needs after a restart.
type Files struct {
	Name, ID string
	Docs     interface {
		Load(key string, v any) (bool, error)
	}
	Spool    string            // directory
	TableDir string            // of the checksum tables
	Tree     durable.Tree      // nil: the operating system's
	Disks    map[string]string // names by id, as the journal has them
	Reserved uint64            // no epoch above it was ever given out
}

const (
	actSpool  = "nothing by hand: when it starts, the appliance gives these epochs up and captures their blocks again; look at the state directory's disk"
	actTable  = "move the file away while the appliance is stopped: at its start it captures the disk anew; look at the state directory's disk"
	actBlocks = "nothing by hand: the next capture compares the whole disk and sends what differs; look at the state directory's disk"
	actState  = "stop the appliance, keep a copy of state_dir, empty it and start: the VMs are taken over again and compared"
)

// Check holds all that is on disk against each other, and changes nothing: the spool's manifests against their segments, which
// it reads; the epochs against the numbers that the journal gave out; the tables against themselves and, block by block,
// against the newest segments that carry them. It is for a VM whose pipeline does not run, however it ended. It returns all
// findings.
func (f Files) Check() []*Finding {
	if f.Tree == nil {
		f.Tree = durable.OS{}
	}
	c := &check{Files: f, reserved: func() uint64 { return f.Reserved }}
	c.state()
	s, err := spool.Inspect(f.Spool, f.Tree)
	if err != nil {
		return append(c.found, &Finding{f.Spool, err, actSpool})
	}
	c.spool(s)
	for id, name := range f.Disks {
		c.disk(s, id, name)
	}
	return c.found
}

// check collects what it finds.
type check struct {
	Files
	found    []*Finding
	vm       vmRecord
	reserved func() uint64
}

func (c *check) add(file, action string, err error) {
	if err != nil {
		c.found = append(c.found, &Finding{file, err, action})
	}
}

// state reads the pipeline's own record.
func (c *check) state() {
	key := "ship/" + c.ID
	if _, err := c.Docs.Load(key, &c.vm); err != nil {
		c.add("journal record "+key, actState, err)
		return
	}
	c.add("journal record "+key, actState, c.vm.contradiction())
}

// contradiction says what a record claims that cannot be.
func (r vmRecord) contradiction() error {
	switch {
	case r.ApplyEnd.Less(r.Applied):
		return fmt.Errorf("%w: applied up to %s, intended up to %s", ErrContradiction, r.Applied, r.ApplyEnd)
	case r.Recorded.Less(r.Applied):
		return fmt.Errorf("%w: applied up to %s, the newest point is %s", ErrContradiction, r.Applied, r.Recorded)
	}
	return nil
}

// spool holds the manifests against their segments and against the journal's numbers.
func (c *check) spool(s *spool.Spool) {
	c.add(c.Spool, actSpool, s.CheckDeep())
	all := s.Manifests()
	for reserved, i := c.reserved(), 0; i < len(all); i++ {
		c.add(c.Spool, actState, epochKnown(all[i].Epoch, reserved))
	}
}

func epochKnown(epoch, reserved uint64) error {
	if epoch > reserved {
		return fmt.Errorf("%w: it has epoch %d, and the journal gave out none above %d: the journal is older than the spool", ErrContradiction, epoch, reserved)
	}
	return nil
}

// disk checks the table of one disk.
func (c *check) disk(s *spool.Spool, id, name string) {
	key := "disk/" + c.ID + "/" + id
	var rec diskRecord
	found, err := c.Docs.Load(key, &rec)
	if err != nil {
		c.add("journal record "+key, actState, err)
	}
	if err != nil || !found || rec.Gone || !rec.TableReady {
		return
	}
	c.blockTables(s, id, name, rec)
	path := filepath.Join(c.TableDir, id+".table")
	t, err := checksum.OpenTableIn(c.Tree, path)
	if err != nil {
		c.add(path, actTable, fmt.Errorf("table of disk %s: %w", name, err))
		return
	}
	c.add(path, actState, epochKnown(t.Position(), c.Reserved))
	err = cmp.Or(t.Check(), tableAgrees(t, rec, id, s))
	if err = errors.Join(err, t.Close()); err != nil {
		c.add(path, actTable, fmt.Errorf("table of disk %s: %w", name, err))
	}
}

// blockTables reads the block table that the disk's record names, and those that it will name after a redo.
func (c *check) blockTables(s *spool.Spool, id, name string, rec diskRecord) {
	if rec.Blocks == 0 {
		return
	}
	numbers := []uint64{rec.Blocks}
	for _, m := range s.Manifests() {
		if md := m.Disk(id); md != nil && m.Epoch > rec.Base && md.Blocks > numbers[len(numbers)-1] {
			numbers = append(numbers, md.Blocks)
		}
	}
	for _, n := range numbers {
		path := fmt.Sprintf("%s%d", blocksPrefix(c.TableDir, id), n)
		b, err := c.Tree.ReadFile(path)
		if err == nil {
			_, err = decodePrevious(b)
		}
		if err != nil {
			c.add(path, actBlocks, fmt.Errorf("block table of disk %s: %w", name, err))
		}
	}
}

// tableAgrees looks whether every block that the spool carries has the checksum of the newest segment with it, or is unknown.
// Epochs after the table's position, of which a crash may have left any part in the table, and those of a give-up that is under
// way, count for the blocks that have their checksums.
func tableAgrees(t *checksum.Table, rec diskRecord, id string, s *spool.Spool) error {
	if rec.Stage != StageComplete {
		return nil
	}
	var newer extent.Bitmap[extent.DiskBlock]
	end, all := t.Blocks(), s.Manifests()
	from, pending := s.GiveUpFrom()
	for i := len(all) - 1; i >= 0; i-- {
		m := all[i]
		md := m.Disk(id)
		if md == nil || md.State != spool.Complete || md.Segment == nil || m.Epoch <= rec.Base {
			continue
		}
		entered := m.Epoch <= t.Position() && !(pending && m.Epoch >= from)
		if entered {
			end = min(end, diskBlocks(md.VirtualSize))
		}
		if err := segmentAgrees(t, s, m, md, &newer, end, entered); err != nil {
			return err
		}
	}
	return nil
}

func segmentAgrees(t *checksum.Table, s *spool.Spool, m *spool.Manifest, md *spool.ManifestDisk, newer *extent.Bitmap[extent.DiskBlock], end extent.DiskBlock, entered bool) error {
	f, err := s.OpenSegment(m, md.ID)
	if err != nil {
		return nil // the check of the spool says so
	}
	defer func() { _ = f.Close() }() // read only
	r, err := segment.Open(f, md.Segment.Size)
	if err != nil {
		return nil
	}
	for ch, err := range r.Changes() {
		if err != nil {
			return nil
		}
		run := ch.Range.Intersect(DiskRange{End: end})
		if run.Empty() {
			continue
		}
		err := runAgrees(t, ch, run, newer)
		if err != nil && entered {
			return fmt.Errorf("epoch %d: %w", m.Epoch, err)
		}
		if entered {
			newer.Set(run)
		}
	}
	return nil
}

// runAgrees compares the entries of a run, and adds to newer those that have the checksums of the change.
func runAgrees(t *checksum.Table, ch checksum.Change, run DiskRange, newer *extent.Bitmap[extent.DiskBlock]) (wrong error) {
	entries, err := t.Entries(run, nil)
	if err != nil {
		return err
	}
	for i, e := range entries {
		b, sum := run.Start+extent.DiskBlock(i), checksum.ZeroBlock
		if ch.Sums != nil {
			sum = ch.Sums[b-ch.Range.Start]
		}
		switch {
		case e.Known && e.Sum == sum:
			newer.Set(DiskRange{Start: b, End: b + 1})
		case e.Known && !newer.Test(b) && wrong == nil:
			wrong = fmt.Errorf("%w: block %d is %016x, its newest segment has %016x", ErrContradiction, b, uint64(e.Sum), uint64(sum))
		}
	}
	return wrong
}

// Check is Files.Check of a pipeline that runs. What moves meanwhile is looked at again.
func (v *VM) Check() []*Finding {
	c := &check{Files: Files{ID: v.opts.ID, Spool: v.deps.Spool.Dir()}, vm: v.state.get(), reserved: v.deps.Volume.LastEpoch}
	c.add("journal record ship/"+v.opts.ID, actState, c.vm.contradiction())
	c.spool(v.deps.Spool)
	if !v.redone.Load() {
		return c.found
	}
	for _, d := range v.disks() {
		if d.translated() && d.previous() == nil {
			c.add(v.blocksPath(d, d.state.get().Blocks), actBlocks, fmt.Errorf("block table of disk %s: %w", d.src.Name(), ErrBlockTable))
		}
		if err := v.checkTable(d); err != nil {
			c.add(v.tablePath(d), actTable, fmt.Errorf("table of disk %s: %w", d.src.Name(), err))
		}
	}
	return c.found
}

// checkTries is how often a table that changes while it is held against the spool is begun again.
const checkTries = 5

func (v *VM) checkTable(d *disk) error {
	var err error
	for range checkTries {
		t := d.table()
		if t == nil || t.Err() != nil || !d.state.get().TableReady {
			return nil // the status says so
		}
		at := t.Position()
		if err = cmp.Or(t.Check(), tableAgrees(t, d.state.get(), d.src.ID(), v.deps.Spool)); err == nil {
			return nil
		}
		if t.Position() == at && d.table() == t {
			return err
		}
	}
	return nil // it never stood still; the next check may
}
