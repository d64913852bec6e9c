package resync

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// DeepDeps is what target × table works on.
type DeepDeps struct {
	Replica Replica
	Table   Table
	// Forget makes entries durably unknown: the next capture carries those blocks,
	// whatever the source says (I8: that is all a comparison does).
	Forget func(...diskRange) error
	// Passed says that everything before the block was compared. In order; nil: nobody
	// wants to know.
	Passed func(extent.DiskBlock) error
}

// DeepReport is the result of a run of Deep or Match.
type DeepReport struct {
	Progress
	Cost
	Skipped int64 // bytes that could not be judged: carried by later epochs, or unknown
}

// Deep compares a frozen state of the target with the table (target × table),
// block by block of what the table says the target must hold.
type Deep struct {
	gate
	deps   DeepDeps
	opts   Options
	remote remote
	holes  holes

	total, compared, differing, skipped atomic.Int64
}

// NewDeep returns a comparison that has not begun.
func NewDeep(deps DeepDeps, opts Options) *Deep {
	d := &Deep{gate: gate{yield: opts.Yield}, deps: deps, opts: opts}
	d.remote.Replica = deps.Replica
	d.holes.remote = &d.remote
	return d
}

// Report may be asked for at any time.
func (d *Deep) Report() DeepReport {
	return DeepReport{Cost: d.remote.cost(), Skipped: d.skipped.Load(),
		Progress: Progress{Total: d.total.Load(), Compared: d.compared.Load(), Differing: d.differing.Load()}}
}

// deepJob is one stride of the disk.
type deepJob struct {
	disk    diskRange
	hole    bool
	found   diskSet
	skipped int64 // blocks
}

// Run compares from a block to the end of the table. Differences are durably
// unknown when it returns without an error, those before the last Passed in any
// case. No goroutine outlives it.
func (d *Deep) Run(ctx context.Context, from extent.DiskBlock) (DeepReport, error) {
	end := d.deps.Table.Blocks()
	d.total.Add(max(0, int64(end-from)) * extent.BlockSize)
	l := line[*deepJob]{
		gate: &d.gate, workers: deepWorkers, depth: 2 * deepWorkers, finish: d.finish,
		bytes: func(j *deepJob) int64 { return j.disk.Bytes() },
		worker: func() func(context.Context, *deepJob) error {
			w := &deepWorker{deep: d, ladder: ladder{remote: &d.remote}}
			return w.compare
		},
	}
	var listed error
	err := l.run(ctx, d.strides(ctx, from, end, &listed))
	if err = errors.Join(listed, err); err != nil {
		err = fmt.Errorf("comparing the target with the table: %w", err)
	}
	return d.Report(), err
}

// strides yields the strides and says of each whether the target has a hole there.
func (d *Deep) strides(ctx context.Context, from, end extent.DiskBlock, failed *error) iter.Seq[*deepJob] {
	return func(yield func(*deepJob) bool) {
		for j := range diskStrides(from, end, func(r diskRange) *deepJob { return &deepJob{disk: r} }) {
			if j.hole, *failed = d.holes.empty(ctx, j.disk, end); *failed != nil || !yield(j) {
				return
			}
		}
	}
}

func (d *Deep) finish(j *deepJob) error {
	if !j.found.Empty() {
		d.opts.at(PointBeforeForget)
		if err := d.deps.Forget(j.found.Ranges()...); err != nil {
			return fmt.Errorf("making entries unknown: %w", err)
		}
		d.opts.at(PointAfterForget)
	}
	d.differing.Add(j.found.Blocks() * extent.BlockSize)
	d.skipped.Add(j.skipped * extent.BlockSize)
	d.compared.Add(j.disk.Bytes())
	if d.deps.Passed == nil {
		return nil
	}
	return d.deps.Passed(j.disk.End)
}

// deepWorker is one worker with its memory.
type deepWorker struct {
	deep *Deep
	ladder
	want    []checksum.Sum
	entries []checksum.Entry
}

func (w *deepWorker) compare(ctx context.Context, j *deepJob) error {
	runs, err := w.expected(ctx, j.disk)
	if err != nil {
		return err
	}
	j.skipped = j.disk.Len() - runs.Blocks()
	found, err := w.look(ctx, j.disk, j.hole, runs, w.want)
	if err != nil || found.Empty() {
		return err
	}
	// Once more before anything is flagged: an entry may be of an epoch that was
	// given up since, and a byte may have been damaged on the way to us only.
	if runs, err = w.expected(ctx, j.disk); err != nil {
		return err
	}
	j.found, err = w.look(ctx, j.disk, j.hole, found.Intersect(runs), w.want)
	return err
}

// expected reads the entries of r into want and returns the blocks that can be
// judged by them. What later epochs carry is asked for after the entries were
// read: an entry of such an epoch is then among it.
func (w *deepWorker) expected(ctx context.Context, r diskRange) (runs diskSet, err error) {
	w.want, w.entries = w.want[:0], w.entries[:0]
	known := r.Intersect(diskRange{End: w.deep.deps.Table.Blocks()})
	if !known.Empty() {
		if w.entries, err = w.deep.deps.Table.Entries(known, w.entries); err != nil {
			if errors.Is(err, checksum.ErrRange) {
				return runs, nil // it shrank in between: what is left is carried by that epoch
			}
			return runs, err
		}
	}
	for i, e := range w.entries {
		w.want = append(w.want, e.Sum)
		if b := r.Start + extent.DiskBlock(i); e.Known {
			runs.Add(diskRange{Start: b, End: b + 1})
		}
	}
	for int64(len(w.want)) < r.Len() {
		w.want = append(w.want, 0)
	}
	carried, err := w.deep.deps.Replica.Carried(ctx)
	if err != nil {
		return runs, fmt.Errorf("what later epochs carry: %w", err)
	}
	return runs.Subtract(carried), nil
}
