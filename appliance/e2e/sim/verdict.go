package sim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"maps"
	"slices"

	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
)

// nvme is CRC-64/NVME by the standard library.
var nvme = crc64.MakeTable(0x9a6c9329ac4bc9b5)

// judge holds everything at the target against the oracle, and the local state against the disks.
func (w *world) judge(m *machine) {
	doc, records, err := catalog.Load(context.Background(), w.target, m.name)
	if err != nil {
		w.fail("points of %s: %v", m.name, err)
		return
	}
	for _, rec := range records {
		w.judgePoint(m, doc, records, rec)
	}
	w.judgeAcks(m.name, records)
	w.judgeManifests(m, doc, records)
	w.judgeNewest(m, doc, records)
	w.judgeLocal(m)
}

// judgePoint restores a point and asks the oracle for its cut.
func (w *world) judgePoint(m *machine, doc catalog.VMDoc, records []catalog.Record, rec catalog.Record) {
	w.mu.Lock()
	s, known := w.mu.seals[rec.EpochUUID]
	w.mu.Unlock()
	if !known {
		w.fail("I5: point %s/%s is of an epoch that was never sealed", m.name, rec.ID())
		return
	}
	disks, err := w.restore(doc, records, rec)
	if err == nil {
		w.struck("point")
		err = s.line.Judge(s.seal, disks, 1)
	}
	switch {
	case err != nil && doc.Doubted(rec): // the replica was damaged, and everybody is told
		w.struck("point is wrong and doubted")
	case err != nil:
		w.fail("I2, I5: point %s/%s: %v", m.name, rec.ID(), err)
	}
}

// judgeManifests: what was in the spool is in a point, unless it was given up or belongs to a generation that ended before.
func (w *world) judgeManifests(m *machine, doc catalog.VMDoc, records []catalog.Record) {
	w.mu.Lock()
	ledger := maps.Clone(w.mu.closed)
	w.mu.Unlock()
	for _, is := range ledger {
		cut := slices.IndexFunc(doc.Cuts, func(c catalog.Cut) bool { return c.Generation == is.generation && c.Epoch < is.epoch })
		if is.vm != m.name || is.lost != "" || cut >= 0 || w.policy != retention.DefaultPolicy {
			continue
		}
		w.struck("manifest judged")
		i := slices.IndexFunc(records, func(r catalog.Record) bool { return r.Generation == is.generation && r.Epoch >= is.epoch })
		if i < 0 {
			w.fail("I4: epoch %d-%d of %s was in the spool, and no point is newer", is.generation, is.epoch, m.name)
			continue
		}
		for _, id := range is.segments {
			if !slices.ContainsFunc(records[i].Segments, func(s catalog.SegmentRef) bool { return s.UUID == id }) {
				w.fail("I4: epoch %d-%d of %s was in the spool, and point %s lacks its segment %s", is.generation, is.epoch, m.name, records[i].ID(), id)
			}
		}
	}
}

// restore reads all complete disks of a point, by name, and proves each against its CRC-64. They may be read until the next call.
func (w *world) restore(doc catalog.VMDoc, records []catalog.Record, rec catalog.Record) (map[string][]byte, error) {
	disks := map[string][]byte{}
	for _, rd := range rec.Disks {
		if rd.State != catalog.StateComplete {
			continue
		}
		d, err := restore.Open(context.Background(), w.target, doc, records, rec.ID(), rd.ID, restore.Options{})
		if err != nil {
			return nil, fmt.Errorf("disk %s: %w", rd.Name, err)
		}
		got := w.space(rd.ID, int(d.Size()))
		if _, err := d.ReadAt(got, 0); err != nil {
			return nil, fmt.Errorf("disk %s: %w", rd.Name, err)
		}
		padded := got[:(len(got)+page-1)/page*page]
		clear(padded[len(got):])
		if sum := uint64(checksum.Of(padded)); fmt.Sprintf("%016x", sum) != rd.Sum {
			return nil, fmt.Errorf("disk %s: CRC-64 %016x, recorded %s; %s", rd.Name, sum, rd.Sum, w.blame(rec, rd.Name, got))
		}
		disks[rd.Name] = got
	}
	return disks, nil
}

