package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/fold"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// applyLogBytes makes an apply due before its interval: so much log is waiting.
const applyLogBytes = 1 << 30

// wakeApplyIfLarge starts an apply when the log grows.
func (v *VM) wakeApplyIfLarge() {
	if v.Status().Backlog >= applyLogBytes {
		v.apply.wake()
	}
}

// applyCacheBytes bounds the decompressed frames that the one running apply keeps.
const applyCacheBytes = 24 << 20

// applyStep folds what is recorded into the replicas.
func (v *VM) applyStep(ctx context.Context) error {
	st := v.state.get()
	if st.Recorded.IsZero() || st.Recorded == st.Applied {
		return nil
	}
	if err := v.checkGeneration(ctx); err != nil {
		return err // a lease may be free by now: it alone does not stop a lost writer
	}
	if err := v.applyThrough(ctx, st.Recorded); err != nil {
		return err
	}
	return v.releaseApplied()
}

// applyThrough brings every replica to a recorded epoch and freezes it there. The
// end is durable before the first put and never smaller than an earlier
// attempt's; a repetition starts at each replica's newest snapshot (I6).
func (v *VM) applyThrough(ctx context.Context, end catalog.PointID) error {
	st := v.state.get()
	if end.IsZero() || end == st.Applied {
		return nil
	}
	if end.Less(st.ApplyEnd) {
		end = st.ApplyEnd
	}
	record, ok := v.recordOf(end)
	if !ok {
		return fmt.Errorf("apply through %s: %w: its record is gone", end, catalog.ErrChain)
	}
	if err := v.state.update(func(s *vmRecord) { s.ApplyEnd = end }); err != nil {
		return err
	}
	v.opts.Hook(PointBeforeApply)
	for _, d := range v.disksIn(StageComplete) {
		if rd, _ := record.Disk(d.state.get().Key); rd.State != catalog.StateComplete {
			continue // its base is newer than the end
		}
		if err := v.applyDisk(ctx, d, end); err != nil {
			return fmt.Errorf("apply disk %s through %s: %w", d.src.Name(), end, err)
		}
	}
	v.opts.Hook(PointAfterSnapshot)
	err := v.state.update(func(s *vmRecord) { s.Applied = end })
	v.notify()
	return err
}

func (v *VM) recordOf(id catalog.PointID) (catalog.Record, bool) {
	for _, r := range v.liveRecords() {
		if r.ID() == id {
			return r, true
		}
	}
	return catalog.Record{}, false
}

func (v *VM) liveRecords() []catalog.Record {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.mu.records)
}

// applyDisk folds the segments after the replica's newest snapshot into it.
func (v *VM) applyDisk(ctx context.Context, d *disk, end catalog.PointID) error {
	d.round.Lock()
	defer d.round.Unlock()
	key := d.state.get().Key
	snaps, err := v.snapshots(ctx, key)
	if err != nil {
		return err
	}
	if len(snaps) == 0 {
		return targetLost(v.opts.Name, "the replica of disk "+d.src.Name()+" has no snapshot")
	}
	from := snaps[len(snaps)-1]
	if !from.Point.Less(end) {
		return nil
	}
	refs, err := fold.Chain(v.liveRecords(), from, end, key)
	if err != nil {
		return err
	}
	r, err := v.openReplica(ctx, d)
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		if err := v.foldInto(ctx, r, d, from, refs); err != nil {
			return err
		}
	}
	v.opts.Hook(PointAfterPuts)
	if err := v.doubtFrom(ctx, d, end); err != nil {
		return err
	}
	return r.seal(ctx, end, catalog.KindApply)
}

// foldInto writes the newest version of every changed page. Any change of size
// is resize, clear, data, and the footer last (DESIGN §4).
func (v *VM) foldInto(ctx context.Context, r *replica, d *disk, from catalog.Snapshot, refs []catalog.SegmentRef) error {
	if err := v.deps.Buffers.folds.Acquire(ctx, 1); err != nil {
		return err
	}
	defer v.deps.Buffers.folds.Release(1)
	readers, closeAll, err := v.openSegments(ctx, d, refs)
	defer closeAll()
	if err != nil {
		return err
	}
	size := refs[len(refs)-1].VirtualSize
	f := fold.Over(fold.Blocks(size), fold.Layers(readers))
	moved, err := r.resize(ctx, f.Limit, size)
	if err != nil {
		return err
	}
	p := v.newPutter(ctx, order{class: ClassApply}, r.name, r.guard())
	w := &foldWriter{vm: v, frames: fold.NewFrames(readers, applyCacheBytes), puts: p}
	if err := errors.Join(w.run(f.Pieces), p.wait()); err != nil {
		v.blameLocal(isSegmentFault(err))
		return err
	}
	// An earlier attempt may have moved the end already: the snapshot tells.
	if !moved && from.Size == r.size {
		return nil
	}
	info, _ := d.info()
	info.VirtualSize = size
	return r.putFooter(ctx, info)
}

// resize brings the replica to the disk's new size, and clears what any size on
// the way cut off, the old footer included. Nothing between two snapshots is ever
// offered. It may be repeated.
func (r *replica) resize(ctx context.Context, limit extent.DiskBlock, virtualSize int64) (moved bool, err error) {
	size, data := image.ReplicaSize(virtualSize), r.size-image.FooterSize
	cut := min(data, int64(limit)*extent.BlockSize)
	if size == r.size && cut == data {
		return false, nil
	}
	t := r.vm.target
	err = r.vm.once(ctx, func(ctx context.Context) error {
		return t.ClearPages(ctx, r.name, cut, r.size-cut, r.guard())
	})
	if err != nil || size == r.size {
		return true, err
	}
	err = r.vm.once(ctx, func(ctx context.Context) error { return t.Resize(ctx, r.name, size, r.guard()) })
	if err == nil {
		r.size = size
	}
	return true, err
}

