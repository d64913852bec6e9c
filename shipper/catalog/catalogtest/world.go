// Package catalogtest writes VMs to a target the way the shipper does, byte for
// byte, and remembers what every point held: the oracle of the tests of restore
// and retention, which need a writer and must not depend on the real one.
package catalogtest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// World is one VM, its writer and its oracle. Not for concurrent use.
type World struct {
	TB     testing.TB
	T      target.Target
	VM     string
	Now    time.Time // of the next seal
	Doc    catalog.VMDoc
	Disks  []*Disk
	Points []catalog.Record // every closed epoch ever recorded
	Oracle map[catalog.PointID]map[string][]byte
	Level  segment.Level

	epoch    uint64
	previous catalog.PointID
	waiting  []catalog.SegmentRef // of open epochs
}

// Disk is a disk of a World as the guest sees it.
type Disk struct {
	ID, Name string
	Data     []byte // the virtual disk

	shipped  []byte // as of the newest epoch, padded to blocks
	complete bool
	removed  bool
}

// New makes a VM without disks. t is usually a fake.
func New(tb testing.TB, t target.Target, vm string) *World {
	w := &World{TB: tb, T: t, VM: vm, Now: time.Date(2026, 1, 5, 10, 0, 0, 0, time.UTC), Level: segment.Fastest,
		Oracle: map[catalog.PointID]map[string][]byte{}}
	w.Doc = catalog.VMDoc{Name: vm, VMID: uuid.NewString(), Generation: 1, Updated: w.Now,
		Owner: catalog.Owner{Host: "host1", MachineID: "m1", StoreID: "s1"}}
	w.must(catalog.CreateVM(w.ctx(), t, w.Doc))
	return w
}

func (w *World) ctx() context.Context { return w.TB.Context() }

func (w *World) must(err error) {
	w.TB.Helper()
	if err != nil {
		w.TB.Fatal(err)
	}
}

// update changes vm.json.
func (w *World) update(change func(*catalog.VMDoc)) {
	w.TB.Helper()
	doc, err := catalog.UpdateVM(w.ctx(), w.T, w.VM, func(d *catalog.VMDoc) error { change(d); return nil })
	w.must(err)
	w.Doc = doc
}

// AddDisk adds a disk in initial replication. size is a multiple of 512.
func (w *World) AddDisk(name string, size int) *Disk {
	w.TB.Helper()
	d := &Disk{ID: uuid.NewString(), Name: name, Data: make([]byte, size)}
	w.Disks = append(w.Disks, d)
	w.update(func(doc *catalog.VMDoc) {
		doc.Disks = append(doc.Disks, catalog.DiskDoc{ID: d.ID, Name: name, Format: string(image.Raw), VirtualSize: int64(size)})
	})
	return d
}

// CompleteDisk ends the initial replication: the replica holds the disk as it is
// now, under a base snapshot; the next epoch lists it as complete.
func (w *World) CompleteDisk(d *Disk) {
	w.TB.Helper()
	w.must(w.T.CreatePages(w.ctx(), catalog.ReplicaName(w.VM, d.ID), 0, 0))
	w.putReplica(d, d.Data)
	w.snapshot(d, catalog.PointID{Generation: w.Doc.Generation, Epoch: w.epoch}, catalog.KindBase)
	d.complete, d.shipped = true, pad(d.Data)
}

// RemoveDisk takes effect at the next epoch.
func (w *World) RemoveDisk(d *Disk) {
	w.TB.Helper()
	d.removed = true
	w.update(func(doc *catalog.VMDoc) {
		for i := range doc.Disks {
			doc.Disks[i].Removed = doc.Disks[i].Removed || doc.Disks[i].ID == d.ID
		}
	})
}

// Write changes bytes of a disk.
func (d *Disk) Write(off int, p []byte) { copy(d.Data[off:], p) }

// Resize sets the size; what is added is zeros.
func (d *Disk) Resize(size int) {
	if size <= len(d.Data) {
		d.Data = d.Data[:size:size]
		return
	}
	d.Data = append(d.Data, make([]byte, size-len(d.Data))...)
}

// Open seals and ships an epoch that gets no record.
func (w *World) Open() catalog.PointID {
	w.TB.Helper()
	id := w.nextEpoch()
	w.ship(id)
	return id
}

