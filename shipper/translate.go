package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// translation is a translated disk in a capture: what its image and those that it lies
// over say as of the seal, and which blocks of the disk may differ from their entries.
type translation struct {
	disk   *disk
	view   EpochDisk
	chain  *chain.Chain   // nil: it could not be read, and nothing of the disk is captured
	parts  []sealedMember // by member
	number uint64         // of the block table that the epoch leaves behind
	due    extent.Set[extent.DiskBlock]
	moved  extent.Set[extent.DiskBlock] // of them, what no change set tells of
	doubt  bool                         // of a member nobody knows what was written to it: all of it counts
	shared []bool                       // by member: another disk is read through it as well

	changes extent.Set[extent.FileBlock] // of the leaf, written in the epoch
}

// translate reads the block tables of the translated disks as of the seal, all of
// whose blocks are protected until their lists are narrowed.
func (c *capture) translate(disks []*disk) error {
	c.translated = map[*disk]*translation{}
	for _, d := range disks {
		ed, ok := c.epoch.Disk(c.files[d])
		if !ok || !d.translated() {
			continue
		}
		tr := &translation{disk: d, view: ed, number: d.state.get().Blocks}
		c.translated[d] = tr
		err := tr.open(c)
		if c.epoch.Voided() {
			return errVoid
		}
		if err != nil {
			// Its writer is in the middle of something. All of it goes back, and the table
			// before stays the one to compare with, so that nothing is missed.
			c.leaveOpen(fmt.Sprintf("disk %s: %v", d.src.Name(), err))
			d.setInfo(image.Info{}, err)
			d.broken.Store(errors.Is(err, image.ErrParent))
			continue
		}
		d.broken.Store(false)
		d.setInfo(tr.chain.Members[0].Info, nil)
		d.noteChain(tr.chain)
		tr.look()
	}
	return c.share()
}

// open reads the tables. The chain stays nil after an error.
func (tr *translation) open(c *capture) error {
	d := tr.disk
	st, err := d.src.Stat()
	if err != nil {
		return err
	}
	st = identity(st)
	st.Size = tr.view.FileSize()
	s := sealedStore{d.files.parents(), d.files, c.epoch, map[string]sealedMember{}}
	ch, err := chain.Open(s, chain.Leaf{Name: d.src.Path(), R: sealedFile{tr.view}, Stat: st}, chain.Options{Known: d.previousMarks()})
	if err != nil {
		d.followChain() // what it lies over by now is protected by the next seal
		return err
	}
	leaf := ch.Members[0]
	if leaf.Table == nil {
		return errors.Join(fmt.Errorf("format %s: %w", leaf.Info.Format, ErrBadDisk), ch.Close())
	}
	ch.Members[0].Info.FileSize = st.Size
	tr.chain, tr.parts = ch, []sealedMember{{id: c.files[d], view: tr.view}}
	for _, m := range ch.Members[1:] {
		tr.parts = append(tr.parts, s.names[m.Name])
	}
	tr.shared = make([]bool, len(tr.parts))
	return nil
}

// share notes which files several disks are read through, and gives back what the
// seal took of files that no disk of this epoch is read through. A file that one disk
// is read through and another should have been is in one change set only, so then
// none of it counts.
func (c *capture) share() error {
	used := map[string]int{}
	for _, tr := range c.translated {
		for _, p := range tr.parts {
			used[p.id]++
		}
	}
	for _, tr := range c.translated {
		for i, p := range tr.parts {
			tr.shared[i] = p.id != "" && used[p.id] > 1
		}
	}
	for _, d := range c.vm.disks() {
		if tr := c.translated[d]; tr != nil && tr.chain != nil || !d.translated() {
			continue
		}
		prev := d.previous()
		if prev == nil {
			continue
		}
		for _, id := range prev.files {
			if id != "" && used[id] > 0 {
				return fmt.Errorf("disk %s cannot be read (%s), and others are read through the same images: %w", d.src.Name(), c.open, errTogether)
			}
		}
	}
	for _, id := range c.epoch.Disks() {
		if used[id] == 0 && !c.plain[id] {
			c.epoch.ReturnDisk(id)
		}
	}
	return nil
}

// errTogether ends a capture of which a part must not be left out.
var errTogether = errors.New("they are captured together")

