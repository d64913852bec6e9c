package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// errDamaged is a segment in the spool that is not what its manifest says.
var errDamaged = errors.New("segment in the spool is damaged")

// shipStep brings every spooled epoch to the target, in order.
func (v *VM) shipStep(ctx context.Context) error {
	for ctx.Err() == nil {
		m := v.nextToShip()
		if m == nil {
			v.refreshUnchanged(ctx)
			return v.lost()
		}
		if err := v.shipEpoch(ctx, m); errors.Is(err, errGiveUp) {
			return nil // its end wakes us
		} else if err != nil {
			return fmt.Errorf("ship epoch %d: %w", m.Epoch, err)
		}
		v.notify()
	}
	return ctx.Err()
}

// nextToShip is the oldest manifest that is neither recorded nor among the
// unrecorded segments at the target, and whose tables are written: an epoch at the
// target is released, and its tables need its segments.
func (v *VM) nextToShip() *spool.Manifest {
	through, unfinished := v.shippedThrough(), v.unfinishedEpoch()
	for _, m := range v.deps.Spool.Manifests() {
		if unfinished != 0 && m.Epoch >= unfinished {
			return nil
		}
		if m.Epoch > through {
			return m
		}
	}
	return nil
}

// shipEpoch brings one epoch to the target, unless a give-up is faster.
func (v *VM) shipEpoch(ctx context.Context, m *spool.Manifest) error {
	gated, done, err := v.enterGate(ctx)
	if err != nil {
		return err
	}
	defer done()
	if m = v.stillSpooled(m); m == nil {
		return nil // given up while we waited
	}
	err = v.shipInGate(gated, m)
	if err != nil && ctx.Err() == nil && context.Cause(gated) == error(errGiveUp) {
		return nil // what is left of the spool is looked at again
	}
	return err
}

// shipInGate uploads the segments of one epoch and, if it is closed, makes it a
// point.
func (v *VM) shipInGate(ctx context.Context, m *spool.Manifest) error {
	if err := v.checkGeneration(ctx); err != nil {
		return err
	}
	refs, err := v.upload(ctx, m)
	if errors.Is(err, errDamaged) || isSegmentFault(err) {
		v.requestGiveUp(m.Epoch)
	}
	if err != nil {
		return err
	}
	v.opts.Hook(PointAfterUpload)
	if err := v.judgeAgain(m); err != nil {
		return err
	}
	if err := v.describeDisks(ctx, m); err != nil {
		return err
	}
	if m.Closed {
		err = v.record(ctx, m, refs)
	} else {
		err = v.keepUnrecorded(m, refs)
	}
	if err != nil {
		return err
	}
	v.opts.Hook(PointAfterCounted)
	v.noteShipped(v.cycleOf(m))
	return errors.Join(v.releaseShipped(), v.settleDoubts(ctx))
}

// judgeAgain leaves an epoch open if an entry has become unknown since its
// manifest: the target may not hold what the table said (DESIGN §4). An attempted
// record stands.
func (v *VM) judgeAgain(m *spool.Manifest) error {
	if !m.Closed || m.RecordAttempted {
		return nil
	}
	for _, md := range m.Disks {
		d := v.diskByID(md.ID)
		if md.State != spool.Complete || d == nil || d.table() == nil || d.state.get().Stage != StageComplete || d.table().UnknownCount() == 0 {
			continue
		}
		m.Closed, m.OpenReason = false, fmt.Sprintf("disk %s: blocks of unknown content at the target", md.Name)
		v.noteOpen(m.Epoch, m.OpenReason)
		return v.deps.Spool.Update(m)
	}
	return nil
}

func (v *VM) noteOpen(epoch uint64, reason string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.openReason = reason
	v.noteOpenLocked(epoch)
}

