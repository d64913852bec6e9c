package spool

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// Draft is an epoch being captured. Its segments may be written concurrently, each by one goroutine. The first failure is
// sticky: every later call but Abort returns it.
type Draft struct {
	s     *Spool
	entry entry
	dir   string

	// mu is held while a file is made, not while one is written.
	mu struct {
		sync.Mutex
		segments  map[string]*draftSegment
		err       error // sticky
		committed bool
		aborted   bool
	}
}

// SegmentFile is a segment being written, front to back. What was written can be read again before the commit.
type SegmentFile interface {
	io.Writer
	io.ReaderAt
}

// draftSegment is a file of a draft, written and read by one goroutine.
type draftSegment struct {
	d    *Draft
	path string
	file durable.File
	back durable.Reader // nil until something is read
	size int64
}

// Begin starts an epoch. There is one draft at a time; epoch must be newer than everything in the spool. An unsettled spool is
// settled first.
func (s *Spool) Begin(generation, epoch uint64) (*Draft, error) {
	s.change.Lock()
	defer s.change.Unlock()
	if err := s.settleLocked(); err != nil {
		return nil, err
	}
	if err := s.mayBegin(generation, epoch); err != nil {
		return nil, fmt.Errorf("begin epoch %d-%d: %w", generation, epoch, err)
	}
	d := &Draft{s: s, entry: entry{generation: generation, epoch: epoch}, dir: s.path(generation, epoch)}
	d.mu.segments = map[string]*draftSegment{}
	if err := s.removeStale(); err != nil {
		return nil, fmt.Errorf("begin epoch %d-%d: %w", generation, epoch, err)
	}
	if err := s.fs.MkdirAll(d.dir); err != nil {
		return nil, fmt.Errorf("begin epoch %d-%d: %w", generation, epoch, err)
	}
	s.at(PointDirectoryMade)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.draft = d
	return d, nil
}

func (s *Spool) mayBegin(generation, epoch uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.draft != nil:
		return fmt.Errorf("%w: %d-%d is open", ErrDraft, s.mu.draft.entry.generation, s.mu.draft.entry.epoch)
	case s.mu.giveUp != 0:
		return ErrGivingUp
	case len(s.mu.damaged) > 0:
		return fmt.Errorf("%w: %w", ErrDamaged, s.mu.damaged[0])
	case len(s.mu.epochs) > 0:
		return follows(s.mu.epochs[len(s.mu.epochs)-1], generation, epoch, nil)
	}
	return nil
}

// Segment makes the file of a disk's segment.
func (d *Draft) Segment(diskID string) (SegmentFile, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.stateLocked(); err != nil {
		return nil, err
	}
	if d.mu.segments[diskID] != nil {
		return nil, fmt.Errorf("%w: disk %q has a segment already", ErrDraft, diskID)
	}
	path := filepath.Join(d.dir, segmentName(diskID))
	f, err := d.s.fs.Create(path)
	if err != nil {
		d.mu.err = fmt.Errorf("make segment: %w", err)
		return nil, d.mu.err
	}
	g := &draftSegment{d: d, path: path, file: f}
	d.mu.segments[diskID] = g
	return g, nil
}

// Write implements io.Writer.
func (g *draftSegment) Write(p []byte) (int, error) {
	if err := g.d.Err(); err != nil {
		return 0, err
	}
	n, err := g.file.Write(p)
	g.size += int64(n)
	if err != nil {
		g.d.fail(fmt.Errorf("write segment: %w", err))
	}
	return n, err
}

// ReadAt implements io.ReaderAt.
func (g *draftSegment) ReadAt(p []byte, off int64) (int, error) {
	if g.back == nil {
		f, err := g.d.s.fs.Open(g.path)
		if err != nil {
			return 0, err
		}
		g.back = f
	}
	return g.back.ReadAt(p, off)
}

// Err returns why the draft cannot be committed, nil if it can: the first failure of a write, or ErrGivingUp.
func (d *Draft) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.stateLocked()
}

func (d *Draft) stateLocked() error {
	if d.mu.err == nil && (d.mu.committed || d.mu.aborted) {
		return fmt.Errorf("%w: finished", ErrDraft)
	}
	return d.mu.err
}

// fail makes err sticky unless there is one already.
func (d *Draft) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.err == nil {
		d.mu.err = err
	}
}

// Commit makes the epoch part of the spool: segments synced, directories synced, then the manifest written, synced, renamed, and
// its directory synced. The writers must have returned. It fills the manifest's version and the names of the segments in.
//
// After an error the epoch is not in the spool and will not be after a power cut, unless the error is ErrUnsettled: then that
// is not sure, and the epoch must not be merged back before Settle has succeeded. Abort is due in either case.
func (d *Draft) Commit(m *Manifest) error {
	if err := d.commit(m); err != nil {
		d.fail(err)
		return fmt.Errorf("commit epoch %d-%d: %w", d.entry.generation, d.entry.epoch, err)
	}
	return nil
}

