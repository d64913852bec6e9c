package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/fold"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Defaults of Options, and what memory they mean: CacheBytes of decompressed
// frames, ReadAhead buffers of ChunkBytes, and per disk an index of 32 bytes for
// every changed run since the snapshot.
const (
	DefaultCacheBytes = 64 << 20
	DefaultReadAhead  = 6
	ChunkBytes        = 4 << 20
)

// Options of reading a disk. Zero values are the defaults.
type Options struct {
	CacheBytes int64 // of decompressed frames, per disk
	ReadAhead  int   // chunks read at a time when all of a disk is read
}

func (o Options) withDefaults() Options {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = DefaultReadAhead
	}
	return o
}

// Disk is a virtual disk as it was at a point. It is safe for concurrent use.
type Disk struct {
	ctx      context.Context // of Open: io.ReaderAt has none
	t        target.Target
	plan     Plan
	opts     Options
	size     int64 // bytes of the virtual disk
	base     int64 // bytes of virtual disk in the snapshot, padding included
	segments []*segment.Reader
	fold     fold.Fold
	frames   *fold.Frames
}

// Open prepares a disk of a point for reading. Nothing is pinned: see Hold. ctx
// ends all later reads too.
func Open(ctx context.Context, t target.Target, doc catalog.VMDoc, records []catalog.Record, point catalog.PointID, disk string, opts Options) (*Disk, error) {
	snapshots, err := catalog.Snapshots(ctx, t, doc.Name, disk)
	if err != nil {
		return nil, err
	}
	plan, err := MakePlan(doc, records, snapshots, point, disk)
	if err != nil {
		return nil, err
	}
	return OpenPlan(ctx, t, plan, opts)
}