// space is memory for the bytes of one disk, with room for a page more; the bytes are those of the last time.
func (w *world) space(disk string, n int) []byte {
	if cap(w.spaces[disk]) < n+page {
		w.spaces[disk] = make([]byte, n+n/4+page)
	}
	return w.spaces[disk][:n]
}

// blame says where a disk whose checksum is not the recorded one differs from what a guest wrote.
func (w *world) blame(rec catalog.Record, disk string, got []byte) string {
	w.mu.Lock()
	s := w.mu.seals[rec.EpochUUID]
	w.mu.Unlock()
	if err := s.line.Judge(s.seal, map[string][]byte{disk: got}, 1); err != nil {
		return "its bytes are wrong: " + err.Error()
	}
	return "its bytes are right"
}

// judgeAcks: a point that somebody was told is there, and holds what was answered before he asked.
func (w *world) judgeAcks(vm string, records []catalog.Record) {
	w.mu.Lock()
	acks, seals := slices.Clone(w.mu.acks), w.mu.seals
	w.mu.Unlock()
	for _, a := range acks {
		i := slices.IndexFunc(records, func(r catalog.Record) bool { return r.ID().String() == a.point })
		switch {
		case a.vm != vm:
		case i < 0:
			if w.policy == retention.DefaultPolicy {
				w.fail("point %s/%s was acknowledged and is gone", vm, a.point)
			}
		case seals[records[i].EpochUUID].line == a.line && seals[records[i].EpochUUID].seal.Before(a.before):
			w.fail("point %s/%s was sealed before the `sync --wait` that it answered", vm, a.point)
		}
	}
}

// judgeNewest: with all guests gone, the newest point is what the disks hold.
func (w *world) judgeNewest(m *machine, doc catalog.VMDoc, records []catalog.Record) {
	if len(records) == 0 {
		w.fail("vm %s has no point at its end", m.name)
		return
	}
	newest := records[len(records)-1]
	disks, err := w.restore(doc, records, newest)
	if err != nil {
		return // said already
	}
	if doc.Doubted(newest) {
		w.fail("the newest point %s/%s is doubted at the end", m.name, newest.ID())
	}
	for _, rd := range newest.Disks { // by the standard library, so that a mistake of ours cannot agree with itself
		got, ok := disks[rd.Name]
		sum := crc64.Update(crc64.Update(0, nvme, got), nvme, make([]byte, (page-len(got)%page)%page))
		if ok && fmt.Sprintf("%016x", sum) != rd.Sum {
			w.fail("the newest point of %s: disk %s has CRC-64 %016x, recorded %s", m.name, rd.Name, sum, rd.Sum)
		}
	}
	for _, t := range m.all() {
		got, ok := disks[t.image.name]
		if !ok {
			w.fail("the newest point of %s has no disk %s", m.name, t.image.name)
		} else if !bytes.Equal(got, t.image.content()) {
			w.fail("the newest point %s/%s is not what disk %s holds", m.name, newest.ID(), t.image.name)
		}
	}
	if len(disks) != len(m.all()) {
		w.fail("the newest point of %s has %d disks, the VM %d", m.name, len(disks), len(m.all()))
	}
}

// judgeLocal runs the product's own checks over what is at rest.
func (w *world) judgeLocal(m *machine) {
	for _, f := range m.pipe.Check() {
		w.fail("journal check of %s: %v", m.name, f)
	}
	if err := m.p.j.Check(); err != nil {
		w.fail("journal: %v", err)
	}
	if err := journal.Check(m.p.h.store); err != nil {
		w.fail("journal's store: %v", err)
	}
	for _, t := range m.all() {
		if err := cover(m, t); err != nil {
			w.fail("I4: %s/%s: %v", m.name, t.image.name, err)
		}
	}
}

// checkRemains runs the product's offline check over what a process left, whatever ended it.
func (w *world) checkRemains(h *host) {
	for _, f := range h.check() {
		w.fail("journal check after a stop: %v", f)
	}
}

