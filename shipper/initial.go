package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// strideBlocks is what initial replication reads and puts at once, in blocks: 4 MiB.
const strideBlocks = target.MaxPut / extent.BlockSize

// tableSyncEvery bounds what a crash makes initial replication send again.
const tableSyncEvery = 256 << 20

// initialStep brings disks to completeness, one by one.
func (v *VM) initialStep(ctx context.Context) error {
	if err := v.placeNow(); err != nil {
		return err
	}
	var first error
	for _, d := range v.disks() {
		if d.state.get().Stage == StageComplete || d.src.lost() {
			continue
		}
		if err := v.replicateInitially(ctx, d); err != nil && first == nil && v.stillHere(d) && !d.src.lost() {
			first = fmt.Errorf("disk %s: initial replication: %w", d.src.Name(), err)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return first
}

// replicateInitially is *Initial replication* of the design. It may be repeated
// at any point: progress is the set of entries that are still unknown.
func (v *VM) replicateInitially(ctx context.Context, d *disk) error {
	info, err := d.probe()
	d.setInfo(info, err)
	if errors.Is(err, image.ErrNotYet) || errors.Is(err, image.ErrUnsupported) {
		return nil // being copied in, or served without protection; the next turn looks again
	}
	if err != nil {
		return &Problem{Code: "bad-image", Class: retry.NonRecoverable, Err: err,
			Action: "repair or remove the image, then: vhdrelay resume " + v.opts.Name}
	}
	if err := d.brokenChain(); errors.Is(err, image.ErrParent) {
		d.broken.Store(true)
		d.setInfo(info, err)
		return chainBroken(v.opts.Name, err)
	} else if err != nil {
		return nil // somebody is writing to one of them; until it is known what it lies over, it may be another disk's
	}
	d.broken.Store(false)
	if err := v.enroll(ctx, d, info); err != nil {
		return err
	}
	d.round.Lock()
	defer d.round.Unlock()
	r, err := v.openReplica(ctx, d)
	if err != nil {
		return err
	}
	if d.state.get().Seed {
		return v.takeSeed(ctx, d, r, info)
	}
	if err := v.prepareReplica(ctx, d, r, info); err != nil {
		return err
	}
	if err := v.sendUnknown(ctx, d, r); errors.Is(err, errMoved) { // it is read through something that is gone
		return errors.Join(err, d.state.update(func(s *diskRecord) { s.TableReady = false }))
	} else if err != nil {
		return err
	}
	return v.complete(ctx, d, r, info)
}

// enroll makes the disk's name and lease durable, then its place at the target.
func (v *VM) enroll(ctx context.Context, d *disk, info image.Info) error {
	if st := d.state.get(); st.Stage == StageWaiting || st.Key == "" {
		key, err := v.chooseKey(ctx, d)
		if err != nil {
			return err
		}
		err = d.state.update(func(s *diskRecord) {
			*s = diskRecord{Key: key, Stage: StageInitial, Lease: newLease(), VirtualSize: info.VirtualSize, Former: s.Former, Seed: s.Seed,
				Birth: 1 + rand.Int64N(1<<40)}
		})
		if err != nil {
			return err
		}
	}
	if err := v.listDisk(ctx, d, info); err != nil {
		return err
	}
	return v.createReplica(ctx, d, info)
}

// createReplica makes the disk's replica. The key was chosen so that no disk of
// the VM has it; what is there all the same is our own first attempt, which its
// sequence number tells, or was put there by others.
func (v *VM) createReplica(ctx context.Context, d *disk, info image.Info) error {
	st := d.state.get()
	name := catalog.ReplicaName(v.opts.Name, st.Key)
	err := v.repeat(ctx, func(ctx context.Context) error {
		return v.target.CreatePages(ctx, name, image.ReplicaSize(info.VirtualSize), max(st.Birth, 1))
	})
	if errors.Is(err, target.ErrExists) {
		if st.Created || st.Birth == 0 {
			return nil // of an earlier step of ours
		}
		return v.foundReplica(ctx, d, name)
	}
	if err != nil {
		return err
	}
	return d.state.update(func(s *diskRecord) { s.Created, s.Seed = true, false }) // what is new is all zeros: nothing to compare
}

// foundReplica decides about a blob that is there although we have not come to
// count it.
func (v *VM) foundReplica(ctx context.Context, d *disk, name string) error {
	var p target.Properties
	err := v.repeat(ctx, func(ctx context.Context) (err error) {
		p, err = v.target.Properties(ctx, name, "")
		return err
	})
	switch st := d.state.get(); {
	case err != nil:
		return err
	case p.Sequence == st.Birth:
		return d.state.update(func(s *diskRecord) { s.Created, s.Seed = true, false })
	case st.Seed:
		v.opts.Log.Info("a replica that others put there is adopted", "disk", d.src.Name(), "blob", name, "bytes", p.Size)
		return d.state.update(func(s *diskRecord) { s.Created = true })
	}
	return seeded(v.opts.Name, name)
}

// chooseKey gives the disk a name at the target that no other disk of the VM ever had.
func (v *VM) chooseKey(ctx context.Context, d *disk) (string, error) {
	doc, _, err := catalog.LoadVM(ctx, v.target, v.opts.Name)
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, have := range doc.Disks {
		taken[have.ID] = true
	}
	key := d.src.Name()
	for n := 2; taken[key]; n++ {
		key = fmt.Sprintf("%s~%d", d.src.Name(), n)
	}
	return key, nil
}

// takeSeed makes a replica of what is at the target already: a fixed VHD of the
// disk's size, whatever its content, with a table that knows nothing. The snapshot
// is where folds start; the comparison then finds what need not be sent.
func (v *VM) takeSeed(ctx context.Context, d *disk, r *replica, info image.Info) error {
	if err := d.src.Datasync(); err != nil { // as in initTable
		return fmt.Errorf("sync the image: %w", err)
	}
	if _, err := r.resize(ctx, diskBlocks(info.VirtualSize), info.VirtualSize); err != nil {
		return err
	}
	if err := r.putFooter(ctx, info); err != nil {
		return err
	}
	if err := v.readThrough(d, info); err != nil {
		return err
	}
	t, err := v.newTable(d, info.VirtualSize)
	if err != nil {
		return err
	}
	if err := d.publishTable(t); err != nil {
		return err
	}
	err = d.state.update(func(s *diskRecord) {
		s.TableReady, s.VirtualSize, s.MostBytes = true, info.VirtualSize, info.VirtualSize
		s.Matching, s.MatchedTo, s.Resized = true, 0, true
	})
	if err != nil {
		return err
	}
	v.setCatchUp("disk " + d.src.Name() + " is compared with the replica that was there")
	return v.complete(ctx, d, r, info)
}

// listDisk writes the disk into vm.json as it is now.
func (v *VM) listDisk(ctx context.Context, d *disk, info image.Info) error {
	st := d.state.get()
	want := catalog.DiskDoc{ID: st.Key, Name: d.src.Name(), Format: string(info.Format), VirtualSize: info.VirtualSize}
	return v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		for i := range doc.Disks {
			if doc.Disks[i].ID == st.Key {
				doc.Disks[i] = want
				return nil
			}
		}
		doc.Disks = append(doc.Disks, want)
		return nil
	})
}

