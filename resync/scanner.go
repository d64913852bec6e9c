package resync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

type (
	fileRange = extent.Range[extent.FileBlock]
	diskRange = extent.Range[extent.DiskBlock]
)

const (
	stride  = extent.ChunkSize // bytes of one read
	workers = 2                // one reads while the other computes, and reads ahead
	depth   = 2 * workers      // strides in the pipeline
)

// Source is the disk image that may differ. It is only read (I8). Guest writes
// go on during a comparison; the source tracks those itself.
type Source interface {
	// ReadAt reads at a byte offset of the image file; past the end it returns
	// io.EOF, and the rest counts as zeros.
	io.ReaderAt
	// Suspect returns what is still to be compared.
	Suspect() []fileRange
	// Mark puts blocks that differ into the current change set.
	Mark(fileRange)
	// Compared says that r need not be compared again. It is called in increasing
	// order of the list that Suspect returned, after every Mark inside r.
	Compared(r fileRange) error
}

// Table is the model of the target: checksum.Table is one.
type Table interface {
	Blocks() extent.DiskBlock
	Entries(r diskRange, dst []checksum.Entry) ([]checksum.Entry, error)
}

// Layout converts between the file and the virtual disk in it; image.Layout is
// one. The disk blocks of a stretch of the file must be one stretch as well.
type Layout interface {
	Disk() diskRange
	DiskBlocks(fileRange) diskRange // clipped to the disk
	FileBlocks(diskRange) fileRange
	TailBytes() int // how much of the disk's last block belongs to the disk
}

// Deps is what a comparison works on.
type Deps struct {
	Source Source
	Table  Table
	Layout Layout
}

// Options of a comparison.
type Options struct {
	// Reason says why the comparison runs; for people, and passed through.
	Reason string
	// Yield, if set, is called before each read with its length in bytes. It
	// returns when the comparison may go on: guest I/O comes first. An error ends
	// the run.
	Yield func(ctx context.Context, n int) error
}

// Progress is how far a comparison is, in bytes. Compared counts what need not
// be compared again, metadata and space outside the disk included, so that it
// ends at Total.
type Progress struct {
	Total, Compared int64
	// Differing bytes are those whose checksum is not the table's: the ones marked
	// and the Unknown ones, which a capture takes anyway.
	Differing, Unknown int64
}

// Report is the result of a run.
type Report struct {
	Reason string
	Progress
	// Remaining bytes are suspect after the run: what it did not reach, or what
	// became suspect meanwhile. A new run compares them.
	Remaining int64
}

// Scanner compares the suspect part of a source with the table (source ×
// table): it reads at the speed of the disk, downloads nothing, and puts what
// differs into the change set.
type Scanner struct {
	deps Deps
	opts Options

	total, compared, differing, unknown atomic.Int64

	// mu guards the gate that a paused run waits at; no I/O under it.
	mu struct {
		sync.Mutex
		gate chan struct{} // closed by Resume; nil while not paused
	}
}

// New returns a comparison that has not begun.
func New(deps Deps, opts Options) *Scanner { return &Scanner{deps: deps, opts: opts} }

// Progress may be called at any time.
func (s *Scanner) Progress() Progress {
	return Progress{
		Total:     s.total.Load(),
		Compared:  s.compared.Load(),
		Differing: s.differing.Load(),
		Unknown:   s.unknown.Load(),
	}
}

// Pause holds the comparison after the reads under way, until Resume.
func (s *Scanner) Pause() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.gate == nil {
		s.mu.gate = make(chan struct{})
	}
}

// Resume lets a paused comparison go on.
func (s *Scanner) Resume() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.gate != nil {
		close(s.mu.gate)
		s.mu.gate = nil
	}
}

// Paused says whether the comparison is held.
func (s *Scanner) Paused() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.gate != nil
}

// wait returns when the comparison may read n more bytes.
func (s *Scanner) wait(ctx context.Context, n int64) error {
	for {
		s.mu.Lock()
		gate := s.mu.gate
		s.mu.Unlock()
		if gate == nil {
			break
		}
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.opts.Yield != nil {
		return s.opts.Yield(ctx, int(n))
	}
	return nil
}

// job is one stride on its way through the pipeline.
type job struct {
	file      fileRange
	differing []fileRange // to be marked
	unknown   int64       // blocks
	err       error
	done      chan struct{} // closed when the fields above are final
}

// Run compares everything Suspect lists at its start, once. It returns with the
// first error, or with ctx's when that is done; what was not reached is still
// suspect then, and another Run (of a new Scanner: the counters do not start
// again) takes it up. No goroutine outlives it.
func (s *Scanner) Run(ctx context.Context) (Report, error) {
	err := s.pass(ctx, s.deps.Source.Suspect())
	report := Report{Reason: s.opts.Reason, Progress: s.Progress()}
	for _, r := range s.deps.Source.Suspect() {
		report.Remaining += r.Bytes()
	}
	if err != nil {
		return report, fmt.Errorf("comparing the source with the table: %w", err)
	}
	return report, nil
}

func (s *Scanner) pass(ctx context.Context, suspect []fileRange) error {
	for _, r := range suspect {
		s.total.Add(r.Bytes())
	}
	jobs := make(chan *job, depth)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { s.work(jobs) })
	}
	defer wg.Wait()
	defer close(jobs)

	next, stop := iter.Pull(strides(suspect))
	defer stop()
	var queue []*job
	for more := true; ; {
		// A paused run first hands over what it has read.
		for more && len(queue) < depth && !(s.Paused() && len(queue) > 0) {
			var r fileRange
			if r, more = next(); !more {
				break
			}
			if err := s.wait(ctx, r.Bytes()); err != nil {
				return err
			}
			j := &job{file: r, done: make(chan struct{})}
			queue = append(queue, j)
			jobs <- j
		}
		if len(queue) == 0 {
			return nil
		}
		<-queue[0].done
		if err := s.finish(queue[0]); err != nil {
			return err
		}
		queue = queue[1:]
	}
}

