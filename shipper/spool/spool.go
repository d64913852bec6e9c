package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

const (
	manifestName  = "manifest.json"
	giveUpName    = "give-up.json"
	segmentSuffix = ".seg"
)

// Options of a spool.
type Options struct {
	Hook func(point string) // called at the points in Points; nil: not
	Log  *slog.Logger       // nil: slog.Default()
	Tree durable.Tree       // nil: the operating system's
}

// Spool is one VM's directory of epochs. All methods are safe for concurrent use.
type Spool struct {
	dir  string
	fs   durable.Tree
	hook func(string)
	log  *slog.Logger
	left map[string]bool // what a crash left, of a spool that is only looked at

	// change serialises everything that changes what is durable, and is held over that I/O: it is the lock under which an
	// epoch enters the spool or a give-up is decided. Taken before mu.
	change struct{ sync.Mutex }

	// mu guards what the others look at. No I/O under it.
	mu struct {
		sync.Mutex
		epochs    []*entry // ascending
		draft     *Draft   // the open one, nil for none
		unsettled *entry   // an epoch whose manifest must go and may still exist
		giveUp    uint64   // intended from, 0 for none
		damaged   []Damage
		stale     []string // directories of drafts that Abort could not remove
		bytes     int64    // last answer of Bytes
	}
}

// entry is an epoch's directory. An entry is replaced, never changed, once it is in the list.
type entry struct {
	generation, epoch uint64
	manifest          *Manifest // nil if it cannot be read
}

// Damage is an epoch in the spool that cannot be used. The epoch and everything after it must be given up.
type Damage struct {
	Generation, Epoch uint64
	Err               error // around ErrMissing, ErrSegment, ErrChain or what is wrong with the manifest
}

func (d Damage) Error() string {
	return fmt.Sprintf("epoch %d-%d: %v", d.Generation, d.Epoch, d.Err)
}

func (d Damage) Unwrap() error { return d.Err }

// Manifests returns copies of all readable manifests in the order of their epochs.
func (s *Spool) Manifests() []*Manifest {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := make([]*Manifest, 0, len(s.mu.epochs))
	for _, e := range s.mu.epochs {
		if e.manifest != nil {
			list = append(list, e.manifest.Clone())
		}
	}
	return list
}

// Damaged returns what Open found unusable, oldest first. While there is any, Begin refuses.
func (s *Spool) Damaged() []Damage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.mu.damaged)
}

// OpenSegment opens the segment of a disk in an epoch for reading. ErrMissing if the file is gone, ErrSegment if its size is not
// what the manifest says: then the epoch and everything after it must be given up.
func (s *Spool) OpenSegment(m *Manifest, diskID string) (durable.Reader, error) {
	d := m.Disk(diskID)
	if d == nil || d.Segment == nil {
		return nil, fmt.Errorf("segment of disk %q in epoch %d: %w", diskID, m.Epoch, ErrUnknown)
	}
	path := s.path(m.Generation, m.Epoch, d.Segment.Name)
	info, err := s.fs.Stat(path)
	if isNotExist(err) {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	if err != nil {
		return nil, err
	}
	if info.Size != d.Segment.Size {
		return nil, fmt.Errorf("%w: %s has %d bytes, expected %d", ErrSegment, path, info.Size, d.Segment.Size)
	}
	f, err := s.fs.Open(path)
	if isNotExist(err) { // a give-up took it since
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return f, err
}

// Update makes the flags of m durable: RecordAttempted, Uploaded, and Closed with OpenReason. After an error the document has
// the old flags or the new ones, and Manifests the old ones; the caller must not act on a flag it could not set.
func (s *Spool) Update(m *Manifest) error {
	s.change.Lock()
	defer s.change.Unlock()
	e := s.entry(m.Epoch)
	if e == nil || e.manifest == nil {
		return fmt.Errorf("update epoch %d: %w", m.Epoch, ErrUnknown)
	}
	if !e.manifest.onlyFlags(m) {
		return fmt.Errorf("update epoch %d: %w", m.Epoch, ErrManifest)
	}
	m = m.Clone()
	data, err := encodeManifest(m)
	if err != nil {
		return err
	}
	if err := durable.WriteFileIn(s.fs, s.path(e.generation, e.epoch, manifestName), data); err != nil {
		return fmt.Errorf("update manifest of epoch %d: %w", m.Epoch, err)
	}
	s.at(PointUpdated)
	s.replace(&entry{e.generation, e.epoch, m})
	return nil
}

// Bytes returns the allocated size of everything in the spool, drafts included. If the directory cannot be read it returns the
// last answer.
func (s *Spool) Bytes() int64 {
	n, err := s.allocated(s.dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.mu.bytes = n
	}
	return s.mu.bytes
}

// allocated sums a directory up. What disappears meanwhile counts nothing.
func (s *Spool) allocated(dir string) (int64, error) {
	names, err := s.fs.ReadDir(dir)
	if err != nil && !isNotExist(err) {
		return 0, err
	}
	total := int64(0)
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := s.fs.Stat(path)
		if err != nil && !isNotExist(err) {
			return 0, err
		}
		total += info.Allocated
		if info.Dir {
			n, err := s.allocated(path)
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	return total, nil
}

func (s *Spool) at(point string) {
	if s.hook != nil {
		s.hook(point)
	}
}

func (s *Spool) path(generation, epoch uint64, names ...string) string {
	return filepath.Join(append([]string{s.dir, epochName(generation, epoch)}, names...)...)
}

func (s *Spool) entry(epoch uint64) *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.mu.epochs {
		if e.epoch == epoch {
			return e
		}
	}
	return nil
}

func (s *Spool) replace(e *entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.mu.epochs {
		if s.mu.epochs[i].epoch == e.epoch {
			s.mu.epochs[i] = e
		}
	}
}

func (s *Spool) drop(epoch uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.epochs = slices.DeleteFunc(s.mu.epochs, func(e *entry) bool { return e.epoch == epoch })
	s.mu.damaged = slices.DeleteFunc(s.mu.damaged, func(d Damage) bool { return d.Epoch == epoch })
}

func epochName(generation, epoch uint64) string { return fmt.Sprintf("%d-%d", generation, epoch) }

// parseEpochName accepts exactly what epochName makes.
func parseEpochName(name string) (generation, epoch uint64, ok bool) {
	g, e, _ := strings.Cut(name, "-")
	generation, err := strconv.ParseUint(g, 10, 64)
	epoch, err2 := strconv.ParseUint(e, 10, 64)
	return generation, epoch, err == nil && err2 == nil && epochName(generation, epoch) == name
}

// segmentName makes any disk id the name of a file.
func segmentName(diskID string) string { return url.PathEscape(diskID) + segmentSuffix }

func joined(err, other error) error {
	if other == nil {
		return err
	}
	return errors.Join(err, other)
}
