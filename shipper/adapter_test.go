package shipper

import (
	"context"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"io/fs"
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/journal"
)

// The journal as the pipeline consumes it; the oracle listens at the seal.

type testVolume struct{ r *rig }

func (v testVolume) Seal(req SealRequest) (Epoch, error) {
	s, err := v.r.log.Seal(journal.SealRequest{Extra: req.Extra, Whole: req.Whole, SavedLimit: req.SavedLimit})
	if err != nil {
		return nil, err
	}
	v.r.sealed(s.UUID)
	return testEpoch{s}, nil
}

func (v testVolume) Deactivate(ctx context.Context) error {
	_, err := v.r.log.Deactivate(ctx)
	return err
}

func (v testVolume) LastEpoch() uint64         { return v.r.log.LastEpoch() }
func (v testVolume) RaiseEpoch(n uint64) error { return v.r.log.RaiseEpoch(n) }

type testEpoch struct{ *journal.Sealed }

func (e testEpoch) Number() uint64  { return e.Sealed.Epoch }
func (e testEpoch) UUID() [16]byte  { return e.Sealed.UUID }
func (e testEpoch) Time() time.Time { return e.Sealed.Time }

func (e testEpoch) Disks() []string {
	var ids []string
	for _, d := range e.Sealed.Disks {
		ids = append(ids, d.Disk.ID())
	}
	return ids
}

func (e testEpoch) Disk(id string) (EpochDisk, bool) {
	for _, d := range e.Sealed.Disks {
		if d.Disk.ID() == id {
			return testEpochDisk{d}, true
		}
	}
	return nil, false
}

type testEpochDisk struct{ *journal.SealedDisk }

func (d testEpochDisk) FileSize() int64                       { return d.Size }
func (d testEpochDisk) SuspectAtSeal() bool                   { return d.SealedDisk.SuspectAtSeal }
func (d testEpochDisk) List(maxRun int64) iter.Seq[FileRange] { return d.SealedDisk.List(maxRun) }

type testSource struct {
	*modelImage
	disk *journal.Disk
}

func (s testSource) ID() string           { return s.disk.ID() }
func (s testSource) Name() string         { return s.disk.Name() }
func (s testSource) Path() string         { return s.disk.Name() }
func (s testSource) PendingBlocks() int64 { return s.disk.PendingBlocks() }
func (s testSource) Suspect() bool        { return len(s.disk.Suspect()) > 0 }

func (s testSource) NextData(off int64) (int64, int64, error) { return s.nextData(off) }

type testDocuments struct{ j *journal.Journal }

func (d testDocuments) Load(key string, v any) (bool, error) { return d.j.Load(key, v) }
func (d testDocuments) Save(key string, v any) error         { return d.j.Save(key, v) }
func (d testDocuments) Remove(key string) error              { return d.j.Remove(key) }

// testStore has the images of a rig, tracked or not.
type testStore struct{ r *rig }

func (s testStore) Open(name string) (chain.File, error) {
	m := s.r.images[name]
	if m == nil {
		return nil, fs.ErrNotExist
	}
	return modelFile{m}, nil
}

func (s testStore) Names(string) ([]string, error) {
	return slices.Collect(maps.Keys(s.r.images)), nil
}

type modelFile struct{ *modelImage }

func (modelFile) Close() error { return nil }