// Close seals, ships and records an epoch: a point.
func (w *World) Close() catalog.PointID {
	w.TB.Helper()
	id := w.nextEpoch()
	r := catalog.Record{VM: w.VM, VMID: w.Doc.VMID, Generation: id.Generation, Epoch: id.Epoch, EpochUUID: uuid.NewString(),
		Time: w.Now, Consistency: catalog.ConsistencyCrash, Previous: w.previous}
	r.Disks = w.ship(id)
	r.Segments, w.waiting = w.waiting, nil
	w.must(catalog.CreateRecord(w.ctx(), w.T, r))
	w.previous = id
	w.Points = append(w.Points, r)
	w.Oracle[id] = map[string][]byte{}
	for _, d := range w.Disks {
		if d.complete && !d.removed {
			w.Oracle[id][d.ID] = bytes.Clone(d.Data)
		}
	}
	return id
}

// Void gives an epoch up after its segments were uploaded.
func (w *World) Void() catalog.PointID {
	w.TB.Helper()
	before := make([][]byte, len(w.Disks))
	for i, d := range w.Disks {
		before[i] = d.shipped
	}
	open := w.waiting
	id := w.nextEpoch()
	w.ship(id)
	w.waiting = open
	for i, d := range w.Disks {
		d.shipped = before[i] // its changes come with the next epoch
	}
	w.must(catalog.CreateRecord(w.ctx(), w.T, catalog.Record{VM: w.VM, VMID: w.Doc.VMID, Generation: id.Generation,
		Epoch: id.Epoch, EpochUUID: uuid.NewString(), Previous: w.previous, Void: true}))
	return id
}

func (w *World) nextEpoch() catalog.PointID {
	w.epoch++
	return catalog.PointID{Generation: w.Doc.Generation, Epoch: w.epoch}
}

// ship writes a segment of every complete disk and returns the disks as a record
// lists them.
func (w *World) ship(id catalog.PointID) []catalog.RecordDisk {
	w.TB.Helper()
	var disks []catalog.RecordDisk
	for _, d := range w.Disks {
		if d.removed {
			continue
		}
		rd := catalog.RecordDisk{ID: d.ID, Name: d.Name, Format: string(image.Raw), State: catalog.StateInitial, VirtualSize: int64(len(d.Data))}
		if d.complete {
			now := pad(d.Data)
			info := w.putSegment(d, id, now)
			rd.State, rd.Sum = catalog.StateComplete, catalog.FormatSum(checksum.Of(now))
			rd.ChangedBytes, rd.StoredBytes = info.ChangedBytes, info.StoredBytes
			d.shipped = now
		}
		disks = append(disks, rd)
	}
	return disks
}

func pad(p []byte) []byte {
	padded := make([]byte, (len(p)+extent.BlockSize-1)/extent.BlockSize*extent.BlockSize)
	copy(padded, p)
	return padded
}

func block(p []byte, b int) []byte {
	if off := b * extent.BlockSize; off < len(p) {
		return p[off : off+extent.BlockSize]
	}
	return make([]byte, extent.BlockSize)
}

func (w *World) putSegment(d *Disk, id catalog.PointID, now []byte) segment.Info {
	w.TB.Helper()
	var buf bytes.Buffer
	sw, err := segment.NewWriter(&buf, segment.Header{VM: w.VM, Disk: d.ID, Generation: id.Generation, Epoch: id.Epoch,
		Previous: id.Epoch - 1, UUID: uuid.New(), EpochUUID: uuid.New(), VirtualSize: int64(len(d.Data))}, w.Level)
	w.must(err)
	for b := range max(len(now), len(d.shipped)) / extent.BlockSize {
		p := block(now, b)
		switch {
		case bytes.Equal(p, block(d.shipped, b)): // also where the disk grew and nobody wrote
		case checksum.IsZero(p):
			w.must(sw.Zero(extent.Range[extent.DiskBlock]{Start: extent.DiskBlock(b), End: extent.DiskBlock(b + 1)}))
		default:
			w.must(sw.Data(extent.DiskBlock(b), p, checksum.Blocks(nil, p)))
		}
	}
	info, err := sw.Close()
	w.must(err)
	name := catalog.SegmentName(w.VM, d.ID, id)
	w.must(w.T.CreatePages(w.ctx(), name, info.Size, 0))
	w.put(name, buf.Bytes())
	w.waiting = append(w.waiting, catalog.SegmentRef{DiskID: d.ID, Blob: name, Generation: id.Generation, Epoch: id.Epoch,
		Size: info.Size, Sum: catalog.FormatSum(info.Sum), UUID: info.UUID, VirtualSize: int64(len(d.Data))})
	return info
}