// openSegments opens the local copies where the spool still has them, the log
// blobs elsewhere.
func (v *VM) openSegments(ctx context.Context, d *disk, refs []catalog.SegmentRef) ([]*segment.Reader, func(), error) {
	var readers []*segment.Reader
	var closers []io.Closer
	closeAll := func() {
		for _, c := range closers {
			_ = c.Close() // opened for reading
		}
	}
	for _, ref := range refs {
		src, closer := v.segmentSource(ctx, d, ref)
		if closer != nil {
			closers = append(closers, closer)
		}
		r, err := segment.Open(src, ref.Size)
		if err == nil && uuid.UUID(r.Header().UUID).String() != ref.UUID {
			err = fmt.Errorf("it is %x, the record says %s", r.Header().UUID, ref.UUID)
		}
		if err != nil {
			v.blameLocal(closer != nil)
			return nil, closeAll, fmt.Errorf("segment %s: %w", ref.Blob, err)
		}
		readers = append(readers, r)
	}
	return readers, closeAll, nil
}

// blameLocal makes the next attempt read what the target holds, if a copy in the
// spool turned out bad.
func (v *VM) blameLocal(local bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.localBad = v.mu.localBad || local
}

func (v *VM) localGood() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return !v.mu.localBad
}

func (v *VM) segmentSource(ctx context.Context, d *disk, ref catalog.SegmentRef) (io.ReaderAt, io.Closer) {
	for _, m := range v.deps.Spool.Manifests() {
		if m.Generation == ref.Generation && m.Epoch == ref.Epoch && v.localGood() {
			if f, err := v.deps.Spool.OpenSegment(m, d.src.ID()); err == nil {
				return f, f
			}
		}
	}
	return blobReader{ctx: ctx, vm: v, name: ref.Blob}, nil
}

// blobReader reads a log blob; every read may be repeated.
type blobReader struct {
	ctx  context.Context
	vm   *VM
	name string
}

func (b blobReader) ReadAt(p []byte, off int64) (int, error) {
	err := b.vm.repeat(b.ctx, func(ctx context.Context) error {
		return b.vm.target.ReadPages(ctx, b.name, "", off, p)
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// foldWriter turns pieces into puts: neighbours merged up to the largest put,
// zero runs as one clear of any length. Gaps are never filled: a replica gets no
// byte that no segment carries (I6).
type foldWriter struct {
	vm     *VM
	frames *fold.Frames
	puts   *putter

	buf  *[]byte // data that is being merged, nil for none
	sums []checksum.Sum
	at   DiskRange
	zero DiskRange // zeros that are being merged
}

func (w *foldWriter) run(pieces []fold.Piece) error {
	for _, piece := range pieces {
		if err := w.piece(piece); err != nil {
			w.drop()
			return err
		}
	}
	w.flushZero()
	w.flushData()
	return nil
}

func (w *foldWriter) piece(p fold.Piece) error {
	if p.Segment == fold.Zeros {
		if w.zero.End != p.Start {
			w.flushZero()
			w.zero = DiskRange{Start: p.Start}
		}
		w.zero.End = p.End
		return nil
	}
	frame, err := w.frames.Get(p.ID())
	if err != nil {
		return err
	}
	payload := frame.Payload[p.Off:][:int64(p.End-p.Start)*extent.BlockSize]
	sums := frame.Sums[p.Off/extent.BlockSize:][:p.End-p.Start]
	for start := p.Start; len(sums) > 0; {
		n, err := w.data(start, payload, sums)
		if err != nil {
			return err
		}
		start, payload, sums = start+extent.DiskBlock(n), payload[n*extent.BlockSize:], sums[n:]
	}
	return nil
}

// data appends as much of a piece as fits behind what is being merged, and says
// how many blocks that was.
func (w *foldWriter) data(start extent.DiskBlock, payload []byte, sums []checksum.Sum) (n int, err error) {
	if w.buf != nil && (w.at.End != start || w.at.Len() == strideBlocks) {
		w.flushData()
	}
	if w.buf == nil {
		if w.buf, err = w.puts.buffer(target.MaxPut); err != nil {
			return 0, err
		}
		w.at, w.sums = DiskRange{Start: start, End: start}, nil
	}
	n = int(min(int64(len(sums)), strideBlocks-w.at.Len()))
	copy((*w.buf)[w.at.Bytes():], payload[:n*extent.BlockSize])
	w.sums = append(w.sums, sums[:n]...)
	w.at.End += extent.DiskBlock(n)
	return n, nil
}

func (w *foldWriter) flushData() {
	if w.buf == nil {
		return
	}
	w.vm.deps.Buffers.line.refund(target.MaxPut - w.at.Bytes())
	w.puts.data(offsetOf(w.at.Start), w.buf, int(w.at.Bytes()), checksum.CombineBlocks(w.sums), nil)
	w.buf = nil
}

func (w *foldWriter) flushZero() {
	if !w.zero.Empty() {
		w.puts.clear(offsetOf(w.zero.Start), w.zero.Bytes(), nil)
	}
	w.zero = DiskRange{}
}

func (w *foldWriter) drop() {
	if w.buf != nil {
		w.vm.deps.Buffers.line.refund(target.MaxPut)
		w.vm.deps.Buffers.put(w.buf, w.puts.order)
		w.buf = nil
	}
}

// releaseApplied drops from the spool what the replicas hold.
func (v *VM) releaseApplied() error {
	v.spoolGate.Lock()
	defer v.spoolGate.Unlock()
	return v.releaseShipped()
}