// prepareReplica gives the replica its size and footer and the disk its table. A
// new table takes holes for zeros that the replica holds, so the replica is cleared
// for it each time: an earlier attempt may have put something else there.
func (v *VM) prepareReplica(ctx context.Context, d *disk, r *replica, info image.Info) error {
	size := image.ReplicaSize(info.VirtualSize)
	st := d.state.get()
	_, readable := d.layout()
	// An image that was written over with one that has a block table was read as if it had none.
	readable = readable && (d.translated() || !info.Format.Translated())
	fresh := !st.TableReady || st.VirtualSize != info.VirtualSize || r.size != size || !readable
	if fresh {
		if err := v.clearReplica(ctx, d, r, info); err != nil {
			return err
		}
	}
	if err := r.putFooter(ctx, info); err != nil {
		return err
	}
	if !fresh {
		return v.openTable(d)
	}
	return v.initTable(d, info)
}

// clearReplica empties the replica and gives it its size; the table goes first.
func (v *VM) clearReplica(ctx context.Context, d *disk, r *replica, info image.Info) error {
	err := d.state.update(func(s *diskRecord) {
		s.TableReady, s.VirtualSize, s.MostBytes = false, info.VirtualSize, info.VirtualSize
	})
	if err != nil {
		return err
	}
	if err := d.closeTable(); err != nil {
		return err
	}
	err = v.once(ctx, func(ctx context.Context) error {
		return v.target.ClearPages(ctx, r.name, 0, r.size, r.guard())
	})
	size := image.ReplicaSize(info.VirtualSize)
	if err != nil || r.size == size {
		return err
	}
	err = v.once(ctx, func(ctx context.Context) error { return v.target.Resize(ctx, r.name, size, r.guard()) })
	if err == nil {
		r.size = size
	}
	return err
}

// putFooter makes the replica a valid fixed VHD.
func (r *replica) putFooter(ctx context.Context, info image.Info) error {
	footer := image.FixedFooter(image.PaddedSize(info.VirtualSize), info.ID, r.vm.opts.Now())
	return r.vm.once(ctx, func(ctx context.Context) error {
		return r.vm.target.PutPages(ctx, r.name, image.PaddedSize(info.VirtualSize), footer[:], checksum.Of(footer[:]), r.guard())
	})
}

