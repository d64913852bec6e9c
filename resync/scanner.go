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

type (
	fileRange = extent.Range[extent.FileBlock]
	diskRange = extent.Range[extent.DiskBlock]
	fileSet   = extent.Set[extent.FileBlock]
)

const (
	stride  = extent.ChunkSize // bytes of one read
	workers = 2                // one reads while the other computes
	depth   = 4 * workers      // strides in the pipeline; those that no worker has yet are read ahead
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

// ReadAhead is a Source that can begin to read before it is asked: the next ReadAt calls are for [off, off+n) of the
// file, among others. It does not wait for the disk if it can help it, and has nothing to report: the read itself tells.
type ReadAhead interface{ ReadAhead(off, n int64) }

// Table is the model of the target: checksum.Table is one.
type Table interface {
	Blocks() extent.DiskBlock
	Entries(r diskRange, dst []checksum.Entry) ([]checksum.Entry, error)
}

// Layout converts between the file and the virtual disk in it; image.Layout is
// one. Of a translated image it is the block table that the newest capture read:
// what the table has elsewhere by now, the next one finds by comparing tables.
type Layout interface {
	Disk() diskRange
	DiskBlocks(fileRange) diskSet // of which a byte lies there; clipped to the disk
	FileBlocks(diskRange) fileSet // that hold the data; clipped to the disk
	CutOff(fileRange) fileRange   // what lies beyond the disk's end
	Metadata() []fileRange        // what every capture reads
	// ReadDisk reads blocks of the disk from its image. What the file does not have
	// and what is no part of the disk are zeros.
	ReadDisk(image io.ReaderAt, r diskRange, p []byte) error
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
	// Hook is called at every point of Points; nil: not.
	Hook func(point string)
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
	gate
	deps Deps
	opts Options

	total, compared, differing, unknown atomic.Int64
}

// New returns a comparison that has not begun.
func New(deps Deps, opts Options) *Scanner {
	return &Scanner{gate: gate{yield: opts.Yield}, deps: deps, opts: opts}
}

// Progress may be called at any time.
func (s *Scanner) Progress() Progress {
	return Progress{
		Total:     s.total.Load(),
		Compared:  s.compared.Load(),
		Differing: s.differing.Load(),
		Unknown:   s.unknown.Load(),
	}
}

// scanned is one stride of the source.
type scanned struct {
	file      fileRange
	differing []fileRange // to be marked
	unknown   int64       // blocks
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
	l := line[*scanned]{
		gate: &s.gate, workers: workers, depth: depth, finish: s.finish,
		bytes: func(j *scanned) int64 { return j.file.Bytes() },
		worker: func() func(context.Context, *scanned) error {
			c := &comparer{deps: s.deps, buf: make([]byte, stride)}
			return func(_ context.Context, j *scanned) error { return c.compare(j) }
		},
	}
	if src, ok := s.deps.Source.(ReadAhead); ok {
		l.ahead = func(j *scanned) { src.ReadAhead(j.file.Offset(), j.file.Bytes()) }
	}
	return l.run(ctx, strides(suspect))
}

// strides yields what is to be read at a time.
func strides(suspect []fileRange) iter.Seq[*scanned] {
	return func(yield func(*scanned) bool) {
		for _, r := range suspect {
			for piece := range r.Split(extent.BlocksPerChunk) {
				if !yield(&scanned{file: piece}) {
					return
				}
			}
		}
	}
}

// finish hands the result of a stride over, in order: first what differs, then
// that it was compared (I4).
func (s *Scanner) finish(j *scanned) error {
	s.opts.at(PointBeforeMark)
	differing := j.unknown
	for _, r := range j.differing {
		s.deps.Source.Mark(r)
		differing += r.Len()
	}
	s.differing.Add(differing * extent.BlockSize)
	s.unknown.Add(j.unknown * extent.BlockSize)
	s.opts.at(PointBeforeCompared)
	if err := s.deps.Source.Compared(j.file); err != nil {
		return fmt.Errorf("recording file blocks %v as compared: %w", j.file, err)
	}
	s.compared.Add(j.file.Bytes())
	s.opts.at(PointAfterCompared)
	return nil
}

// comparer is one worker with its memory.
type comparer struct {
	deps    Deps
	buf     []byte
	sums    []checksum.Sum
	entries []checksum.Entry
}

// compare reads and judges one stride. What of it holds nothing of the disk every
// capture reads.
func (c *comparer) compare(j *scanned) error {
	for _, disk := range c.deps.Layout.DiskBlocks(j.file).Ranges() {
		for part := range disk.Split(extent.BlocksPerChunk) {
			if err := c.part(j, part); err != nil {
				return err
			}
		}
	}
	return c.cutOff(j)
}

func (c *comparer) part(j *scanned, disk diskRange) (err error) {
	if c.sums, err = readSource(c.deps.Source, c.deps.Layout, disk, c.buf, c.sums[:0]); err != nil {
		return fmt.Errorf("reading disk blocks %v: %w", disk, err)
	}
	if err := c.lookUp(disk); err != nil {
		return fmt.Errorf("looking up disk blocks %v: %w", disk, err)
	}
	c.judge(j, disk)
	return nil
}

// cutOff adds what lies beyond the end of a disk that is shorter than its table: a
// crash took back a growth, or the change set of a shrink. The next capture learns
// of the size; but if the disk grows again before it, the hole that this leaves is
// in no change set, and the target holds there what was cut off.
//
// A disk that is longer than its layout has grown since its last capture. What it
// grew by is in the change set if it did so before our eyes, and in none if somebody
// else wrote a file over the image: an epoch in the middle of that had only a part.
func (c *comparer) cutOff(j *scanned) error {
	beyond := c.deps.Layout.CutOff(j.file)
	if beyond.Empty() {
		return nil
	}
	if c.deps.Table.Blocks() > c.deps.Layout.Disk().End {
		j.differing = append(j.differing, beyond)
		return nil
	}
	p := c.buf[:beyond.Bytes()]
	n, err := c.deps.Source.ReadAt(p, beyond.Offset())
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading file blocks %v: %w", beyond, err)
	}
	found := extent.Set[extent.FileBlock]{}
	for at := 0; at < n; at += extent.BlockSize {
		if !checksum.IsZero(p[at:min(at+extent.BlockSize, n)]) {
			b := beyond.Start + extent.FileBlock(at/extent.BlockSize)
			found.Add(fileRange{Start: b, End: b + 1})
		}
	}
	for _, r := range c.deps.Layout.Metadata() {
		found.Remove(r)
	}
	j.differing = append(j.differing, found.Ranges()...)
	return nil
}

// readSource appends the checksums of blocks of the disk, read from its image
// through p, to dst.
func readSource(src io.ReaderAt, layout Layout, disk diskRange, p []byte, dst []checksum.Sum) ([]checksum.Sum, error) {
	p = p[:disk.Bytes()]
	if err := layout.ReadDisk(src, disk, p); err != nil {
		return dst, err
	}
	return checksum.Blocks(dst, p), nil
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

// judge compares the two and collects the blocks of the stride that hold what
// differs.
func (c *comparer) judge(j *scanned, disk diskRange) {
	var differing diskSet
	for i, e := range c.entries {
		b := disk.Start + extent.DiskBlock(i)
		switch {
		case !e.Known:
			j.unknown++
		case e.Sum != c.sums[i]:
			differing.Add(diskRange{Start: b, End: b + 1})
		}
	}
	for _, r := range differing.Ranges() {
		for _, f := range c.deps.Layout.FileBlocks(r).Ranges() {
			if f = f.Intersect(j.file); !f.Empty() {
				j.differing = append(j.differing, f)
			}
		}
	}
}