// describeDisks brings the list of disks in vm.json to where an epoch has it: the
// sizes, and who is gone, so that the latest point does not wait for it.
func (v *VM) describeDisks(ctx context.Context, m *spool.Manifest) error {
	listed := map[string]spool.ManifestDisk{}
	for _, md := range m.Disks {
		listed[v.keyOf(md.ID, md.Name, m.Epoch)] = md
	}
	here := map[string]bool{}
	for _, d := range v.disks() {
		here[d.state.get().Key] = true
	}
	change := func(docs []catalog.DiskDoc) {
		for i, have := range docs {
			md, ok := listed[have.ID]
			docs[i].Removed = !ok && !here[have.ID]
			if ok && md.State == spool.Complete {
				docs[i].Name, docs[i].Format, docs[i].VirtualSize = md.Name, string(md.Format), md.VirtualSize
			}
		}
	}
	v.mu.Lock()
	known := v.mu.described
	v.mu.Unlock()
	wanted := slices.Clone(known)
	change(wanted)
	if known != nil && slices.Equal(known, wanted) {
		return nil
	}
	return v.updateDoc(ctx, func(doc *catalog.VMDoc) error {
		change(doc.Disks)
		return nil
	})
}

func (v *VM) cycleOf(m *spool.Manifest) Cycle {
	c := Cycle{Epoch: m.Epoch, SealedAt: m.SealedAt, Closed: m.Closed}
	for _, md := range m.Disks {
		if md.Segment != nil {
			c.ChangedBytes += md.Segment.ChangedBytes
			c.StoredBytes += md.Segment.StoredBytes
		}
	}
	if m.Closed {
		c.RecordedAfter = v.opts.Now().Sub(m.SealedAt)
	}
	return c
}

// upload puts the segments of one epoch side by side: the service limits a blob,
// not an account. The references are in the order of the manifest.
func (v *VM) upload(ctx context.Context, m *spool.Manifest) ([]catalog.SegmentRef, error) {
	v.sent.Store(0)
	var refs []catalog.SegmentRef
	g, ctx := errgroup.WithContext(ctx)
	for _, md := range m.Disks {
		if md.Segment == nil {
			continue
		}
		ref := v.segmentRef(m, md)
		refs = append(refs, ref)
		if m.RecordAttempted {
			continue // it was durable there before the attempt
		}
		g.Go(func() error {
			if err := v.uploadSegment(ctx, m, md, ref); err != nil {
				return fmt.Errorf("segment of disk %s: %w", md.Name, err)
			}
			return nil
		})
	}
	return refs, g.Wait()
}

// uploadSegment may be repeated: the name carries generation and epoch, which are
// never used twice, so whatever has it has our bytes or none.
func (v *VM) uploadSegment(ctx context.Context, m *spool.Manifest, md spool.ManifestDisk, ref catalog.SegmentRef) error {
	f, err := v.deps.Spool.OpenSegment(m, md.ID)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := v.createLog(ctx, ref); err != nil {
		return err
	}
	p := v.newPutter(ctx, v.orderOf(m), ref.Blob, target.Unguarded)
	sum, err := v.putFile(p, f, ref.Size)
	if err := errors.Join(err, p.wait()); err != nil {
		return err
	}
	if sum != md.Segment.Sum {
		return fmt.Errorf("%w: checksum %s, manifest says %s", errDamaged, catalog.FormatSum(sum), ref.Sum)
	}
	return nil
}

// orderOf is how urgent the log of an epoch is. One that is open makes no point: it
// yields to the VMs whose next point waits.
func (v *VM) orderOf(m *spool.Manifest) order {
	if !m.Closed {
		return order{class: ClassRepair}
	}
	o := order{class: ClassShip, since: v.state.get().RecordedAt, interval: v.live().Interval}
	if o.since.IsZero() {
		o.since = m.SealedAt
	}
	return o
}

// createLog makes the blob of a segment, or finds the one of an earlier attempt.
func (v *VM) createLog(ctx context.Context, ref catalog.SegmentRef) error {
	err := v.repeat(ctx, func(ctx context.Context) error {
		return v.target.CreatePages(ctx, ref.Blob, ref.Size, 0)
	})
	if !errors.Is(err, target.ErrExists) {
		return err
	}
	return v.repeat(ctx, func(ctx context.Context) error {
		p, err := v.target.Properties(ctx, ref.Blob, "")
		if err == nil && p.Size != ref.Size {
			return fmt.Errorf("%s has %d bytes, ours has %d: %w", ref.Blob, p.Size, ref.Size, catalog.ErrForeignRecord)
		}
		return err
	})
}