// openTable opens the disk's table unless it is open.
func (v *VM) openTable(d *disk) error {
	if d.table() != nil {
		return nil
	}
	t, err := checksum.OpenTableIn(v.opts.Tree, v.tablePath(d))
	if err != nil {
		return fmt.Errorf("disk %s: checksum table: %w", d.src.Name(), err)
	}
	return d.publishTable(t)
}

// initTable makes the table: holes as zero blocks, which a new replica holds
// already, everything else unknown. It is synced before the first put. What the
// activity log forgets meanwhile is unknown whatever the holes said before.
//
// What was written before the disk was tracked is made durable first: it is in no
// activity log, and a power cut that took it back after it was put would leave
// the replica with bytes that nobody looks at again.
func (v *VM) initTable(d *disk, info image.Info) error {
	if err := d.src.Datasync(); err != nil {
		return fmt.Errorf("sync the image: %w", err)
	}
	if err := v.readThrough(d, info); err != nil {
		return err
	}
	t, err := v.newTable(d, info.VirtualSize)
	if err != nil {
		return err
	}
	if err := learnZeros(t, d); err != nil {
		return errors.Join(err, t.Close())
	}
	if err := t.Sync(); err != nil {
		return errors.Join(err, t.Close())
	}
	if err := d.publishTable(t); err != nil {
		return err
	}
	return d.state.update(func(s *diskRecord) { s.TableReady = true })
}

// readThrough gives a translated disk the block table that it is read through from
// here on, before anything is known of it.
func (v *VM) readThrough(d *disk, info image.Info) error {
	if !info.Format.Translated() {
		return nil
	}
	if err := v.beginBlocks(d); err != nil {
		return err
	}
	if p := d.previous(); p.virtualSize() != info.VirtualSize {
		return fmt.Errorf("disk %s changed its size while it was looked at", d.src.Name())
	}
	return nil
}

// learnZeros enters zero for every block that need not be read.
func learnZeros(t *checksum.Table, d *disk) error {
	layout, ok := d.layout()
	switch {
	case !ok:
		return fmt.Errorf("disk %s: its block table is lost", d.src.Name())
	case d.translated():
		return learnTranslated(t, d, layout)
	}
	return learnHoles(t, d.src)
}