// look finds what may differ: by the change sets, by the tables, and what has an
// unknown entry.
func (tr *translation) look() {
	t, table := tr.chain.Members[0].Table, tr.disk.table()
	tr.changes = changes(tr.view)
	tr.moved = extent.Of(t.Disk())
	if prev := tr.disk.previous(); prev != nil && len(prev.marks) > 0 {
		tr.disk.know(prev, tr.chain.Members[0], tr.parts[0].id)
		none := map[int]extent.Set[extent.FileBlock]{}
		for i, m := range tr.chain.Members {
			if tr.untold(prev, i, m) {
				none[i] = extent.Of(extent.Cover[extent.FileBlock](0, max(m.Stat.Size, m.Table.FileSize)))
				tr.doubt = true
			}
		}
		tr.moved = tr.changed(prev, none)
		told := map[int]extent.Set[extent.FileBlock]{}
		for i := range tr.chain.Members {
			if _, untold := none[i]; !untold && tr.parts[i].view != nil {
				told[i] = changes(tr.parts[i].view)
			}
		}
		tr.due = tr.changed(prev, told)
	}
	unknown := []DiskRange{}
	for r := range table.Unknown().Ranges(DiskRange{End: min(table.Blocks(), t.Disk().End)}, 0) {
		unknown = append(unknown, r)
	}
	unknown = append(unknown, DiskRange{Start: table.Blocks(), End: max(table.Blocks(), t.Disk().End)}) // no entry yet
	tr.moved = tr.moved.Union(extent.Of(unknown...))
	tr.due = tr.due.Union(tr.moved)
}

// untold tells whether a member may have been written without a change set that tells
// of it: nobody tracks it, or did not since it was looked at last.
func (tr *translation) untold(prev *previous, i int, m chain.Member) bool {
	k, had := prev.has(m.Stat)
	if !had {
		return false // all of it counts, whatever was written
	}
	if tr.parts[i].view != nil && prev.files[k] == tr.parts[i].id {
		return false
	}
	return !m.Stat.Unwritten(prev.marks[k].Stat, prev.at)
}

// changed is what may differ if these blocks of the members were written.
func (tr *translation) changed(prev *previous, written map[int]extent.Set[extent.FileBlock]) extent.Set[extent.DiskBlock] {
	if len(tr.chain.Members) == 1 && len(prev.marks) == 1 && tr.chain.Members[0].Stat.SameFile(prev.marks[0].Stat) {
		t := tr.chain.Members[0].Table
		return t.Changed(prev.chain.Members[0].Table, extent.Set[extent.FileBlock]{}).Union(t.DiskBlocks(written[0]))
	}
	return tr.chain.Changed(prev.chain, func(m chain.Member) extent.Set[extent.FileBlock] {
		for i, have := range tr.chain.Members {
			if have.Name == m.Name {
				return written[i]
			}
		}
		return extent.Set[extent.FileBlock]{}
	})
}

// changes are the blocks of a file that its change set has.
func changes(ed EpochDisk) extent.Set[extent.FileBlock] {
	var all []FileRange
	for r := range ed.List(0) {
		all = append(all, r)
	}
	return extent.Of(all...)
}

// fileBlocks are the blocks of each member that blocks of the disk are read from.
func (tr *translation) fileBlocks(set extent.Set[extent.DiskBlock]) []extent.Set[extent.FileBlock] {
	all := make([][]FileRange, len(tr.parts))
	for _, r := range set.Ranges() {
		for e := range tr.chain.Extents(image.DiskOffset(r.Offset()), r.Bytes()) {
			if e.From == image.FromFile {
				all[e.Member] = append(all[e.Member], extent.Cover[extent.FileBlock](int64(e.File), e.Len))
			}
		}
	}
	sets := make([]extent.Set[extent.FileBlock], len(all))
	for i, ranges := range all {
		sets[i] = extent.Of(ranges...)
	}
	return sets
}

// data are the blocks of the list that are read from a file; the others are zeros.
func (tr *translation) data() extent.Set[extent.DiskBlock] {
	var all []DiskRange
	for _, r := range tr.due.Ranges() {
		for e := range tr.chain.Extents(image.DiskOffset(r.Offset()), r.Bytes()) {
			if e.From == image.FromFile {
				all = append(all, extent.Cover[extent.DiskBlock](int64(e.Disk), e.Len))
			}
		}
	}
	return extent.Of(all...)
}