// putFile queues the puts of a whole file and returns the checksum of what it read.
func (v *VM) putFile(p *putter, f io.ReaderAt, size int64) (checksum.Sum, error) {
	sum := checksum.Of(nil)
	for off := int64(0); off < size; off += target.MaxPut {
		n := int(min(target.MaxPut, size-off))
		buf, err := p.buffer(int64(n))
		if err != nil {
			return 0, err
		}
		if _, err := f.ReadAt((*buf)[:n], off); err != nil {
			v.deps.Buffers.put(buf, p.order)
			return 0, fmt.Errorf("%w: %w", errDamaged, err)
		}
		part := checksum.Of((*buf)[:n])
		sum = checksum.Combine(sum, part, int64(n))
		p.data(off, buf, n, part, func() error {
			v.sent.Add(int64(n))
			return nil
		})
	}
	return sum, nil
}

func (v *VM) segmentRef(m *spool.Manifest, md spool.ManifestDisk) catalog.SegmentRef {
	key := v.keyOf(md.ID, md.Name, m.Epoch)
	return catalog.SegmentRef{
		DiskID: key, Blob: catalog.SegmentName(v.opts.Name, key, catalog.PointID{Generation: m.Generation, Epoch: m.Epoch}),
		Generation: m.Generation, Epoch: m.Epoch, Size: md.Segment.Size,
		Sum: catalog.FormatSum(md.Segment.Sum), UUID: md.Segment.UUID, VirtualSize: md.VirtualSize,
	}
}

// keepUnrecorded remembers the segments of an open epoch for the next record.
func (v *VM) keepUnrecorded(m *spool.Manifest, refs []catalog.SegmentRef) error {
	return v.state.update(func(s *vmRecord) {
		s.Unrecorded = append(s.Unrecorded[:len(s.Unrecorded):len(s.Unrecorded)], refs...)
		s.UnrecordedThrough = m.Epoch
	})
}

// record makes a closed epoch a recovery point (I5, I7): the attempt is durable
// before the request, and the point counts only after vm.json still names us.
func (v *VM) record(ctx context.Context, m *spool.Manifest, refs []catalog.SegmentRef) error {
	if !m.RecordAttempted {
		m.RecordAttempted = true
		if err := v.deps.Spool.Update(m); err != nil {
			return err
		}
	}
	v.opts.Hook(PointBeforeRecord)
	r := v.newRecord(m, refs)
	err := v.repeat(ctx, func(ctx context.Context) error { return catalog.CreateRecord(ctx, v.target, r) })
	if err != nil {
		return err
	}
	v.opts.Hook(PointAfterRecord)
	if err := v.checkGeneration(ctx); err != nil {
		return err
	}
	return v.count(r)
}

// newRecord is a function of the manifest and of durable state alone, so that a
// repetition after a crash makes the same record.
func (v *VM) newRecord(m *spool.Manifest, refs []catalog.SegmentRef) catalog.Record {
	st := v.state.get()
	r := catalog.Record{
		Version: catalog.FormatVersion, VM: v.opts.Name, VMID: v.opts.ID, Generation: m.Generation, Epoch: m.Epoch, EpochUUID: m.EpochUUID,
		Time: pointTime(m.SealedAt, st.RecordedAt), Consistency: catalog.ConsistencyCrash, Previous: st.Recorded,
		Segments: append(st.Unrecorded[:len(st.Unrecorded):len(st.Unrecorded)], refs...),
	}
	for _, md := range m.Disks {
		rd := catalog.RecordDisk{ID: v.keyOf(md.ID, md.Name, m.Epoch), Name: md.Name, Format: string(md.Format), State: md.State, VirtualSize: md.VirtualSize}
		if md.SumKnown {
			rd.Sum = catalog.FormatSum(md.DiskSum)
		}
		if md.Segment != nil {
			rd.ChangedBytes, rd.StoredBytes = md.Segment.ChangedBytes, md.Segment.StoredBytes
		}
		r.Disks = append(r.Disks, rd)
	}
	return r
}

