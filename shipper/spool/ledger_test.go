package spool

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
)

// ledger is what somebody outside the spool was told. What was acknowledged must be there after a crash, what was begun may be.
type ledger struct {
	must, may map[uint64]bool // epochs
	flagged   map[uint64]bool // RecordAttempted is acknowledged
	intent    uint64          // acknowledged give-up
	perhaps   uint64          // one that was asked for, or is being finished
}

func newLedger() *ledger {
	return &ledger{must: map[uint64]bool{}, may: map[uint64]bool{}, flagged: map[uint64]bool{}}
}

func (l *ledger) clone() *ledger {
	c := *l
	c.must, c.may, c.flagged = maps.Clone(l.must), maps.Clone(l.may), maps.Clone(l.flagged)
	return &c
}

// leaving: the epochs may go from now on.
func (l *ledger) leaving(epochs ...uint64) {
	for _, e := range epochs {
		delete(l.must, e)
		l.may[e] = true
	}
}

func (l *ledger) gone(epochs ...uint64) {
	for _, e := range epochs {
		delete(l.may, e)
	}
}

// check holds an opened spool against the ledger.
func (l *ledger) check(s *Spool) error {
	if d := s.Damaged(); len(d) > 0 {
		return fmt.Errorf("damage: %w", d[0])
	}
	if err := s.CheckDeep(); err != nil {
		return fmt.Errorf("check: %w", err)
	}
	have := map[uint64]*Manifest{}
	for _, m := range s.Manifests() {
		have[m.Epoch] = m
		if !l.must[m.Epoch] && !l.may[m.Epoch] {
			return fmt.Errorf("epoch %d is there and should not be", m.Epoch)
		}
	}
	for e := range l.must {
		if have[e] == nil {
			return fmt.Errorf("epoch %d was acknowledged and is lost", e)
		}
		if l.flagged[e] && !have[e].RecordAttempted {
			return fmt.Errorf("epoch %d has lost its flag", e)
		}
	}
	from, _ := s.GiveUpFrom()
	if from != l.intent && from != l.perhaps {
		return fmt.Errorf("give-up from %d, acknowledged %d", from, l.intent)
	}
	return nil
}

// actor drives a spool and keeps the ledger.
type actor struct {
	s   *Spool
	led *ledger
}

func header(epoch, previous uint64, disk string) segment.Header {
	return segment.Header{
		VM: "vm", Disk: disk, Generation: 1, Epoch: epoch, Previous: previous, VirtualSize: 64 << 10,
		EpochUUID: uuid.NewSHA1(uuid.NameSpaceOID, fmt.Append(nil, epoch)), UUID: uuid.NewSHA1(uuid.NameSpaceURL, fmt.Append(nil, epoch, disk)),
	}
}

// draft begins an epoch and writes a segment per disk.
func (a *actor) draft(epoch, previous uint64, disks ...string) (*Draft, *Manifest, error) {
	d, err := a.s.Begin(1, epoch)
	if err != nil {
		return nil, nil, err
	}
	m := &Manifest{
		VM: "vm", VMID: "id", Generation: 1, Epoch: epoch, Previous: previous, Closed: true,
		EpochUUID: uuid.UUID(header(epoch, previous, "").EpochUUID).String(), SealedAt: time.Unix(int64(epoch), 5).UTC(),
		Disks: []ManifestDisk{{ID: "new", Name: "new.img", Format: image.Raw, State: Initial, VirtualSize: 1, FileSize: 1}},
	}
	for _, id := range disks {
		ref, err := writeSegment(d, header(epoch, previous, id))
		if err != nil {
			return d, nil, err
		}
		m.Disks = append(m.Disks, ManifestDisk{
			ID: id, Name: id + ".vhd", Format: image.VHDFixed, State: Complete, VirtualSize: 64 << 10, FileSize: 66048,
			DiskSum: checksum.Sum(epoch) << 60, SumKnown: true, Segment: ref,
		})
	}
	return d, m, nil
}

func writeSegment(d *Draft, h segment.Header) (*SegmentRef, error) {
	f, err := d.Segment(h.Disk)
	if err != nil {
		return nil, err
	}
	w, err := segment.NewWriter(f, h, segment.Off)
	if err != nil {
		return nil, err
	}
	p := make([]byte, 2*extent.BlockSize)
	p[0] = byte(h.Epoch)
	if err := w.Data(3, p, checksum.Blocks(nil, p)); err != nil {
		return nil, err
	}
	info, err := w.Close()
	return &SegmentRef{UUID: info.UUID, Size: info.Size, Sum: info.Sum, ChangedBytes: info.ChangedBytes, StoredBytes: info.StoredBytes}, err
}