func (d *Draft) commit(m *Manifest) error {
	data, err := d.describe(m)
	if err != nil {
		return err
	}
	if err := d.sync(); err != nil {
		return err
	}
	s := d.s
	s.change.Lock()
	defer s.change.Unlock()
	if err := d.Err(); err != nil { // again, under the lock of a give-up
		return err
	}
	if err := s.mayAppend(m); err != nil {
		return err
	}
	path := filepath.Join(d.dir, manifestName)
	if err := durable.WriteFileIn(s.fs, path, data); err != nil {
		s.at(PointManifestFailed)
		return joined(fmt.Errorf("write manifest: %w", err), s.unsettle(&d.entry))
	}
	s.at(PointManifestDurable)
	d.mu.Lock()
	d.mu.committed = true
	d.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.draft = nil
	s.mu.epochs = append(s.mu.epochs, &entry{m.Generation, m.Epoch, m.Clone()})
	return nil
}

// describe checks that m is of this draft and lists its segments, all of them and no others, and encodes it.
func (d *Draft) describe(m *Manifest) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.stateLocked(); err != nil {
		return nil, err
	}
	m.Version, m.SealedAt = documentVersion, m.SealedAt.UTC()
	listed := 0
	for i := range m.Disks {
		disk := &m.Disks[i]
		if disk.Segment == nil {
			continue
		}
		g := d.mu.segments[disk.ID]
		if g == nil || g.size != disk.Segment.Size {
			return nil, fmt.Errorf("%w: disk %q lists a segment of %d bytes", ErrManifest, disk.ID, disk.Segment.Size)
		}
		disk.Segment.Name = segmentName(disk.ID)
		listed++
	}
	if listed != len(d.mu.segments) || m.Generation != d.entry.generation || m.Epoch != d.entry.epoch {
		return nil, fmt.Errorf("%w: epoch %d-%d with %d segments, the draft has %d",
			ErrManifest, m.Generation, m.Epoch, listed, len(d.mu.segments))
	}
	if err := m.check(); err != nil {
		return nil, err
	}
	return encodeManifest(m)
}

// sync makes the segments and their names durable. The names come before the manifest: it must never be found without them.
func (d *Draft) sync() error {
	if err := d.closeSegments(true); err != nil {
		return fmt.Errorf("sync segment: %w", err)
	}
	d.s.at(PointSegmentsSynced)
	for _, dir := range []string{d.dir, d.s.dir} {
		if err := d.s.fs.SyncDir(dir); err != nil {
			return fmt.Errorf("sync directory: %w", err)
		}
	}
	d.s.at(PointDirectorySynced)
	return nil
}

// closeSegments closes all files, after a sync if they are to be kept; else the draft takes nothing more.
func (d *Draft) closeSegments(keep bool) (err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.aborted = !keep
	for _, g := range d.mu.segments {
		if g.file == nil {
			continue
		}
		if keep && err == nil {
			err = g.file.Sync()
		}
		if e := g.file.Close(); err == nil {
			err = e
		}
		if g.back != nil {
			_ = g.back.Close() // opened for reading
		}
		g.file, g.back = nil, nil
	}
	return err
}

func (s *Spool) mayAppend(m *Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.giveUp != 0 {
		return ErrGivingUp
	}
	if n := len(s.mu.epochs); n > 0 {
		return follows(s.mu.epochs[n-1], m.Generation, m.Epoch, m)
	}
	return nil
}

// Abort removes everything of the draft; after Commit it does nothing. What it could not remove goes at the next Begin or at the
// next Open; only an ErrUnsettled must be waited for. It may be repeated.
func (d *Draft) Abort() error {
	s := d.s
	s.change.Lock()
	defer s.change.Unlock()
	if d.isCommitted() {
		return nil
	}
	closed := d.closeSegments(false)
	s.mu.Lock()
	if s.mu.draft == d {
		s.mu.draft = nil
	}
	if !slices.Contains(s.mu.stale, d.dir) {
		s.mu.stale = append(s.mu.stale, d.dir)
	}
	s.mu.Unlock()
	if err := s.settleLocked(); err != nil { // the manifest goes first, as always
		return err
	}
	if err := s.removeStale(); err != nil {
		return fmt.Errorf("abort epoch %d-%d: %w", d.entry.generation, d.entry.epoch, err)
	}
	return closed
}

// removeStale removes what is left of drafts: their epochs' numbers do not come again, and what they take counts against the quota.
func (s *Spool) removeStale() error {
	s.mu.Lock()
	stale := slices.Clone(s.mu.stale)
	s.mu.Unlock()
	for _, dir := range stale {
		if err := s.removeEpoch(dir); err != nil {
			return err
		}
		s.mu.Lock()
		s.mu.stale = slices.DeleteFunc(s.mu.stale, func(have string) bool { return have == dir })
		s.mu.Unlock()
	}
	return nil
}

func (d *Draft) isCommitted() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.committed
}
