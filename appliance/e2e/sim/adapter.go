package sim

import (
	"context"
	"iter"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// volume shows a VM of the journal as the shipper consumes it, and tells the oracle when a seal was asked for and answered.
type volume struct{ m *machine }

func (v volume) Seal(r shipper.SealRequest) (shipper.Epoch, error) {
	m := v.m
	written, doubts := map[string]bool{}, map[string]int64{}
	for _, t := range m.all() { // before the seal: one that ends here has made its disk suspect by then
		written[t.disk.ID()], doubts[t.disk.ID()] = t.foreign.Load(), t.doubts.Load()
	}
	asked := m.timeline.SealAsked()
	s, err := m.log.Seal(journal.SealRequest{Extra: r.Extra, Whole: r.Whole, SavedLimit: r.SavedLimit})
	if err != nil {
		return nil, err
	}
	m.timeline.SealAnswered(asked)
	m.p.w.noteSeal(uuid.UUID(s.UUID).String(), m.timeline, asked)
	return epoch{s, m, func(id string) bool {
		for _, t := range m.all() {
			if t.disk.ID() == id && (t.foreign.Load() || t.doubts.Load() != doubts[id]) {
				return true
			}
		}
		return written[id]
	}}, nil
}

func (v volume) Deactivate(ctx context.Context) error {
	_, err := v.m.log.Deactivate(ctx)
	return err
}

func (v volume) LastEpoch() uint64 { return v.m.log.LastEpoch() }

func (v volume) RaiseEpoch(atLeast uint64) error { return v.m.log.RaiseEpoch(atLeast) }

type epoch struct {
	*journal.Sealed
	m       *machine
	foreign func(disk string) bool
}

func (e epoch) Number() uint64 { return e.Sealed.Epoch }

func (e epoch) UUID() [16]byte { return e.Sealed.UUID }

func (e epoch) Time() time.Time { return e.Sealed.Time }

func (e epoch) Disks() []string {
	ids := make([]string, 0, len(e.Sealed.Disks))
	for _, d := range e.Sealed.Disks {
		ids = append(ids, d.Disk.ID())
	}
	return ids
}

func (e epoch) Disk(id string) (shipper.EpochDisk, bool) {
	for _, d := range e.Sealed.Disks {
		if d.Disk.ID() == id {
			return sealedDisk{d, e.foreign(id)}, true
		}
	}
	return nil, false
}

func (e epoch) MergeBack() error {
	if e.m.p.life.isAlive() {
		if e.Voided() {
			e.m.p.w.struck("epoch void")
		}
		e.m.p.w.struck("epoch merged back")
	}
	return e.Sealed.MergeBack()
}

func (e epoch) Spooled() error {
	if e.Torn() && e.m.p.life.isAlive() {
		e.m.p.w.struck("epoch torn")
	}
	return e.Sealed.Spooled()
}

type sealedDisk struct {
	*journal.SealedDisk
	foreign bool
}

func (s sealedDisk) FileSize() int64 { return s.Size }

func (s sealedDisk) SuspectAtSeal() bool { return s.SealedDisk.SuspectAtSeal || s.foreign }

func (s sealedDisk) List(maxRun int64) iter.Seq[shipper.FileRange] { return s.SealedDisk.List(maxRun) }

// source is the live side of a disk.
type source struct {
	*Image
	disk    *journal.Disk
	foreign *atomic.Bool
}

func (s source) ID() string { return s.disk.ID() }

func (s source) Name() string { return s.disk.Name() }

func (s source) Path() string { return s.disk.Name() }

func (s source) PendingBlocks() int64 { return s.disk.PendingBlocks() }

func (s source) Suspect() bool { return s.foreign.Load() || s.disk.Suspected() }

func (s source) NextData(off int64) (int64, int64, error) { return s.nextData(off) }

// comparedSource is the source of a comparison.
type comparedSource struct {
	*journal.Disk
	image *Image
}

func (c comparedSource) ReadAt(p []byte, off int64) (int, error) { return c.image.ReadAt(p, off) }

type documents struct{ j *journal.Journal }

func (d documents) Load(key string, v any) (bool, error) { return d.j.Load(key, v) }

func (d documents) Save(key string, v any) error { return d.j.Save(key, v) }

func (d documents) Remove(key string) error { return d.j.Remove(key) }
