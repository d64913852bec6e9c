package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// Check compares the directory with what the spool believes: every manifest is there as it is known, its segments with their
// size, epochs ascend, each names the one before it as its previous, and there is nothing else but the open draft. It
// returns everything it finds, joined. Nothing may change the spool meanwhile.
func (s *Spool) Check() error {
	s.change.Lock()
	defer s.change.Unlock()
	s.mu.Lock()
	epochs, draft, unsettled, stale, broken := slices.Clone(s.mu.epochs), s.mu.draft, s.mu.unsettled, slices.Clone(s.mu.stale), s.brokenLinks()
	s.mu.Unlock()
	var errs []error
	for _, d := range broken {
		errs = append(errs, d)
	}
	known := map[string]bool{giveUpName: true}
	maps.Copy(known, s.left)
	if unsettled != nil {
		known[epochName(unsettled.generation, unsettled.epoch)] = true
	}
	if draft != nil {
		known[filepath.Base(draft.dir)] = true
	}
	for _, dir := range stale {
		known[filepath.Base(dir)] = true
	}
	for _, e := range epochs {
		known[epochName(e.generation, e.epoch)] = true
		errs = append(errs, s.checkEpoch(e))
	}
	names, err := s.fs.ReadDir(s.dir)
	if s.left == nil || !isNotExist(err) {
		errs = append(errs, err)
	}
	for _, name := range names {
		if !known[name] {
			errs = append(errs, fmt.Errorf("%w: %s", ErrUnknown, filepath.Join(s.dir, name)))
		}
	}
	return errors.Join(errs...)
}

// CheckDeep is Check, and reads every segment: its checksum, and that it is the one its manifest names. The spool may go on
// meanwhile: a segment that is released while it is read is not missed.
func (s *Spool) CheckDeep() error {
	errs := []error{s.Check()}
	for _, m := range s.Manifests() {
		for i := range m.Disks {
			if d := &m.Disks[i]; d.Segment != nil {
				errs = append(errs, s.stillWrong(m, s.checkSegment(m, d)))
			}
		}
	}
	return errors.Join(errs...)
}

// stillWrong drops an error of an epoch that has left the spool.
func (s *Spool) stillWrong(m *Manifest, err error) error {
	if err == nil {
		return nil
	}
	s.change.Lock()
	defer s.change.Unlock()
	if s.entry(m.Epoch) == nil {
		return nil
	}
	return Damage{m.Generation, m.Epoch, err}
}

// Inspect reads a spool that no process has open, and changes nothing, for Check and CheckDeep: what a crash may leave is no
// violation. A directory that is not there is empty.
func Inspect(dir string, tree durable.Tree) (*Spool, error) {
	s := &Spool{dir: filepath.Clean(dir), fs: tree, log: slog.New(slog.DiscardHandler)}
	s.left = map[string]bool{giveUpName + durable.TempSuffix: true}
	names, err := tree.ReadDir(s.dir)
	if isNotExist(err) {
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("inspect spool %s: %w", dir, err)
	}
	if s.mu.giveUp, err = s.readGiveUp(); err != nil {
		return nil, fmt.Errorf("inspect spool %s: %w", dir, err)
	}
	drafts, err := s.readEpochs(names)
	if err != nil {
		return nil, fmt.Errorf("inspect spool %s: %w", dir, err)
	}
	for _, name := range drafts {
		s.left[name] = true
	}
	return s, nil
}

// Dir is the spool's directory.
func (s *Spool) Dir() string { return s.dir }

func (s *Spool) checkEpoch(e *entry) error {
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
