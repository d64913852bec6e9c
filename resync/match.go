package resync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Learner is a table whose unknown entries are found out: checksum.Table with its
// watch is one.
type Learner interface {
	Table
	// Watch begins before a block is read. Learn then enters checksums for those
	// blocks that are unknown and were not forgotten since (sums nil: zeros).
	Watch() *checksum.Watch
	Sync() error
}

// MatchDeps is what source × target works on.
type MatchDeps struct {
	Source  io.ReaderAt // the image; past its end it is zeros
	Layout  Layout
	Table   Learner
	Replica Replica
	Passed  func(extent.DiskBlock) error // as in DeepDeps; everything before is durable
}

// Match fills a table that knows nothing from a replica that exists already, by
// comparing it with the source: what the two have in common becomes known, and is
// not sent again. What differs stays unknown and goes with the next captures.
type Match struct {
	gate
	deps   MatchDeps
	opts   Options
	remote remote
	holes  holes

	total, compared, differing, skipped atomic.Int64
	since                               int64 // bytes since the table was synced; finish's
}

// NewMatch returns a comparison that has not begun.
func NewMatch(deps MatchDeps, opts Options) *Match {
	m := &Match{gate: gate{yield: opts.Yield}, deps: deps, opts: opts}
	m.remote.Replica = deps.Replica
	m.holes.remote = &m.remote
	return m
}

// Report may be asked for at any time. Differing counts what is to be sent.
func (m *Match) Report() DeepReport {
	return DeepReport{Cost: m.remote.cost(), Skipped: m.skipped.Load(),
		Progress: Progress{Total: m.total.Load(), Compared: m.compared.Load(), Differing: m.differing.Load()}}
}

// matchJob is one stride of the disk.
type matchJob struct {
	disk               diskRange
	hole               bool
	differing, skipped int64 // blocks
}

// matchSync bounds what an interruption makes it compare again, in bytes.
const matchSync = 256 << 20

// Run matches from a block to the end of the disk. No goroutine outlives it.
func (m *Match) Run(ctx context.Context, from extent.DiskBlock) (DeepReport, error) {
	end := min(m.deps.Table.Blocks(), m.deps.Layout.Disk().End)
	m.total.Add(max(0, int64(end-from)) * extent.BlockSize)
	l := line[*matchJob]{
		gate: &m.gate, workers: deepWorkers, depth: 2 * deepWorkers, finish: m.finish,
		bytes: func(j *matchJob) int64 { return j.disk.Bytes() },
		worker: func() func(context.Context, *matchJob) error {
			w := &matchWorker{match: m, ladder: ladder{remote: &m.remote}, buf: make([]byte, deepStride)}
			return w.compare
		},
	}
	var listed error
	err := l.run(ctx, m.strides(ctx, from, end, &listed))
	if err = errors.Join(listed, err, m.deps.Table.Sync()); err != nil {
		err = fmt.Errorf("matching the source with the target: %w", err)
	} else if m.deps.Passed != nil {
		m.opts.at(PointBeforeMatched)
		err = m.deps.Passed(end)
	}
	return m.Report(), err
}

func (m *Match) strides(ctx context.Context, from, end extent.DiskBlock, failed *error) iter.Seq[*matchJob] {
	return func(yield func(*matchJob) bool) {
		for j := range diskStrides(from, end, func(r diskRange) *matchJob { return &matchJob{disk: r} }) {
			if j.hole, *failed = m.holes.empty(ctx, j.disk, end); *failed != nil || !yield(j) {
				return
			}
		}
	}
}

func (m *Match) finish(j *matchJob) error {
	m.differing.Add(j.differing * extent.BlockSize)
	m.skipped.Add(j.skipped * extent.BlockSize)
	m.compared.Add(j.disk.Bytes())
	if m.since += j.disk.Bytes(); m.since < matchSync || m.deps.Passed == nil {
		return nil
	}
	m.since = 0
	if err := m.deps.Table.Sync(); err != nil {
		return err
	}
	m.opts.at(PointBeforeMatched)
	return m.deps.Passed(j.disk.End)
}

// matchWorker is one worker with its memory.
type matchWorker struct {
	match *Match
	ladder
	buf     []byte
	sums    []checksum.Sum
	entries []checksum.Entry
}

func (w *matchWorker) compare(ctx context.Context, j *matchJob) error {
	deps := w.match.deps
	watch := deps.Table.Watch()
	defer watch.Close()
	open, err := w.open(ctx, j.disk)
	if err != nil {
		return err
	}
	j.skipped = j.disk.Len() - open.Blocks()
	if open.Empty() {
		return nil
	}
	if w.sums, err = readSource(deps.Source, deps.Layout, j.disk, w.buf, w.sums[:0]); err != nil {
		return fmt.Errorf("reading disk blocks %v: %w", j.disk, err)
	}
	found, err := w.look(ctx, j.disk, j.hole, open, w.sums)
	if err != nil {
		return err
	}
	j.differing = found.Blocks()
	for _, run := range open.Subtract(found).Ranges() {
		if err := watch.Learn(run, w.sums[run.Start-j.disk.Start:run.End-j.disk.Start]); err != nil {
			return err
		}
	}
	return nil
}

// open are the blocks of r that nothing is known of, and that no later epoch carries.
func (w *matchWorker) open(ctx context.Context, r diskRange) (open diskSet, err error) {
	if w.entries, err = w.match.deps.Table.Entries(r, w.entries[:0]); err != nil {
		return open, err
	}
	for i, e := range w.entries {
		if b := r.Start + extent.DiskBlock(i); !e.Known {
			open.Add(diskRange{Start: b, End: b + 1})
		}
	}
	carried, err := w.match.deps.Replica.Carried(ctx)
	if err != nil {
		return open, fmt.Errorf("what later epochs carry: %w", err)
	}
	return open.Subtract(carried), nil
}
