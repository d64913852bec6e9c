package restore

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/fold"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// windowBytes is how much of the snapshot one call of Ranges asks about, and the
// longest run of zeros handed on at once.
const windowBytes = 256 << 20

// run is a part of the disk in whole blocks, handed on in order.
type run struct {
	off, n int64
	data   []byte // nil: zeros
	ready  chan error
}

// stream reads the disk from a byte offset, a multiple of the block size, to the
// end of its last block, ReadAhead chunks at a time, and hands it to sink in
// order. data is valid during the call.
func (d *Disk) stream(ctx context.Context, from int64, sink func(*run) error) error {
	g, ctx := errgroup.WithContext(ctx)
	buffers := make(chan []byte, d.opts.ReadAhead)
	for range d.opts.ReadAhead {
		buffers <- nil // made when first used
	}
	queue := make(chan *run, d.opts.ReadAhead)
	g.Go(func() error {
		defer close(queue)
		return d.produce(ctx, g, from, buffers, queue)
	})
	g.Go(func() error {
		for r := range queue {
			if err := <-r.ready; err != nil {
				return err
			}
			if err := sink(r); err != nil {
				return err
			}
			if r.data != nil {
				buffers <- r.data[:cap(r.data)]
			}
		}
		return nil
	})
	return g.Wait()
}

// produce cuts the disk into runs and starts a reader for each that is not zero.
func (d *Disk) produce(ctx context.Context, g *errgroup.Group, from int64, buffers chan []byte, queue chan<- *run) error {
	end := int64(fold.Blocks(d.size)) * extent.BlockSize
	for off := from; off < end; off += windowBytes {
		window := target.ByteRange{Off: off, Len: min(windowBytes, end-off)}
		allocated, err := d.allocated(ctx, window)
		if err != nil {
			return err
		}
		for r := range d.runs(window, allocated) {
			if err := d.start(ctx, g, r, allocated, buffers); err != nil {
				return err
			}
			select {
			case queue <- r:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return nil
}

// allocated asks where the snapshot holds something; never nil without an error.
func (d *Disk) allocated(ctx context.Context, window target.ByteRange) ([]target.ByteRange, error) {
	none := []target.ByteRange{}
	n := min(window.End(), d.base, int64(d.fold.Limit)*extent.BlockSize) - window.Off
	if n <= 0 {
		return none, nil
	}
	name := catalog.ReplicaName(d.plan.VM, d.plan.Disk.ID)
	ranges, err := d.t.Ranges(ctx, name, d.plan.Snapshot.ID, window.Off, n)
	return append(none, ranges...), err
}

// runs cuts a window into chunks; neighbouring chunks of zeros are one run.
func (d *Disk) runs(window target.ByteRange, allocated []target.ByteRange) func(func(*run) bool) {
	return func(yield func(*run) bool) {
		hole := &run{}
		for off := window.Off; off < window.End(); off += ChunkBytes {
			chunk := &run{off: off, n: min(ChunkBytes, window.End()-off), ready: make(chan error, 1)}
			if d.isHole(chunk, allocated) {
				if hole.n == 0 {
					hole = chunk
					hole.ready <- nil
				} else {
					hole.n += chunk.n
				}
				continue
			}
			if hole.n > 0 && !yield(hole) {
				return
			}
			hole = &run{}
			chunk.data = []byte{}
			if !yield(chunk) {
				return
			}
		}
		if hole.n > 0 {
			yield(hole)
		}
	}
}

func (d *Disk) isHole(r *run, allocated []target.ByteRange) bool {
	cover := extent.Cover[extent.DiskBlock](r.off, r.n)
	for p := range d.fold.Within(cover) {
		if p.Segment != fold.Zeros {
			return false
		}
	}
	for gap := range d.fold.Gaps(cover) {
		if len(d.baseRanges(gap, allocated)) > 0 {
			return false
		}
	}
	return true
}

// start reads a run in the background, once a buffer is free.
func (d *Disk) start(ctx context.Context, g *errgroup.Group, r *run, allocated []target.ByteRange, buffers <-chan []byte) error {
	if r.data == nil {
		return nil
	}
	var buf []byte
	select {
	case buf = <-buffers:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if buf == nil {
		buf = make([]byte, ChunkBytes)
	}
	r.data = buf[:r.n]
	g.Go(func() error {
		err := d.readBlocks(ctx, extent.Cover[extent.DiskBlock](r.off, r.n), r.data, allocated)
		if end := d.size - r.off; end < r.n {
			clear(r.data[max(0, end):]) // the last block's tail is no part of the disk
		}
		r.ready <- err
		return err
	})
	return nil
}

// Progress is told how many of the disk's bytes are done.
type Progress func(done, total int64)

// Verify reads every byte, proves every segment and compares the disk's CRC-64
// with the record: a *DiffersError if it is another.
func (d *Disk) Verify(ctx context.Context, progress Progress) error {
	if err := d.VerifySegments(ctx); err != nil {
		return err
	}
	var sum checksum.Sum
	err := d.stream(ctx, 0, func(r *run) error {
		sum = extend(sum, r)
		if progress != nil {
			progress(min(r.off+r.n, d.size), d.size)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return d.compare(sum)
}

// extend adds a run to the checksum of everything before it.
func extend(sum checksum.Sum, r *run) checksum.Sum {
	if r.data == nil {
		return checksum.Combine(sum, checksum.Zeros(r.n), r.n)
	}
	return checksum.Update(sum, r.data)
}

func (d *Disk) compare(got checksum.Sum) error {
	want, err := catalog.ParseSum(d.plan.Disk.Sum)
	if err != nil {
		return err
	}
	if got != want {
		return &DiffersError{VM: d.plan.VM, Disk: d.plan.Disk.Name, Point: d.plan.Point, Want: want, Got: got}
	}
	return nil
}
