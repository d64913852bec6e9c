package spool

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// Check compares the directory with what the spool believes: every manifest is there as it is known, its segments with their
// size, epochs ascend, each names the one before it as its previous, and there is nothing else but the open draft. It
// returns everything it finds, joined. Nothing may change the spool meanwhile.
func (s *Spool) Check() error { return s.check(false) }

// CheckDeep is Check, and reads every segment: its checksum, and that it is the one its manifest names.
func (s *Spool) CheckDeep() error { return s.check(true) }

func (s *Spool) check(deep bool) error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	epochs, draft, broken := slices.Clone(s.mu.epochs), s.mu.draft, s.brokenLinks()
	s.mu.Unlock()
	var errs []error
	for _, d := range broken {
		errs = append(errs, d)
	}
	known := map[string]bool{giveUpName: true}
	if draft != nil {
		known[filepath.Base(draft.dir)] = true
	}
	for _, e := range epochs {
		known[epochName(e.generation, e.epoch)] = true
		errs = append(errs, s.checkEpoch(e, deep))
	}
	names, err := s.fs.ReadDir(s.dir)
	errs = append(errs, err)
	for _, name := range names {
		if !known[name] {
			errs = append(errs, fmt.Errorf("%w: %s", ErrUnknown, filepath.Join(s.dir, name)))
		}
	}
	return errors.Join(errs...)
}

func (s *Spool) checkEpoch(e *entry, deep bool) error {
	data, err := s.fs.ReadFile(s.path(e.generation, e.epoch, manifestName))
	if err != nil {
		return Damage{e.generation, e.epoch, err}
	}
	m, err := s.inspect(e, data)
	if err != nil {
		return err
	}
	// An Update that failed may have left newer flags in the file, and nothing else.
	if e.manifest == nil || !e.manifest.onlyFlags(m) {
		return Damage{e.generation, e.epoch, fmt.Errorf("%w: the file is not what was committed", ErrManifest)}
	}
	for i := range m.Disks {
		if d := &m.Disks[i]; deep && d.Segment != nil {
			if err := s.checkSegment(m, d); err != nil {
				return Damage{e.generation, e.epoch, err}
			}
		}
	}
	return nil
}

// checkSegment reads a segment twice: as bytes, against the manifest's checksum, and as a segment, against itself.
func (s *Spool) checkSegment(m *Manifest, d *ManifestDisk) error {
	path := s.path(m.Generation, m.Epoch, d.Segment.Name)
	f, err := s.fs.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }() // read only
	sum, err := sumOf(io.NewSectionReader(f, 0, d.Segment.Size))
	if err != nil {
		return err
	}
	if sum != d.Segment.Sum {
		return fmt.Errorf("%w: checksum of %s is %016x, expected %016x", ErrSegment, path, uint64(sum), uint64(d.Segment.Sum))
	}
	r, err := segment.Open(f, d.Segment.Size)
	if err != nil {
		return fmt.Errorf("%w: %s: %w", ErrSegment, path, err)
	}
	h := r.Header()
	if h.Generation != m.Generation || h.Epoch != m.Epoch || h.Previous != m.Previous ||
		uuid.UUID(h.UUID).String() != d.Segment.UUID || uuid.UUID(h.EpochUUID).String() != m.EpochUUID {
		return fmt.Errorf("%w: %s is of epoch %d-%d", ErrSegment, path, h.Generation, h.Epoch)
	}
	if err := r.Verify(); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrSegment, path, err)
	}
	return nil
}

func sumOf(r io.Reader) (sum checksum.Sum, err error) {
	buf := make([]byte, 256<<10)
	for {
		n, err := r.Read(buf)
		sum = checksum.Update(sum, buf[:n])
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}
