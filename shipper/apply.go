package shipper

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/fold"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// applyLogBytes makes an apply due before its interval: so much log is waiting.
const applyLogBytes = 1 << 30

// wakeApplyIfLarge starts an apply when the log grows.
func (v *VM) wakeApplyIfLarge() {
	if v.Status().Backlog >= applyLogBytes {
		v.apply.wake()
	}
}

// applyStep folds what is recorded into the replicas.
func (v *VM) applyStep(ctx context.Context) error {
	end := v.state.get().Recorded
	if end.IsZero() {
		return nil
	}
	if err := v.applyThrough(ctx, end); err != nil {
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
	if err := v.state.update(func(s *vmRecord) { s.ApplyEnd = end }); err != nil {
		return err
	}
	v.opts.Hook(PointBeforeApply)
	for _, d := range v.disksIn(StageComplete) {
		if err := v.applyDisk(ctx, d, end); err != nil {
			return fmt.Errorf("apply disk %s through %s: %w", d.src.Name(), end, err)
		}
	}
	v.opts.Hook(PointAfterSnapshot)
	err := v.state.update(func(s *vmRecord) { s.Applied = end })
	v.notify()
	return err
}

// applyDisk folds the segments after the replica's newest snapshot into it.
func (v *VM) applyDisk(ctx context.Context, d *disk, end catalog.PointID) error {
	key := d.state.get().Key
	snaps, err := v.snapshots(ctx, key)
	if err != nil {
		return err
	}
	var from catalog.PointID
	if len(snaps) > 0 {
		from = snaps[len(snaps)-1].Point
	}
	if !from.Less(end) {
		return nil
	}
	refs := v.segmentsOf(key, from, end)
	r, err := v.openReplica(ctx, d)
	if err != nil {
		return err
	}
	if len(refs) > 0 {
		if err := v.foldInto(ctx, r, d, refs); err != nil {
			return err
		}
	}
	v.opts.Hook(PointAfterPuts)
	return r.seal(ctx, end, catalog.KindApply)
}

// segmentsOf lists the segments of a disk that records in (from, end] name: those
// and no others (I5), oldest first.
func (v *VM) segmentsOf(key string, from, end catalog.PointID) []catalog.SegmentRef {
	v.mu.Lock()
	defer v.mu.Unlock()
	var refs []catalog.SegmentRef
	for _, r := range v.mu.records {
		if !from.Less(r.ID()) || end.Less(r.ID()) {
			continue
		}
		for _, s := range r.Segments {
			if s.DiskID == key && from.Less(s.ID()) {
				refs = append(refs, s)
			}
		}
	}
	return refs
}

// foldInto writes the newest version of every changed page.
func (v *VM) foldInto(ctx context.Context, r *replica, d *disk, refs []catalog.SegmentRef) error {
	readers, closeAll, err := v.openSegments(ctx, d, refs)
	defer closeAll()
	if err != nil {
		return err
	}
	f := fold.New(readers)
	if err := r.resize(ctx, d, f); err != nil {
		return err
	}
	p := v.newPutter(ctx, r.name, r.guard())
	w := &foldWriter{vm: v, fold: f, puts: p, limit: image.PaddedSize(f.VirtualSize)}
	return errors.Join(w.run(), p.wait())
}

// resize brings the replica to the disk's new size: clear what any size on the
// way cut off, the old footer included, and put the new footer last of it.
// Nothing between two snapshots is ever offered.
func (r *replica) resize(ctx context.Context, d *disk, f *fold.Fold) error {
	size, data := image.ReplicaSize(f.VirtualSize), r.size-image.FooterSize
	cut := min(data, int64(diskBlocks(f.Smallest))*extent.BlockSize)
	if size == r.size && cut == data {
		return nil
	}
	t := r.vm.target
	err := r.vm.once(ctx, func(ctx context.Context) error {
		if err := t.ClearPages(ctx, r.name, cut, r.size-cut, r.guard()); err != nil {
			return err
		}
		return t.Resize(ctx, r.name, size, r.guard())
	})
	if err != nil {
		return err
	}
	r.size = size
	info, _ := d.info()
	info.VirtualSize = f.VirtualSize
	return r.putFooter(ctx, info)
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
		if err != nil {
			return nil, closeAll, fmt.Errorf("segment %s: %w", ref.Blob, err)
		}
		readers = append(readers, r)
	}
	return readers, closeAll, nil
}

func (v *VM) segmentSource(ctx context.Context, d *disk, ref catalog.SegmentRef) (io.ReaderAt, io.Closer) {
	for _, m := range v.deps.Spool.Manifests() {
		if m.Generation == ref.Generation && m.Epoch == ref.Epoch {
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
	vm    *VM
	fold  *fold.Fold
	puts  *putter
	limit int64 // bytes of the replica before its footer

	buf  *[]byte // data that is being merged, nil for none
	sums []checksum.Sum
	at   DiskRange
	zero DiskRange // zeros that are being merged
}

func (w *foldWriter) run() error {
	for _, piece := range w.fold.Pieces {
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
	if end := extent.DiskBlock(w.limit / extent.BlockSize); p.Range.End > end {
		p.Range.End = max(end, p.Range.Start) // cut off by the disk's size: the resize has cleared it
	}
	if p.Range.Empty() {
		return nil
	}
	if p.Zero {
		if w.zero.End != p.Range.Start {
			w.flushZero()
			w.zero = p.Range
		}
		w.zero.End = p.Range.End
		return nil
	}
	for start := p.Range.Start; start < p.Range.End; {
		part := p
		part.Range = DiskRange{Start: start, End: min(p.Range.End, start+strideBlocks)}
		taken, err := w.data(part)
		if err != nil {
			return err
		}
		start += extent.DiskBlock(taken)
	}
	return nil
}

// data appends as much of a piece as fits behind what is being merged.
func (w *foldWriter) data(p fold.Piece) (blocks int64, err error) {
	if w.buf != nil && (w.at.End != p.Range.Start || w.at.Len() == strideBlocks) {
		w.flushData()
	}
	if w.buf == nil {
		if w.buf, err = w.vm.deps.Buffers.get(w.puts.ctx); err != nil {
			return 0, err
		}
		w.at = DiskRange{Start: p.Range.Start, End: p.Range.Start}
		w.sums = nil
	}
	n := min(p.Range.Len(), strideBlocks-w.at.Len())
	p.Range.End = p.Range.Start + extent.DiskBlock(n)
	sums := make([]checksum.Sum, n)
	if err := w.fold.Read(p, (*w.buf)[w.at.Bytes():][:p.Range.Bytes()], sums); err != nil {
		return 0, err
	}
	w.sums = append(w.sums, sums...)
	w.at.End = p.Range.End
	return n, nil
}

func (w *foldWriter) flushData() {
	if w.buf == nil {
		return
	}
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
		w.vm.deps.Buffers.put(w.buf)
		w.buf = nil
	}
}

// releaseApplied drops from the spool what the replicas hold.
func (v *VM) releaseApplied() error {
	v.spoolGate.Lock()
	defer v.spoolGate.Unlock()
	return v.releaseShipped()
}