// cutTranslated keeps c.room of the disk's blocks. Of the others, what the change set
// of the leaf tells of goes back there, and what only the tables tell of becomes
// unknown, as does what lies below the leaf: it is in no change set, and the table
// that tells of it is about to go.
//
// What the disk grew by has no entry that could become unknown: with this epoch its
// blocks become known zeros. So of them only those are left out that the change set
// goes on telling of.
func (c *capture) cutTranslated(tr *translation) error {
	t, table := tr.chain.Members[0].Table, tr.disk.table()
	data := tr.data()
	grown := data.Intersect(extent.Of(DiskRange{Start: table.Blocks(), End: max(table.Blocks(), t.Disk().End)}))
	stay := grown.Subtract(t.DiskBlocks(tr.changes))
	kept, next, left := keepFrom(data.Subtract(stay).Ranges(), tr.disk.cutFromDisk, max(0, c.room-stay.Blocks()))
	tr.disk.cutFromDisk, c.room = next, left
	rest, back, shared := tr.leaveOut(data.Subtract(stay).Subtract(kept), grown)
	tr.due = tr.due.Subtract(rest)
	unknown := tr.moved.Union(t.DiskBlocks(shared))
	for i, blocks := range tr.fileBlocks(rest) {
		if i > 0 {
			unknown = unknown.Union(tr.chain.Members[i].Table.DiskBlocks(blocks))
		}
	}
	if unknown = unknown.Intersect(rest).Subtract(grown); !unknown.Empty() {
		if err := table.Forget(unknown.Ranges()...); err != nil {
			return fmt.Errorf("disk %s: what does not fit becomes unknown: %w", tr.disk.src.Name(), err)
		}
	}
	tr.disk.owe(t.DataBlocks(rest.Intersect(grown)))
	c.epoch.Return(c.files[tr.disk], back.Ranges()...)
	return nil
}

// leaveOut is what of rest may be left out, the blocks of the file that go back with
// it, and those that would and cannot: they hold some of what is read.
func (tr *translation) leaveOut(rest, grown extent.Set[extent.DiskBlock]) (out extent.Set[extent.DiskBlock], back, shared extent.Set[extent.FileBlock]) {
	t := tr.chain.Members[0].Table
	for {
		all := t.DataBlocks(rest)
		shared = all.Intersect(t.DataBlocks(tr.due.Subtract(rest)))
		back = all.Subtract(shared)
		untold := rest.Intersect(grown).Subtract(t.DiskBlocks(tr.changes.Intersect(back)))
		if untold.Empty() {
			return rest, back, shared
		}
		rest = rest.Subtract(untold)
	}
}

// narrow fixes the capture lists: what is read from here on, and nothing else.
func (c *capture) narrow() {
	lists, views := map[string]extent.Set[extent.FileBlock]{}, map[string]EpochDisk{}
	for _, tr := range c.translated {
		if tr.chain == nil {
			continue
		}
		for i, blocks := range tr.fileBlocks(tr.due) {
			if p := tr.parts[i]; p.view != nil {
				lists[p.id], views[p.id] = lists[p.id].Union(blocks), p.view
			}
		}
	}
	for id, view := range views {
		view.Narrow(lists[id])
	}
}

// segmentTranslated captures one complete translated disk.
func (c *capture) segmentTranslated(ctx context.Context, tr *translation, md *spool.ManifestDisk) error {
	d, st := tr.disk, tr.disk.state.get()
	dc := &diskCapture{capture: c, disk: d, table: d.table(), view: tr.view, page: make([]byte, captureRun*extent.BlockSize)}
	if tr.chain == nil {
		md.VirtualSize, md.Blocks = st.VirtualSize, tr.number
		return dc.close(md)
	}
	dc.info = tr.chain.Members[0].Info
	if err := c.keepTable(tr); err != nil {
		return err
	}
	md.Format, md.VirtualSize, md.Blocks = dc.info.Format, dc.info.VirtualSize, tr.number
	if st.Resized || st.VirtualSize != dc.info.VirtualSize {
		if err := dc.begin(); err != nil {
			return err
		}
	}
	for _, r := range tr.due.Ranges() {
		for run := range r.Split(captureRun) {
			if err := dc.translatedRun(ctx, tr, run); err != nil {
				return err
			}
		}
	}
	return dc.close(md)
}

// keepTable writes the block tables as of the seal, unless they are those before.
func (c *capture) keepTable(tr *translation) error {
	p := &previous{at: c.epoch.Time(), chain: closed()}
	marks := tr.chain.Identity()
	for i, m := range tr.chain.Members {
		p.add(marks[i], tr.parts[i].id, m.Table)
	}
	if !tr.doubt && p.same(tr.disk.previous()) {
		return nil
	}
	tr.number = c.epoch.Number()
	return c.vm.writeBlocks(tr.disk, tr.number, p)
}