func (w *World) put(name string, p []byte) {
	w.TB.Helper()
	for off := 0; off < len(p); off += target.MaxPut {
		part := p[off:min(off+target.MaxPut, len(p))]
		w.must(w.T.PutPages(w.ctx(), name, int64(off), part, checksum.Of(part), target.Unguarded))
	}
}

// putReplica makes the replica hold content; zero chunks stay holes.
func (w *World) putReplica(d *Disk, content []byte) {
	w.TB.Helper()
	name := catalog.ReplicaName(w.VM, d.ID)
	size := image.ReplicaSize(int64(len(content)))
	w.must(w.T.Resize(w.ctx(), name, size, target.Unguarded))
	w.must(w.T.ClearPages(w.ctx(), name, 0, size, target.Unguarded))
	padded := pad(content)
	for off := 0; off < len(padded); off += extent.BlockSize {
		if p := padded[off : off+extent.BlockSize]; !checksum.IsZero(p) {
			w.must(w.T.PutPages(w.ctx(), name, int64(off), p, checksum.Of(p), target.Unguarded))
		}
	}
	footer := image.FixedFooter(size-image.FooterSize, [16]byte{1}, w.Now)
	w.must(w.T.PutPages(w.ctx(), name, size-image.FooterSize, footer[:], checksum.Of(footer[:]), target.Unguarded))
}

func (w *World) snapshot(d *Disk, at catalog.PointID, kind string) {
	w.TB.Helper()
	_, err := w.T.Snapshot(w.ctx(), catalog.ReplicaName(w.VM, d.ID), "", "", catalog.SnapshotMetadata(at, kind))
	w.must(err)
}

// Apply brings the replicas of the disks, or of all complete ones, to the newest
// point and takes their snapshots.
func (w *World) Apply(disks ...*Disk) {
	w.TB.Helper()
	if len(disks) == 0 {
		disks = w.Disks
	}
	for _, d := range disks {
		if content, ok := w.Oracle[w.previous][d.ID]; ok && !d.removed {
			w.putReplica(d, content)
			w.snapshot(d, w.previous, catalog.KindApply)
		}
	}
}

// Spoil leaves the replica as an apply that was interrupted does: no reader may
// ever look at it.
func (w *World) Spoil(d *Disk) {
	w.TB.Helper()
	p := bytes.Repeat([]byte{0xEE}, extent.BlockSize)
	w.must(w.T.PutPages(w.ctx(), catalog.ReplicaName(w.VM, d.ID), 0, p, checksum.Of(p), target.Unguarded))
}

// TakeOver raises the generation and writes the cut at the newest point. What
// was changed since is lost: the new owner starts from that point.
func (w *World) TakeOver() {
	w.TB.Helper()
	w.update(func(doc *catalog.VMDoc) {
		doc.Cuts = append(doc.Cuts, catalog.Cut{Generation: doc.Generation, Epoch: w.previous.Epoch})
		doc.Generation++
		doc.Owner.Host = fmt.Sprintf("host%d", doc.Generation)
	})
	w.waiting = nil
	for _, d := range w.Disks {
		if content, ok := w.Oracle[w.previous][d.ID]; ok {
			d.Data, d.shipped = bytes.Clone(content), pad(content)
		}
	}
}

// Scribble makes a few random changes to every disk.
func (w *World) Scribble(rng *rand.Rand) {
	for _, d := range w.Disks {
		for range 1 + rng.IntN(4) {
			n := 1 + rng.IntN(3*extent.BlockSize)
			off := rng.IntN(len(d.Data))
			p := make([]byte, min(n, len(d.Data)-off))
			if rng.IntN(4) > 0 {
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
			}
			d.Write(off, p)
		}
	}
}