// OpenPlan is Open with the decision made. It reads the indices of the segments
// and compares size, UUID, epoch and disk size with the record; their CRC is
// compared by VerifySegments.
func OpenPlan(ctx context.Context, t target.Target, plan Plan, opts Options) (*Disk, error) {
	d := &Disk{ctx: ctx, t: t, plan: plan, opts: opts.withDefaults(), size: plan.Disk.VirtualSize,
		base: max(0, plan.Snapshot.Size-image.FooterSize), segments: make([]*segment.Reader, len(plan.Segments))}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(d.opts.ReadAhead)
	for i, ref := range plan.Segments {
		g.Go(func() (err error) {
			if d.segments[i], err = d.openSegment(ctx, ref); err != nil {
				err = &SegmentError{Blob: ref.Blob, Err: err}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	d.fold = fold.Over(fold.Blocks(d.size), fold.Layers(d.segments))
	d.frames = fold.NewFrames(d.segments, d.opts.CacheBytes)
	return d, nil
}

func (d *Disk) openSegment(ctx context.Context, ref catalog.SegmentRef) (*segment.Reader, error) {
	properties, err := d.t.Properties(ctx, ref.Blob, "")
	if err != nil {
		return nil, err
	}
	if properties.Size != ref.Size {
		return nil, fmt.Errorf("%d bytes, recorded %d", properties.Size, ref.Size)
	}
	r, err := segment.Open(blob{d.ctx, d.t, ref.Blob, ref.Size}, ref.Size)
	if err != nil {
		return nil, err
	}
	h := r.Header()
	uuid := fmt.Sprintf("%x-%x-%x-%x-%x", h.UUID[:4], h.UUID[4:6], h.UUID[6:8], h.UUID[8:10], h.UUID[10:])
	id := catalog.PointID{Generation: h.Generation, Epoch: h.Epoch}
	if uuid != ref.UUID || id != ref.ID() || h.VirtualSize != ref.VirtualSize {
		return nil, fmt.Errorf("it is %s of epoch %s, disk of %d bytes; recorded %s of %s, %d bytes",
			uuid, id, h.VirtualSize, ref.UUID, ref.ID(), ref.VirtualSize)
	}
	return r, nil
}

// blob reads a page blob at any offset.
type blob struct {
	ctx  context.Context
	t    target.Target
	name string
	size int64
}

func (b blob) ReadAt(p []byte, off int64) (int, error) {
	n := min(int64(len(p)), b.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	if err := b.t.ReadPages(b.ctx, b.name, "", off, p[:n]); err != nil {
		return 0, err
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// Plan is what the disk is made of.
func (d *Disk) Plan() Plan { return d.plan }

// Size is the virtual size in bytes.
func (d *Disk) Size() int64 { return d.size }

// VerifySegments reads every segment whole and compares its CRC-64 with the
// record; the error names the segment that differs.
func (d *Disk) VerifySegments(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(d.opts.ReadAhead)
	for _, ref := range d.plan.Segments {
		g.Go(func() error {
			sum, err := d.sumBlob(ctx, ref)
			if got := catalog.FormatSum(sum); err == nil && got != ref.Sum {
				err = fmt.Errorf("CRC-64 %s, recorded %s", got, ref.Sum)
			}
			if err != nil {
				return &SegmentError{Blob: ref.Blob, Err: err}
			}
			return nil
		})
	}
	return g.Wait()
}

func (d *Disk) sumBlob(ctx context.Context, ref catalog.SegmentRef) (checksum.Sum, error) {
	buf := make([]byte, min(ref.Size, ChunkBytes))
	var sum checksum.Sum
	for off := int64(0); off < ref.Size; off += int64(len(buf)) {
		buf = buf[:min(int64(len(buf)), ref.Size-off)]
		if err := d.t.ReadPages(ctx, ref.Blob, "", off, buf); err != nil {
			return 0, err
		}
		sum = checksum.Update(sum, buf)
	}
	return sum, nil
}

// ReadAt reads the virtual disk; io.EOF at its end.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("negative offset")
	}
	n := min(int64(len(p)), d.size-off)
	if n <= 0 {
		return 0, io.EOF
	}
	for done := int64(0); done < n; {
		part, err := d.readPart(p[done:n], off+done)
		if err != nil {
			return int(done), err
		}
		done += part
	}
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// readPart reads at most a chunk, through a buffer only where p does not begin
// and end at blocks.
func (d *Disk) readPart(p []byte, off int64) (int64, error) {
	p = p[:min(int64(len(p)), ChunkBytes)]
	r := extent.Cover[extent.DiskBlock](off, int64(len(p)))
	buf := p
	if r.Bytes() != int64(len(p)) {
		buf = make([]byte, r.Bytes())
	}
	if err := d.readBlocks(d.ctx, r, buf, nil); err != nil {
		return 0, err
	}
	if len(buf) != len(p) {
		copy(p, buf[off%extent.BlockSize:])
	}
	return int64(len(p)), nil
}

// readBlocks fills p with the blocks of r. allocated lists where the snapshot
// may hold something in r, nil if that is not known.
func (d *Disk) readBlocks(ctx context.Context, r fold.Range, p []byte, allocated []target.ByteRange) error {
	clear(p)
	first := int64(r.Start) * extent.BlockSize
	name := catalog.ReplicaName(d.plan.VM, d.plan.Disk.ID)
	for _, b := range d.baseReads(r, allocated) {
		if err := d.t.ReadPages(ctx, name, d.plan.Snapshot.ID, b.Off, p[b.Off-first:b.End()-first]); err != nil {
			return fmt.Errorf("snapshot %s of %s: %w", d.plan.Snapshot.Point, d.plan.Disk.Name, err)
		}
	}
	for piece := range d.fold.Within(r) {
		part := p[int64(piece.Start)*extent.BlockSize-first : int64(piece.End)*extent.BlockSize-first]
		if piece.Segment == fold.Zeros {
			clear(part)
			continue
		}
		frame, err := d.frames.Get(piece.ID())
		if err != nil {
			return &SegmentError{Blob: d.plan.Segments[piece.Segment].Blob, Err: err}
		}
		copy(part, frame.Payload[piece.Off:])
	}
	return nil
}

// mergeBytes is the largest distance between two ranges that one request reads:
// a request costs more than the bytes between, which are zeros, or overwritten by
// pieces.
const mergeBytes = 256 << 10

// baseReads are the requests that the gaps of r take.
func (d *Disk) baseReads(r fold.Range, allocated []target.ByteRange) []target.ByteRange {
	var reads []target.ByteRange
	for gap := range d.fold.Gaps(r) {
		for _, b := range d.baseRanges(gap, allocated) {
			if last := len(reads) - 1; last >= 0 && b.Off-reads[last].End() <= mergeBytes {
				reads[last].Len = b.End() - reads[last].Off
			} else {
				reads = append(reads, b)
			}
		}
	}
	return reads
}

// baseRanges are the bytes of a gap to read from the snapshot; what lies beyond
// its end reads as zeros, its footer included.
func (d *Disk) baseRanges(gap fold.Range, allocated []target.ByteRange) []target.ByteRange {
	whole := target.ByteRange{Off: int64(gap.Start) * extent.BlockSize}
	whole.Len = min(int64(gap.End)*extent.BlockSize, d.base) - whole.Off
	if whole.Len <= 0 {
		return nil
	}
	if allocated == nil {
		return []target.ByteRange{whole}
	}
	return clip(allocated, whole)
}

// clip returns the parts of sorted ranges that lie in window.
func clip(ranges []target.ByteRange, window target.ByteRange) []target.ByteRange {
	i, _ := slices.BinarySearchFunc(ranges, window.Off, func(r target.ByteRange, off int64) int {
		if r.End() <= off {
			return -1
		}
		return 1
	})
	var parts []target.ByteRange
	for ; i < len(ranges) && ranges[i].Off < window.End(); i++ {
		start, end := max(ranges[i].Off, window.Off), min(ranges[i].End(), window.End())
		if start < end {
			parts = append(parts, target.ByteRange{Off: start, Len: end - start})
		}
	}
	return parts
}