// strides yields what is to be read at a time.
func strides(suspect []fileRange) iter.Seq[fileRange] {
	return func(yield func(fileRange) bool) {
		for _, r := range suspect {
			for piece := range r.Split(extent.BlocksPerChunk) {
				if !yield(piece) {
					return
				}
			}
		}
	}
}

// finish hands the result of a stride over, in order: first what differs, then
// that it was compared (I4).
func (s *Scanner) finish(j *job) error {
	if j.err != nil {
		return j.err
	}
	differing := j.unknown
	for _, r := range j.differing {
		s.deps.Source.Mark(r)
		differing += r.Len()
	}
	s.differing.Add(differing * extent.BlockSize)
	s.unknown.Add(j.unknown * extent.BlockSize)
	if err := s.deps.Source.Compared(j.file); err != nil {
		return fmt.Errorf("recording file blocks %v as compared: %w", j.file, err)
	}
	s.compared.Add(j.file.Bytes())
	return nil
}

func (s *Scanner) work(jobs <-chan *job) {
	c := comparer{deps: s.deps, buf: make([]byte, stride)}
	for j := range jobs {
		j.err = c.compare(j)
		close(j.done)
	}
}

// comparer is one worker with its memory.
type comparer struct {
	deps    Deps
	buf     []byte
	sums    []checksum.Sum
	entries []checksum.Entry
}

// compare reads and judges one stride.
func (c *comparer) compare(j *job) error {
	disk := c.deps.Layout.DiskBlocks(j.file)
	if disk.Empty() {
		return nil // metadata: every capture reads it
	}
	file := c.deps.Layout.FileBlocks(disk)
	if err := c.read(file, disk); err != nil {
		return fmt.Errorf("reading file blocks %v: %w", file, err)
	}
	if err := c.lookUp(disk); err != nil {
		return fmt.Errorf("looking up disk blocks %v: %w", disk, err)
	}
	c.judge(j, file)
	return nil
}

// read leaves the checksums of the blocks in c.sums.
func (c *comparer) read(file fileRange, disk diskRange) error {
	p := c.buf[:file.Bytes()]
	n, err := c.deps.Source.ReadAt(p, file.Offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if last := c.deps.Layout.Disk().End; disk.End == last {
		// What shares the last block with the disk, a footer, is none of it.
		n = min(n, len(p)-extent.BlockSize+c.deps.Layout.TailBytes())
	}
	clear(p[n:])
	c.sums = checksum.Blocks(c.sums[:0], p)
	return nil
}

// lookUp leaves the table's entries in c.entries. Past the end of the table are
// the zeros that a grown disk begins with.
func (c *comparer) lookUp(disk diskRange) error {
	for {
		blocks := c.deps.Table.Blocks()
		known := disk.Intersect(diskRange{End: blocks})
		c.entries = c.entries[:0]
		if !known.Empty() {
			var err error
			c.entries, err = c.deps.Table.Entries(known, c.entries)
			if errors.Is(err, checksum.ErrRange) && c.deps.Table.Blocks() != blocks {
				continue // resized in between
			}
			if err != nil {
				return err
			}
		}
		for int64(len(c.entries)) < disk.Len() {
			c.entries = append(c.entries, checksum.Entry{Sum: checksum.ZeroBlock, Known: true})
		}
		return nil
	}
}

// judge compares the two and collects the runs of blocks that differ.
func (c *comparer) judge(j *job, file fileRange) {
	for i, e := range c.entries {
		b := file.Start + extent.FileBlock(i)
		switch last := len(j.differing) - 1; {
		case !e.Known:
			j.unknown++
		case e.Sum == c.sums[i]:
		case last >= 0 && j.differing[last].End == b:
			j.differing[last].End++
		default:
			j.differing = append(j.differing, fileRange{Start: b, End: b + 1})
		}
	}
}