// newTable makes a table that knows nothing in the place of the old one.
func (v *VM) newTable(d *disk, virtualSize int64) (*checksum.Table, error) {
	if err := d.closeTable(); err != nil {
		return nil, err
	}
	if err := v.opts.Tree.Remove(v.tablePath(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	return checksum.CreateTableIn(v.opts.Tree, v.tablePath(d), diskBlocks(virtualSize))
}

// learnHoles enters zero for every block of a hole. A block written meanwhile is
// in the change set, and the replica does hold zeros for it: the entry is true.
func learnHoles(t *checksum.Table, src Source) error {
	var off extent.DiskBlock
	for off < t.Blocks() {
		start, end, err := src.NextData(int64(off) * extent.BlockSize)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		data := DiskRange{Start: t.Blocks(), End: t.Blocks()}
		if err == nil {
			f := extent.Cover[extent.FileBlock](start, end-start)
			data = DiskRange{Start: min(extent.DiskBlock(f.Start), t.Blocks()), End: min(extent.DiskBlock(f.End), t.Blocks())}
		}
		if hole := (DiskRange{Start: off, End: data.Start}); hole.Len() > 0 {
			if err := t.Learn(hole, nil); err != nil {
				return err
			}
		}
		off = max(data.End, data.Start)
	}
	return nil
}

func diskBlocks(virtualSize int64) extent.DiskBlock {
	return extent.Cover[extent.DiskBlock](0, virtualSize).End
}

// sendUnknown reads every unknown block as it is and puts it to the replica.
func (v *VM) sendUnknown(ctx context.Context, d *disk, r *replica) error {
	s := &sender{vm: v, src: d.src, table: d.table(), page: make([]byte, target.MaxPut)}
	if s.table == nil {
		return errRetired
	}
	var ok bool
	if s.layout, ok = d.layout(); !ok {
		return fmt.Errorf("disk %s: its block table is lost", d.src.Name())
	}
	s.watch = s.table.Watch()
	defer s.watch.Close()
	s.puts = v.newPutter(ctx, order{class: ClassInitial}, r.name, r.guard())
	err := s.sendAll()
	return errors.Join(err, s.puts.wait(), s.table.Sync())
}

// sender is one round of initial replication of one disk.
type sender struct {
	vm        *VM
	src       Source
	layout    Layout
	table     *checksum.Table
	watch     *checksum.Watch
	puts      *putter
	page      []byte // what is read next; never in flight
	sinceSync int64
}

func (s *sender) sendAll() error {
	for run := range s.table.Unknown().Ranges(DiskRange{End: s.table.Blocks()}, strideBlocks) {
		if err := s.sendRun(run); err != nil {
			return err
		}
		if s.sinceSync += run.Bytes(); s.sinceSync >= tableSyncEvery {
			s.sinceSync = 0
			if err := s.table.Sync(); err != nil {
				return err
			}
		}
	}
	return s.puts.ctx.Err()
}

// sendRun puts one stride: data as puts, zeros as clears. A block whose entry was
// unknown and that reads zero is cleared, never skipped: an earlier attempt may
// have put something else there.
//
// A block that is forgotten during the round stays unknown: its region was
// evicted, and only that tells of what the guest wrote after it was read.
func (s *sender) sendRun(run DiskRange) error {
	page := s.page[:run.Bytes()]
	if err := s.layout.ReadDisk(s.src, run, page); err != nil {
		return err
	}
	sums := checksum.Blocks(nil, page)
	parts := joinShort(splitRuns(page, run.Start), shortZeroBlocks)
	for _, part := range parts {
		lo, hi := part.Start-run.Start, part.End-run.Start
		if part.zero {
			s.puts.clear(offsetOf(part.Start), part.Bytes(), func() error { return s.watch.Learn(part.DiskRange, nil) })
			continue
		}
		partSums := sums[lo:hi]
		n := int(part.Bytes())
		buf, err := s.puts.buffer(int64(n))
		if err != nil {
			return err
		}
		if len(parts) == 1 { // all of the stride: the next one is read into the other buffer
			*buf, s.page = s.page, *buf
		} else {
			copy(*buf, page[offsetOf(lo):offsetOf(hi)])
		}
		s.puts.data(offsetOf(part.Start), buf, n, checksum.CombineBlocks(partSums), func() error {
			return s.watch.Learn(part.DiskRange, partSums)
		})
	}
	return nil
}

// complete seals the initial replication with a base snapshot; from the next
// seal on, epochs list the disk as complete.
func (v *VM) complete(ctx context.Context, d *disk, r *replica, info image.Info) error {
	now, err := d.probe()
	if err != nil || now.VirtualSize != info.VirtualSize {
		v.initial.wake() // resized meanwhile: once more, with the new size
		return nil
	}
	base := v.deps.Volume.LastEpoch()
	if err := r.seal(ctx, catalog.PointID{Generation: v.state.get().Generation, Epoch: base}, catalog.KindBase); err != nil {
		return err
	}
	v.opts.Hook(PointAfterBaseSnapshot)
	if err := v.enterEpochs(d); err != nil {
		return err
	}
	v.opts.Log.Info("initial replication finished", "disk", d.src.Name(), "bytes", info.VirtualSize)
	v.capture.wake()
	v.notify()
	return nil
}

// enterEpochs makes the disk complete between two captures, so that it is known
// which epoch is the first to list it.
func (v *VM) enterEpochs(d *disk) error {
	v.captureGate.Lock()
	defer v.captureGate.Unlock()
	base := v.deps.Volume.LastEpoch()
	return d.state.update(func(s *diskRecord) { s.Stage, s.Base, s.Seed = StageComplete, base, false })
}

// clearTail zeroes what lies beyond the virtual disk in the blocks of run.
func clearTail(p []byte, run DiskRange, virtualSize int64) {
	if over := offsetOf(run.End) - virtualSize; over > 0 {
		clear(p[int64(len(p))-min(over, int64(len(p))):])
	}
}

func offsetOf(b extent.DiskBlock) int64 { return int64(b) * extent.BlockSize }

// part is a run of blocks that are all zero or all not.
type part struct {
	DiskRange
	zero bool
}

// splitRuns cuts payload, which starts at block start, into zero and data runs.
func splitRuns(payload []byte, start extent.DiskBlock) []part {
	var parts []part
	for off := 0; off < len(payload); off += extent.BlockSize {
		b := start + extent.DiskBlock(off/extent.BlockSize)
		zero := checksum.IsZero(payload[off : off+extent.BlockSize])
		if n := len(parts); n > 0 && parts[n-1].zero == zero {
			parts[n-1].End = b + 1
			continue
		}
		parts = append(parts, part{DiskRange{Start: b, End: b + 1}, zero})
	}
	return parts
}

// shortZeroBlocks: a run of fewer zero blocks between data is put as data, for
// one request of 64 KiB more costs less than two requests (AZURE.md 0.3).
const shortZeroBlocks = 16

// joinShort turns zero runs of fewer than short blocks into data where they touch data.
func joinShort(parts []part, short int64) []part {
	var joined []part
	for i, p := range parts {
		if p.zero && p.Len() < short && len(parts) > 1 {
			p.zero = false
		}
		if n := len(joined); i > 0 && !p.zero && !joined[n-1].zero {
			joined[n-1].End = p.End
			continue
		}
		joined = append(joined, p)
	}
	return joined
}
