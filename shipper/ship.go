package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

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
			return nil
		}
		if err := v.shipEpoch(ctx, m); err != nil {
			return fmt.Errorf("ship epoch %d: %w", m.Epoch, err)
		}
		v.notify()
	}
	return ctx.Err()
}

// nextToShip is the oldest manifest that is neither recorded nor among the
// unrecorded segments at the target.
func (v *VM) nextToShip() *spool.Manifest {
	st := v.state.get()
	for _, m := range v.deps.Spool.Manifests() {
		if m.Epoch > max(st.Recorded.Epoch, st.UnrecordedThrough) {
			return m
		}
	}
	return nil
}

// shipEpoch uploads the segments of one epoch and, if it is closed, makes it a point.
func (v *VM) shipEpoch(ctx context.Context, m *spool.Manifest) error {
	ctx, done := v.enterGate(ctx)
	defer done()
	if !v.stillSpooled(m) {
		return nil // given up while we waited
	}
	refs, err := v.upload(ctx, m)
	if errors.Is(err, errDamaged) || errors.Is(err, spool.ErrMissing) {
		v.requestGiveUp(m.Epoch)
	}
	if err != nil {
		return err
	}
	v.opts.Hook(PointAfterUpload)
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
	return v.releaseShipped()
}

func (v *VM) cycleOf(m *spool.Manifest) Cycle {
	c := Cycle{Epoch: m.Epoch, SealedAt: m.SealedAt}
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
// not an account.
func (v *VM) upload(ctx context.Context, m *spool.Manifest) ([]catalog.SegmentRef, error) {
	var refs []catalog.SegmentRef
	for _, md := range m.Disks {
		if md.Segment == nil {
			continue
		}
		ref, err := v.uploadSegment(ctx, m, md)
		if err != nil {
			return nil, fmt.Errorf("segment of disk %s: %w", md.Name, err)
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

// uploadSegment may be repeated: the name carries generation and epoch, which are
// never used twice, so whatever has it has our bytes or none.
func (v *VM) uploadSegment(ctx context.Context, m *spool.Manifest, md spool.ManifestDisk) (catalog.SegmentRef, error) {
	ref := v.segmentRef(m, md)
	if m.RecordAttempted {
		return ref, nil // it was durable there before the attempt
	}
	f, err := v.deps.Spool.OpenSegment(m, md.ID)
	if err != nil {
		return ref, err
	}
	defer f.Close()
	err = v.repeat(ctx, func(ctx context.Context) error {
		return v.target.CreatePages(ctx, ref.Blob, ref.Size, 0)
	})
	if err != nil && !errors.Is(err, target.ErrExists) {
		return ref, err
	}
	p := v.newPutter(ctx, ref.Blob, target.Unguarded)
	sum, err := v.putFile(p, f, ref.Size)
	if err := errors.Join(err, p.wait()); err != nil {
		return ref, err
	}
	if sum != md.Segment.Sum {
		return ref, fmt.Errorf("%w: checksum %s, manifest says %s", errDamaged, catalog.FormatSum(sum), ref.Sum)
	}
	return ref, nil
}

// putFile queues the puts of a whole file and returns the checksum of what it read.
func (v *VM) putFile(p *putter, f io.ReaderAt, size int64) (checksum.Sum, error) {
	sum := checksum.Of(nil)
	for off := int64(0); off < size; off += target.MaxPut {
		buf, err := v.deps.Buffers.get(p.ctx)
		if err != nil {
			return 0, err
		}
		n := int(min(target.MaxPut, size-off))
		if _, err := f.ReadAt((*buf)[:n], off); err != nil {
			v.deps.Buffers.put(buf)
			return 0, fmt.Errorf("%w: %w", errDamaged, err)
		}
		part := checksum.Of((*buf)[:n])
		sum = checksum.Combine(sum, part, int64(n))
		p.data(off, buf, n, part, nil)
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

// count makes a record a point of ours, durably.
func (v *VM) count(r catalog.Record) error {
	err := v.state.update(func(s *vmRecord) {
		s.Recorded, s.RecordedAt, s.Unrecorded = r.ID(), r.Time, nil
	})
	if err != nil {
		return err
	}
	v.mu.Lock()
	v.mu.records = append(v.mu.records, r)
	v.mu.catchUp = ""
	v.mu.Unlock()
	v.wakeApplyIfLarge()
	return nil
}

// releaseShipped drops from the spool what the target holds and nobody here needs
// any more: what is applied, or, when the quota presses, all that is shipped. An
// apply that misses a segment reads it from the target.
func (v *VM) releaseShipped() error {
	st := v.state.get()
	shipped := max(st.Recorded.Epoch, st.UnrecordedThrough)
	pressed := v.deps.Spool.Bytes() > v.opts.Quota()/4
	for _, m := range v.deps.Spool.Manifests() {
		if m.Epoch > shipped || (!pressed && m.Epoch > st.Applied.Epoch) {
			break
		}
		if err := v.deps.Spool.Release(m.Epoch); err != nil {
			return fmt.Errorf("release epoch %d: %w", m.Epoch, err)
		}
	}
	return nil
}

// enterGate keeps a give-up away while one epoch is shipped; a give-up that waits
// cancels the work, which a hanging target could hold up for long.
func (v *VM) enterGate(ctx context.Context) (context.Context, func()) {
	v.spoolGate.Lock()
	ctx, cancel := context.WithCancelCause(ctx)
	v.mu.Lock()
	v.mu.stopShipping = cancel
	v.mu.Unlock()
	return ctx, func() {
		v.mu.Lock()
		v.mu.stopShipping = nil
		v.mu.Unlock()
		cancel(nil)
		v.spoolGate.Unlock()
	}
}

func (v *VM) stillSpooled(m *spool.Manifest) bool {
	for _, have := range v.deps.Spool.Manifests() {
		if have.Epoch == m.Epoch {
			return true
		}
	}
	return false
}

// errGiveUp stops the upload of an epoch that is given up.
var errGiveUp = &Problem{Code: "epoch-given-up", Class: retry.Recoverable, Action: "none: the blocks are captured again",
	Err: errors.New("epoch is given up to keep the spool within its quota")}