// check is `journal check` of a host on which no process runs.
func (h *host) check() []*shipper.Finding {
	if err := journal.Check(h.store); err != nil {
		return []*shipper.Finding{{File: "journal", What: err}}
	}
	vms, err := journal.Inventory(h.store)
	if err != nil {
		return []*shipper.Finding{{File: "journal", What: err}}
	}
	var found []*shipper.Finding
	for _, vm := range vms {
		state := "/state/" + vm.ID
		f := shipper.Files{Name: vm.Name, ID: vm.ID, Docs: journal.Stored{Store: h.store}, Spool: state + "/spool/vm", TableDir: state + "/tables",
			Tree: h.tree, Disks: vm.Disks, Reserved: vm.Reserved}
		found = append(found, f.Check()...)
	}
	return found
}

// checkCover runs while nothing else does: between recovery and the first request of a guest.
func (w *world) checkCover(p *process) {
	for _, m := range p.machines() {
		for _, t := range m.all() {
			if t.disk.Suspected() {
				w.struck("suspect: " + t.disk.Recovery().Reason)
			}
			if err := cover(m, t); err != nil && p.life.isAlive() {
				w.fail("I1, I4, I11: after a start, %s/%s: %v", m.name, t.image.name, err)
			}
		}
	}
}

// cover: wherever source and table differ, somebody knows: the change set, an unknown entry, or suspicion.
func cover(m *machine, t *tracked) error {
	table, layout, ok := m.pipe.Table(t.disk.ID())
	if !ok {
		return nil
	}
	var suspect extent.Set[extent.FileBlock]
	for _, r := range t.disk.Suspect() {
		suspect.Add(r)
	}
	entries, err := table.Entries(extent.Range[extent.DiskBlock]{End: table.Blocks()}, nil)
	if err != nil {
		return nil // out of use: the next start opens it anew
	}
	data := t.image.content()
	places := t.image.places(layout)
	block := make([]byte, page)
	for i, e := range entries[:min(len(entries), (len(data)+page-1)/page)] { // beyond the end the size itself tells of the difference
		clear(block)
		copy(block, data[i*page:])
		if !e.Known || e.Sum == checksum.Block(block) {
			continue
		}
		files, moved := places(extent.DiskBlock(i), e.Sum)
		if !moved && !slices.ContainsFunc(files, func(r extent.Range[extent.FileBlock]) bool { return suspect.Overlaps(r) || t.disk.Changed(r) }) {
			return fmt.Errorf("%w: block %d of %d (known %v, is %v, in file blocks %v), disk of %d bytes, table at %d; suspect %v, %+v", errLost, i, table.Blocks(), e.Sum, checksum.Block(block),
				files, len(data), table.Position(), suspect.Ranges(), t.disk.Recovery())
		}
	}
	return nil
}

// places tells in which file blocks a block of the disk lies, by the block table that the entries were read through and by the
// present one; moved, if by the older it would be what its entry says, or the two have it in different blocks: then the
// comparison of the two tells of it. In raw and fixed images the numbers are the same.
func (m *Image) places(older shipper.Layout) func(b extent.DiskBlock, known checksum.Sum) (files []extent.Range[extent.FileBlock], moved bool) {
	if !translated(m.name) {
		return func(b extent.DiskBlock, _ checksum.Sum) ([]extent.Range[extent.FileBlock], bool) {
			return []extent.Range[extent.FileBlock]{{Start: extent.FileBlock(b), End: extent.FileBlock(b) + 1}}, false
		}
	}
	m.mu.Lock()
	file := bytes.NewReader(bytes.Clone(m.mu.data)) // to read the image itself would let others run
	m.mu.Unlock()
	img, err := formats.Open(file, file.Size())
	return func(b extent.DiskBlock, known checksum.Sum) ([]extent.Range[extent.FileBlock], bool) {
		r, p := extent.Range[extent.DiskBlock]{Start: b, End: b + 1}, make([]byte, page)
		was := older.FileBlocks(r)
		if err != nil || older.ReadDisk(file, r, p) == nil && checksum.Block(p) == known {
			return nil, true
		}
		is := img.Table.DataBlocks(extent.Of(r))
		return was.Union(is).Ranges(), !slices.Equal(was.Ranges(), is.Ranges())
	}
}

var errLost = errors.New("a difference that nobody knows of")