// translatedRun reads one run of the disk and writes what the table does not know.
func (dc *diskCapture) translatedRun(ctx context.Context, tr *translation, run DiskRange) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if dc.epoch.Voided() {
		return errVoid
	}
	dc.vm.sealing.beat(time.Now())
	page := dc.page[:run.Bytes()]
	n, err := tr.chain.ReadAt(page, run.Offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	clear(page[n:])
	tr.done(run)
	return dc.compare(page, run)
}

// done lets writers overwrite what was read. A block of the file at either end of a
// piece may hold some of the next run.
func (tr *translation) done(run DiskRange) {
	for e := range tr.chain.Extents(image.DiskOffset(run.Offset()), run.Bytes()) {
		if e.From != image.FromFile || tr.shared[e.Member] || tr.parts[e.Member].view == nil {
			continue
		}
		if f := extent.Cover[extent.FileBlock](int64(e.File), e.Len); f.Len() > 2 {
			tr.parts[e.Member].view.Done(FileRange{Start: f.Start + 1, End: f.End - 1})
		}
	}
}

// sealedFile is an image file as it was at the seal.
type sealedFile struct{ view EpochDisk }

// ReadAt implements io.ReaderAt.
func (f sealedFile) ReadAt(p []byte, off int64) (int, error) {
	n := int(min(int64(len(p)), max(0, f.view.FileSize()-off)))
	if n > 0 {
		if err := f.read(p[:n], off); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f sealedFile) read(p []byte, off int64) error {
	blocks := extent.Cover[extent.FileBlock](off, int64(len(p)))
	if blocks.Bytes() == int64(len(p)) {
		return f.view.PeekBlocks(blocks, p)
	}
	buf := make([]byte, blocks.Bytes())
	if err := f.view.PeekBlocks(blocks, buf); err != nil {
		return err
	}
	copy(p, buf[off-blocks.Offset():])
	return nil
}

// learnTranslated enters zero for every block that no file block with data holds.
func learnTranslated(t *checksum.Table, d *disk, layout Layout) error {
	var data []DiskRange
	if l, ok := layout.(chainLayout); ok {
		for e := range l.prev.chain.Extents(0, l.prev.virtualSize()) {
			if e.From == image.FromFile {
				data = append(data, extent.Cover[extent.DiskBlock](int64(e.Disk), e.Len))
			}
		}
		return learnRest(t, data)
	}
	for off := int64(0); ; {
		start, end, err := d.src.NextData(off)
		if errors.Is(err, io.EOF) {
			return learnRest(t, data)
		}
		if err != nil {
			return err
		}
		data = append(data, layout.DiskBlocks(extent.Cover[extent.FileBlock](start, end-start)).Ranges()...)
		off = end
	}
}

func learnRest(t *checksum.Table, data []DiskRange) error {
	for _, hole := range extent.Of(DiskRange{End: t.Blocks()}).Subtract(extent.Of(data...)).Ranges() {
		if err := t.Learn(hole, nil); err != nil {
			return err
		}
	}
	return nil
}

// suspectBelow tells whether an image that the disk lies over had a suspect region.
func (tr *translation) suspectBelow() bool {
	for _, p := range tr.parts {
		if p.view != nil && p.view.SuspectAtSeal() {
			return true
		}
	}
	return false
}

// settledBefore is how long before the seal an image that nobody tracks must have been
// written last: its time stamps have the grain of a kernel's tick, and what is younger may
// have been written after the seal and read all the same.
const settledBefore = 2 * time.Second

// unsettled names an image below the disk that nobody tracks and that may have been
// written since the seal, "" if there is none. It is asked after the last read.
func (tr *translation) unsettled(sealed time.Time) string {
	for i, p := range tr.parts {
		if p.view != nil {
			continue
		}
		st, err := p.File.Stat()
		was := tr.chain.Members[i].Stat
		if err != nil || st.Size != was.Size || sealed.Sub(st.Changed) < settledBefore || sealed.Sub(st.Modified) < settledBefore {
			return tr.chain.Members[i].Name
		}
	}
	return ""
}

func (c *capture) closeChains() {
	for _, tr := range c.translated {
		if tr.chain != nil {
			tr.chain.Close() // they were only read
		}
	}
}
