package spool

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// Open opens the spool of one VM, making the directory if it is not there. What a crash left is cleared: drafts without a manifest and
// temporary files are deleted. An intended give-up is not finished here, because the entries of its epochs must be made unknown
// first: see GiveUpFrom. Epochs that cannot be used are reported by Damaged. A document of a newer version fails with
// ErrVersion and changes nothing.
func Open(dir string, opts Options) (*Spool, error) { return open(dir, opts, opts.Tree) }

func open(dir string, opts Options, fs durable.Tree) (*Spool, error) {
	s := &Spool{dir: filepath.Clean(dir), fs: fs, hook: opts.Hook, log: opts.Log}
	if s.fs == nil {
		s.fs = durable.OS{}
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	return s, nil
}

// load is the recovery of shipper/README.md; the step numbers are those there.
func (s *Spool) load() error {
	if err := s.makeDir(); err != nil {
		return err
	}
	names, err := s.fs.ReadDir(s.dir)
	if err != nil {
		return err
	}
	if s.mu.giveUp, err = s.readGiveUp(); err != nil { // step 1
		return err
	}
	drafts, err := s.readEpochs(names) // step 2
	if err != nil {
		return err
	}
	for _, name := range drafts { // step 3
		s.log.Info("spool: an epoch without a manifest is deleted", "dir", filepath.Join(s.dir, name))
		if err := s.removeEpoch(filepath.Join(s.dir, name)); err != nil {
			return err
		}
	}
	if err := s.removeStrays(names); err != nil {
		return err
	}
	s.mu.damaged = append(s.mu.damaged, s.brokenLinks()...) // step 4
	slices.SortFunc(s.mu.damaged, func(a, b Damage) int { return cmp.Compare(a.Epoch, b.Epoch) })
	return nil
}

func (s *Spool) makeDir() error {
	if err := s.fs.MkdirAll(s.dir); err != nil {
		return err
	}
	return s.fs.SyncDir(filepath.Dir(s.dir))
}

// readEpochs reads all manifests, and returns the names of the directories that have none. It changes nothing on disk, so that
// a document of a newer version finds everything as it was.
func (s *Spool) readEpochs(names []string) (drafts []string, err error) {
	for _, name := range names {
		generation, epoch, ok := parseEpochName(name)
		if !ok {
			continue
		}
		e := &entry{generation: generation, epoch: epoch}
		data, err := s.fs.ReadFile(s.path(generation, epoch, manifestName))
		if isNotExist(err) {
			drafts = append(drafts, name)
			continue
		}
		if err != nil {
			return nil, err
		}
		e.manifest, err = s.inspect(e, data)
		var damage Damage
		if errors.As(err, &damage) {
			s.mu.damaged = append(s.mu.damaged, damage)
		} else if err != nil {
			return nil, err
		}
		s.mu.epochs = append(s.mu.epochs, e)
	}
	slices.SortFunc(s.mu.epochs, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.epoch, b.epoch), cmp.Compare(a.generation, b.generation))
	})
	return drafts, nil
}

// inspect decodes a manifest and looks whether its segments are there. Its error is a Damage, or one that Open fails with. The
// manifest may be good when its segments are not.
func (s *Spool) inspect(e *entry, data []byte) (*Manifest, error) {
	m, err := decodeManifest(data)
	if errors.Is(err, ErrVersion) {
		return nil, fmt.Errorf("epoch %d-%d: %w", e.generation, e.epoch, err)
	}
	if err == nil && (m.Generation != e.generation || m.Epoch != e.epoch) {
		m, err = nil, fmt.Errorf("%w: names epoch %d-%d", ErrMalformed, m.Generation, m.Epoch)
	}
	if err != nil {
		return nil, Damage{e.generation, e.epoch, err}
	}
	return m, s.checkSizes(m)
}

// checkSizes compares the files of an epoch with its manifest, by size.
func (s *Spool) checkSizes(m *Manifest) error {
	for _, d := range m.Disks {
		if d.Segment == nil {
			continue
		}
		path := s.path(m.Generation, m.Epoch, d.Segment.Name)
		info, err := s.fs.Stat(path)
		switch {
		case isNotExist(err):
			return Damage{m.Generation, m.Epoch, fmt.Errorf("%w: %s", ErrMissing, path)}
		case err != nil:
			return err
		case info.Size != d.Segment.Size:
			return Damage{m.Generation, m.Epoch, fmt.Errorf("%w: %s has %d bytes, expected %d", ErrSegment, path, info.Size, d.Segment.Size)}
		}
	}
	return nil
}

// brokenLinks finds epochs whose previous is not the epoch before them.
func (s *Spool) brokenLinks() (list []Damage) {
	for i, e := range s.mu.epochs {
		if i == 0 {
			continue
		}
		before := s.mu.epochs[i-1]
		if err := follows(before, e.generation, e.epoch, e.manifest); err != nil {
			list = append(list, Damage{e.generation, e.epoch, err})
		}
	}
	return list
}

// follows says why an epoch cannot come right after another. A manifest that cannot be read is damage of its own.
func follows(before *entry, generation, epoch uint64, m *Manifest) error {
	if generation < before.generation || epoch <= before.epoch || m != nil && m.Previous != before.epoch {
		previous := uint64(0)
		if m != nil {
			previous = m.Previous
		}
		return fmt.Errorf("%w: epoch %d-%d with previous %d, after %d-%d",
			ErrChain, generation, epoch, previous, before.generation, before.epoch)
	}
	return nil
}

// removeStrays removes temporary files: of the intent, and of manifests that were being updated.
func (s *Spool) removeStrays(names []string) error {
	paths := []string{}
	if slices.Contains(names, giveUpName+durable.TempSuffix) {
		paths = append(paths, filepath.Join(s.dir, giveUpName+durable.TempSuffix))
	}
	for _, e := range s.mu.epochs {
		paths = append(paths, s.path(e.generation, e.epoch, manifestName+durable.TempSuffix))
	}
	for _, p := range paths {
		if err := s.fs.Remove(p); err != nil && !isNotExist(err) {
			return err
		}
	}
	return nil
}
