package spool

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

// unsettle notes that e's manifest must go, and tries.
func (s *Spool) unsettle(e *entry) error {
	s.mu.Lock()
	s.mu.unsettled = e
	s.mu.Unlock()
	return s.settleLocked()
}

// Settle durably unlinks a manifest whose write failed, if there is one. ErrUnsettled: not yet; call again.
func (s *Spool) Settle() error {
	s.change.Lock()
	defer s.change.Unlock()
	return s.settleLocked()
}

// settleLocked is Settle; the caller holds change.
func (s *Spool) settleLocked() error {
	s.mu.Lock()
	e := s.mu.unsettled
	s.mu.Unlock()
	if e == nil {
		return nil
	}
	if err := s.unlinkManifest(s.path(e.generation, e.epoch)); err != nil {
		return fmt.Errorf("%w: epoch %d-%d: %w", ErrUnsettled, e.generation, e.epoch, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.unsettled = nil
	return nil
}

// unlinkManifest takes an epoch's directory out of the spool: what is left in it is a draft.
func (s *Spool) unlinkManifest(dir string) error {
	return durable.RemoveIn(s.fs, filepath.Join(dir, manifestName))
}

// removeEpoch removes an epoch's directory, the manifest first. It may be repeated, and the directory may be gone.
func (s *Spool) removeEpoch(dir string) error {
	names, err := s.fs.ReadDir(dir)
	if isNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	// Also if the name is not there: an earlier attempt may have unlinked it and not synced that.
	if err := s.unlinkManifest(dir); err != nil {
		return err
	}
	s.at(PointManifestUnlinked)
	for _, name := range names {
		if name == manifestName {
			continue
		}
		if err := s.fs.Remove(filepath.Join(dir, name)); err != nil && !isNotExist(err) {
			return err
		}
	}
	s.at(PointSegmentsRemoved)
	// No sync: a directory that comes back after a power cut has no manifest.
	if err := s.fs.Remove(dir); err != nil && !isNotExist(err) {
		return err
	}
	return nil
}

// Release removes the oldest epoch, which the target holds and nothing local needs. An epoch that is not in the spool is released
// already; one that is not the oldest is ErrChain. It may be repeated after an error.
func (s *Spool) Release(epoch uint64) error {
	s.change.Lock()
	defer s.change.Unlock()
	e := s.entry(epoch)
	if e == nil {
		return nil
	}
	if oldest := s.oldest(); oldest != e {
		return fmt.Errorf("release epoch %d: %w: %d is older", epoch, ErrChain, oldest.epoch)
	}
	if err := s.removeEpoch(s.path(e.generation, e.epoch)); err != nil {
		return fmt.Errorf("release epoch %d: %w", epoch, err)
	}
	s.drop(epoch)
	return nil
}

func (s *Spool) oldest() *entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.epochs[0]
}

type giveUpJSON struct {
	From uint64 `json:"from"`
}

// IntendGiveUp makes it durable that the epoch from and everything after it in the spool are given up, and voids the open draft.
// The caller then makes their entries durably unknown and calls FinishGiveUp; nothing is deleted before that. A give-up
// already intended grows if from is older. If it fails nothing is given up, unless GiveUpFrom says so: then the
// intent may be on disk and must be gone through with.
func (s *Spool) IntendGiveUp(from uint64) error {
	if from == 0 {
		return fmt.Errorf("give up from epoch 0: %w", ErrManifest)
	}
	s.change.Lock()
	defer s.change.Unlock()
	pending, _ := s.GiveUpFrom()
	if pending != 0 && pending <= from {
		return nil
	}
	data, err := encodeDocument(kindGiveUp, giveUpJSON{From: from})
	if err != nil {
		return err
	}
	path := filepath.Join(s.dir, giveUpName)
	if err := durable.WriteFileIn(s.fs, path, data); err != nil {
		err = fmt.Errorf("intend to give up from epoch %d: %w", from, err)
		if pending != 0 || durable.RemoveIn(s.fs, path) != nil {
			s.intend(from) // which of the two is on disk nobody knows: the larger give-up is the safe one
		}
		return err
	}
	s.at(PointIntentDurable)
	s.intend(from)
	return nil
}

func (s *Spool) intend(from uint64) {
	s.mu.Lock()
	s.mu.giveUp = from
	d := s.mu.draft
	s.mu.Unlock()
	if d != nil {
		d.fail(fmt.Errorf("%w: from epoch %d", ErrGivingUp, from))
	}
}

// GiveUpFrom returns the oldest epoch of a give-up that is intended and not finished, as after a crash between IntendGiveUp and
// FinishGiveUp: the caller does its part again, then calls FinishGiveUp.
func (s *Spool) GiveUpFrom() (epoch uint64, pending bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.giveUp, s.mu.giveUp != 0
}

func (s *Spool) readGiveUp() (uint64, error) {
	data, err := s.fs.ReadFile(filepath.Join(s.dir, giveUpName))
	if isNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	var j giveUpJSON
	err = decodeDocument(kindGiveUp, data, &j)
	if err == nil && j.From == 0 {
		err = fmt.Errorf("%w: from epoch 0", ErrMalformed)
	}
	if errors.Is(err, ErrVersion) {
		return 0, fmt.Errorf("%s: %w", giveUpName, err)
	}
	if err != nil {
		// Something was given up and nobody knows from where: everything is the safe answer, and costs a comparison only.
		s.log.Warn("spool: the give-up intent cannot be read, so every epoch is given up", "dir", s.dir, "error", err)
		return 1, nil
	}
	return j.From, nil
}

// FinishGiveUp deletes the epochs of the intended give-up: manifests, the newest first, then segments, then the intent. It
// does nothing if none is intended, and may be repeated after an error.
func (s *Spool) FinishGiveUp() error {
	s.change.Lock()
	defer s.change.Unlock()
	from, pending := s.GiveUpFrom()
	if !pending {
		return nil
	}
	if err := s.finishGiveUp(from); err != nil {
		return fmt.Errorf("give up from epoch %d: %w", from, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.giveUp = 0
	return nil
}

func (s *Spool) finishGiveUp(from uint64) error {
	list := s.suffix(from)
	for _, e := range list {
		if err := s.unlinkManifest(s.path(e.generation, e.epoch)); err != nil && !isNotExist(err) {
			return err
		}
		s.at(PointManifestUnlinked)
	}
	for _, e := range list {
		if err := s.removeEpoch(s.path(e.generation, e.epoch)); err != nil {
			return err
		}
		s.drop(e.epoch)
	}
	s.at(PointGivenUp)
	return durable.RemoveIn(s.fs, filepath.Join(s.dir, giveUpName))
}

// suffix returns the epochs from one on, the newest first.
func (s *Spool) suffix(from uint64) (list []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range slices.Backward(s.mu.epochs) {
		if e.epoch >= from {
			list = append(list, e)
		}
	}
	return list
}
