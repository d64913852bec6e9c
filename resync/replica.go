package resync

import (
	"context"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

type diskSet = extent.Set[extent.DiskBlock]

const (
	deepStride  = 4 << 20 // bytes that one checksum of the target is asked for first
	deepWorkers = 8       // requests in flight: a page blob is at its own limit with 8 to 16
	mostRuns    = 4       // runs of one chunk that a checksum each is asked for; beyond, it is read back

	strideBlocks = deepStride / extent.BlockSize
)

// Replica is a disk at the target, frozen: a snapshot.
type Replica interface {
	// Sum is the CRC-64 of a range, computed where the bytes are; false: this
	// target computes none.
	Sum(ctx context.Context, r diskRange) (checksum.Sum, bool, error)
	// Read fills p with the blocks of r, which come over the network.
	Read(ctx context.Context, r diskRange, p []byte) error
	// Allocated lists where in r there may be something but zeros. It may be coarser,
	// never finer.
	Allocated(ctx context.Context, r diskRange) (diskSet, error)
	// Carried lists the blocks that epochs after the frozen state carry, up to now:
	// of those the replica is known to be old.
	Carried(ctx context.Context) (diskSet, error)
}

// Cost is what a comparison asked of the target.
type Cost struct {
	Sums       int64 // checksums computed by the target
	Reads      int64 // requests that read back
	Downloaded int64 // bytes read back
}

// remote counts what is asked of a replica.
type remote struct {
	Replica
	sums, reads, downloaded atomic.Int64
	noSums                  atomic.Bool
}

func (r *remote) cost() Cost {
	return Cost{Sums: r.sums.Load(), Reads: r.reads.Load(), Downloaded: r.downloaded.Load()}
}

// equals asks whether the blocks of run have these checksums together. False also
// where the target computes none.
func (r *remote) equals(ctx context.Context, run diskRange, sums []checksum.Sum) (bool, error) {
	if r.noSums.Load() {
		return false, nil
	}
	r.sums.Add(1)
	got, ok, err := r.Sum(ctx, run)
	if err != nil {
		return false, fmt.Errorf("checksum of disk blocks %v: %w", run, err)
	}
	if !ok {
		r.noSums.Store(true)
		return false, nil
	}
	return got == checksum.CombineBlocks(sums), nil
}

// read returns the checksums of the blocks of run, read back.
func (r *remote) read(ctx context.Context, run diskRange, p []byte, dst []checksum.Sum) ([]checksum.Sum, error) {
	p = p[:run.Bytes()]
	r.reads.Add(1)
	r.downloaded.Add(run.Bytes())
	if err := r.Read(ctx, run, p); err != nil {
		return dst, fmt.Errorf("reading back disk blocks %v: %w", run, err)
	}
	return checksum.Blocks(dst, p), nil
}

// ladder finds the blocks of a stride whose checksums at the target are not the
// wanted ones: the whole stride, then its chunks, then blocks read back.
type ladder struct {
	remote *remote
	page   []byte
	got    []checksum.Sum
}

// look is differing, and asks the target nothing where it has a hole.
func (l *ladder) look(ctx context.Context, r diskRange, hole bool, runs diskSet, want []checksum.Sum) (diskSet, error) {
	if !hole {
		return l.differing(ctx, r, runs, want)
	}
	var found diskSet
	for _, run := range runs.Ranges() {
		for b := run.Start; b < run.End; b++ {
			if want[b-r.Start] != checksum.ZeroBlock {
				found.Add(diskRange{Start: b, End: b + 1})
			}
		}
	}
	return found, nil
}

// differing returns the blocks of r that are in runs and not as want (of r, by
// block) says. Only the chunks that differ are read back.
func (l *ladder) differing(ctx context.Context, r diskRange, runs diskSet, want []checksum.Sum) (diskSet, error) {
	var found diskSet
	if runs.Empty() {
		return found, nil
	}
	if runs.Contains(r) {
		same, err := l.remote.equals(ctx, r, want)
		if same || err != nil {
			return found, err
		}
	}
	for chunk := range r.Split(extent.BlocksPerChunk) {
		if err := l.chunk(ctx, chunk, runs, want[chunk.Start-r.Start:chunk.End-r.Start], &found); err != nil {
			return found, err
		}
	}
	return found, nil
}

func (l *ladder) chunk(ctx context.Context, chunk diskRange, runs diskSet, want []checksum.Sum, found *diskSet) error {
	inside := runs.Intersect(extent.Of(chunk)).Ranges()
	if len(inside) > mostRuns {
		return l.readBack(ctx, diskRange{Start: inside[0].Start, End: inside[len(inside)-1].End}, chunk, runs, want, found)
	}
	for _, run := range inside {
		same, err := l.remote.equals(ctx, run, want[run.Start-chunk.Start:run.End-chunk.Start])
		if err == nil && !same {
			err = l.readBack(ctx, run, chunk, runs, want, found)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *ladder) readBack(ctx context.Context, run, chunk diskRange, runs diskSet, want []checksum.Sum, found *diskSet) (err error) {
	if l.page == nil {
		l.page = make([]byte, extent.ChunkSize)
	}
	if l.got, err = l.remote.read(ctx, run, l.page, l.got[:0]); err != nil {
		return err
	}
	for i, got := range l.got {
		b := run.Start + extent.DiskBlock(i)
		if one := (diskRange{Start: b, End: b + 1}); got != want[b-chunk.Start] && runs.Contains(one) {
			found.Add(one)
		}
	}
	return nil
}

// holes remembers what of a large stretch is allocated, so that a sparse disk
// costs a request now and then and not one a stride. One goroutine uses it.
type holes struct {
	remote *remote
	known  diskRange
	set    diskSet
}

// holesStep is how much one list of allocated ranges covers, in blocks: 1 GiB.
const holesStep = 1 << 30 / extent.BlockSize

// empty tells whether nothing of r is allocated. end is the end of the disk.
func (h *holes) empty(ctx context.Context, r diskRange, end extent.DiskBlock) (bool, error) {
	if r.Start < h.known.Start || r.End > h.known.End {
		next := diskRange{Start: r.Start, End: min(end, max(r.End, r.Start+holesStep))}
		set, err := h.remote.Allocated(ctx, next)
		if err != nil {
			return false, fmt.Errorf("what is allocated of disk blocks %v: %w", next, err)
		}
		h.known, h.set = next, set
	}
	return !h.set.Overlaps(r), nil
}

// diskStrides yields the strides from a block to the end.
func diskStrides[T any](from, end extent.DiskBlock, item func(diskRange) T) iter.Seq[T] {
	return func(yield func(T) bool) {
		for piece := range (diskRange{Start: from, End: end}).Split(strideBlocks) {
			if !yield(item(piece)) {
				return
			}
		}
	}
}