// pointTime keeps the times of points in order although the clock may step back.
func pointTime(sealed, previous time.Time) time.Time {
	if next := previous.Add(time.Millisecond); !previous.IsZero() && sealed.Before(next) {
		return next
	}
	return sealed
}

// count makes a record a point of ours, durably. It is in the list before the state names it: an apply that reads the state
// beside us looks the record up there.
func (v *VM) count(r catalog.Record) error {
	v.mu.Lock()
	v.mu.records = append(v.mu.records, r)
	v.mu.Unlock()
	err := v.state.update(func(s *vmRecord) {
		s.Recorded, s.RecordedAt, s.Unrecorded = r.ID(), r.Time, nil
	})
	v.mu.Lock()
	if err != nil {
		v.mu.records = slices.DeleteFunc(v.mu.records, func(have catalog.Record) bool { return have.ID() == r.ID() })
		v.mu.Unlock()
		return err
	}
	v.mu.catchUp = ""
	v.mu.Unlock()
	v.wakeApplyIfLarge()
	return nil
}

// releaseShipped drops from the spool what the target holds and nobody here needs
// any more: what is applied, or, when the quota presses, all that is shipped. An
// apply that misses a segment reads it from the target.
func (v *VM) releaseShipped() error {
	defer v.resumeSealing()
	if v.deps.Spool.Bytes() > v.opts.Quota()/4 {
		return v.releaseThrough(v.shippedThrough())
	}
	return v.releaseThrough(min(v.shippedThrough(), v.state.get().Applied.Epoch))
}

// releaseThrough drops epochs up to one, none whose tables are not written (I4).
func (v *VM) releaseThrough(epoch uint64) error {
	unfinished := v.unfinishedEpoch()
	for _, have := range v.spooledEpochs() {
		if have > epoch || unfinished != 0 && have >= unfinished {
			break
		}
		if err := v.deps.Spool.Release(have); err != nil {
			return fmt.Errorf("release epoch %d: %w", have, err)
		}
	}
	return nil
}

// spooledEpochs are the numbers of all epochs in the spool, damaged ones too.
func (v *VM) spooledEpochs() []uint64 {
	var all []uint64
	for _, m := range v.deps.Spool.Manifests() {
		all = append(all, m.Epoch)
	}
	for _, d := range v.deps.Spool.Damaged() {
		all = append(all, d.Epoch)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// enterGate keeps a give-up away while one epoch is shipped; a give-up that waits
// goes first, and cancels the work that is under way.
func (v *VM) enterGate(ctx context.Context) (context.Context, func(), error) {
	v.spoolGate.Lock()
	gated, cancel := context.WithCancelCause(ctx)
	v.mu.Lock()
	waiting := v.mu.givingUp
	v.mu.stopShipping = cancel
	v.mu.Unlock()
	done := func() {
		v.mu.Lock()
		v.mu.stopShipping = nil
		v.mu.Unlock()
		cancel(nil)
		v.spoolGate.Unlock()
	}
	if waiting {
		done()
		return nil, nil, errGiveUp
	}
	return gated, done, nil
}

// stillSpooled is the manifest as it is in the spool now, nil if it is there no more.
func (v *VM) stillSpooled(m *spool.Manifest) *spool.Manifest {
	for _, have := range v.deps.Spool.Manifests() {
		if have.Epoch == m.Epoch {
			return have
		}
	}
	return nil
}

// errGiveUp stops the upload of an epoch that is given up.
var errGiveUp = &Problem{Code: "epoch-given-up", Class: retry.Recoverable, Action: "none: the blocks are captured again",
	Err: errors.New("epoch is given up to keep the spool within its quota")}