// commit captures an epoch. After an error it does what a capture does: settle, abort.
func (a *actor) commit(epoch, previous uint64, disks ...string) error {
	d, m, err := a.draft(epoch, previous, disks...)
	if err == nil {
		a.led.may[epoch] = true
		if err = d.Commit(m); err == nil {
			a.led.must[epoch] = true
			a.led.gone(epoch)
			return nil
		}
		if !errors.Is(err, ErrUnsettled) {
			a.led.gone(epoch)
		}
	}
	if d != nil {
		if e := d.Abort(); e == nil {
			a.led.gone(epoch)
		} else {
			err = errors.Join(err, e)
		}
	}
	return err
}

func (a *actor) abort(epoch, previous uint64) error {
	d, _, err := a.draft(epoch, previous, "a")
	if d != nil {
		err = errors.Join(err, d.Abort())
	}
	return err
}

func (a *actor) attempt(epoch uint64) error {
	for _, m := range a.s.Manifests() {
		if m.Epoch == epoch {
			m.RecordAttempted = true
			if err := a.s.Update(m); err != nil {
				return err
			}
			a.led.flagged[epoch] = true
		}
	}
	return nil
}

func (a *actor) release(epoch uint64) error {
	a.led.leaving(epoch)
	if err := a.s.Release(epoch); err != nil {
		return err
	}
	a.led.gone(epoch)
	return nil
}

func (a *actor) giveUp(from uint64, epochs ...uint64) error {
	a.led.perhaps = from
	if err := a.s.IntendGiveUp(from); err != nil {
		if _, pending := a.s.GiveUpFrom(); !pending {
			a.led.perhaps = 0
		}
		return err
	}
	a.led.intent = from
	a.led.leaving(epochs...)
	a.led.perhaps, a.led.intent = from, 0
	if err := a.s.FinishGiveUp(); err != nil {
		return err
	}
	a.led.perhaps = 0
	a.led.gone(epochs...)
	return nil
}

// life is everything a spool goes through. It stops at the first error.
func (a *actor) life() error {
	steps := []func() error{
		func() error { return a.commit(1, 0, "a", "b/c d") },
		func() error { return a.abort(2, 1) },
		func() error { return a.commit(3, 1, "a") },
		func() error { return a.attempt(1) },
		func() error { return a.release(1) },
		func() error { return a.commit(4, 3, "b/c d") },
		func() error { return a.commit(5, 4) }, // an empty epoch
		func() error { return a.commit(6, 5, "a") },
		func() error { return a.giveUp(5, 5, 6) },
		func() error { return a.attempt(4) },
		func() error { return a.commit(7, 4, "a") },
		func() error { return a.release(3) },
	}
	for i, step := range steps {
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
	}
	return nil
}

// goesOn proves that a spool is usable: the give-up is finished, and an epoch follows.
func goesOn(s *Spool, led *ledger) error {
	a := &actor{s, led.clone()}
	if from, pending := s.GiveUpFrom(); pending {
		if err := s.FinishGiveUp(); err != nil {
			return err
		}
		a.led.intent, a.led.perhaps = 0, 0
		for e := range led.must {
			if e >= from {
				a.led.leaving(e)
			}
		}
	}
	previous := uint64(0)
	for _, m := range s.Manifests() {
		previous = m.Epoch
	}
	if err := a.commit(100, previous, "a"); err != nil {
		return err
	}
	return a.led.check(s)
}

// afterPowerCut opens what is left of d, in several ways of what made it, and checks each against the ledger.
func afterPowerCut(t *testing.T, d *disk, led *ledger, what string) {
	t.Helper()
	keeps := []func() bool{nil, func() bool { return true }}
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 11))
		keeps = append(keeps, func() bool { return rng.IntN(2) == 0 })
	}
	for i, keep := range keeps {
		s, err := open("/spool", Options{Log: quiet}, d.crash(keep))
		if err == nil {
			err = led.check(s)
		}
		if err == nil {
			err = goesOn(s, led)
		}
		if err != nil {
			t.Fatalf("%s, power cut %d, ledger %v %v: %v", what, i, slices.Sorted(maps.Keys(led.must)), slices.Sorted(maps.Keys(led.may)), err)
		}
	}
}
