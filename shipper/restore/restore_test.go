package restore_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/catalog/catalogtest"
	"github.com/vhdrelay/vhdrelay/shipper/dir"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

const mib = 1 << 20

// randomWorld is a history of everything a writer does.
func randomWorld(t *testing.T, seed uint64, steps int) *catalogtest.World {
	t.Helper()
	return randomWorldAt(t, fake.New(fake.Options{}), seed, steps)
}

func randomWorldAt(t *testing.T, tt target.Target, seed uint64, steps int) *catalogtest.World {
	t.Helper()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	w := catalogtest.New(t, tt, "web 01")
	w.CompleteDisk(w.AddDisk("os.vhd", 40*extent.BlockSize+512))
	w.CompleteDisk(w.AddDisk("data/d1.img", 64*extent.BlockSize))
	late := w.AddDisk("late.vhdx", 16*extent.BlockSize)
	for step := range steps {
		w.Scribble(rng)
		if step == steps/3 {
			w.CompleteDisk(late)
			w.Scribble(rng)
		}
		if rng.IntN(5) == 0 {
			d := w.Disks[rng.IntN(2)]
			d.Resize((1 + rng.IntN(160)) * 512)
			w.Scribble(rng)
			d.Resize((1 + rng.IntN(1000)) * 512)
		}
		if rng.IntN(4) == 0 {
			w.Open()
			w.Scribble(rng)
		}
		if rng.IntN(6) == 0 {
			w.Void()
		}
		w.Close()
		switch rng.IntN(6) {
		case 0:
			w.Apply()
		case 1:
			w.Apply(w.Disks[0])
		case 2:
			w.Spoil(w.Disks[0])
		}
		if rng.IntN(8) == 0 {
			w.Open()
			w.TakeOver()
		}
	}
	return w
}

func open(t *testing.T, w *catalogtest.World, id catalog.PointID, disk string) *restore.Disk {
	t.Helper()
	doc, records, err := catalog.Load(t.Context(), w.T, w.VM)
	if err != nil {
		t.Fatal(err)
	}
	d, err := restore.Open(t.Context(), w.T, doc, records, id, disk, restore.Options{CacheBytes: 3 * extent.BlockSize, ReadAhead: 3})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestI5_EveryPointEqualsTheOracle(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := randomWorld(t, seed, 14)
			compareAll(t, w, seed)
		})
	}
}

func compareAll(t *testing.T, w *catalogtest.World, seed uint64) {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 2))
	for id, disks := range w.Oracle {
		for disk, want := range disks {
			d := open(t, w, id, disk)
			compareDisk(t, rng, d, want)
			if err := d.Verify(t.Context(), nil); err != nil {
				t.Errorf("%s %s: %v", id, disk, err)
			}
		}
	}
}

// The same from plain files.
func TestI5_EveryPointOfADirectory(t *testing.T) {
	d, err := dir.Open(t.TempDir(), dir.Options{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	compareAll(t, randomWorldAt(t, d, 5, 6), 5)
}

// compareDisk reads the whole and random parts.
func compareDisk(t *testing.T, rng *rand.Rand, d *restore.Disk, want []byte) {
	t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()+1))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%s at %s: %d bytes, %v; want %d bytes; first difference at %d", d.Plan().Disk.Name, d.Plan().Point,
			len(got), err, len(want), firstDifference(got, want))
	}
	for range 5 {
		off := rng.IntN(len(want))
		p := make([]byte, 1+rng.IntN(len(want)))
		n, err := d.ReadAt(p, int64(off))
		if n != min(len(p), len(want)-off) || (n < len(p)) != (err == io.EOF) || !bytes.Equal(p[:n], want[off:off+n]) {
			t.Fatalf("ReadAt(%d, %d) = %d, %v", len(p), off, n, err)
		}
	}
	if n, err := d.ReadAt(make([]byte, 1), d.Size()); n != 0 || err != io.EOF {
		t.Fatalf("read at the end: %d, %v", n, err)
	}
	if _, err := d.ReadAt(make([]byte, 1), -1); err == nil {
		t.Fatal("negative offset is read")
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// chain is a VM with one disk, a base snapshot and four points; every point
// writes one block.
func chain(t *testing.T) (*catalogtest.World, *fake.Fake, *catalogtest.Disk, []catalog.PointID) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("os.vhd", 32*extent.BlockSize)
	d.Write(0, bytes.Repeat([]byte("base"), 8*extent.BlockSize/4))
	w.CompleteDisk(d)
	var ids []catalog.PointID
	for i := range 4 {
		d.Write(i*2*extent.BlockSize, bytes.Repeat([]byte{byte('a' + i)}, extent.BlockSize+7))
		ids = append(ids, w.Close())
	}
	return w, f, d, ids
}

func TestI5_DamagedSegmentIsNamed(t *testing.T) {
	damage := map[string]func(t *testing.T, f *fake.Fake, name string){
		"missing": func(t *testing.T, f *fake.Fake, name string) {
			if err := f.Delete(t.Context(), name); err != nil {
				t.Fatal(err)
			}
		},
		"longer": func(t *testing.T, f *fake.Fake, name string) {
			p, _ := f.Properties(t.Context(), name, "")
			if err := f.Resize(t.Context(), name, p.Size+512, target.Unguarded); err != nil {
				t.Fatal(err)
			}
		},
		"header": func(t *testing.T, f *fake.Fake, name string) { f.Rot(name, "", 9) },
		"frame": func(t *testing.T, f *fake.Fake, name string) {
			p, _ := f.Properties(t.Context(), name, "")
			f.Rot(name, "", p.Size/2)
		},
	}
	for what, break_ := range damage {
		t.Run(what, func(t *testing.T) {
			w, f, d, ids := chain(t)
			name := catalog.SegmentName(w.VM, d.ID, ids[1])
			break_(t, f, name)
			err := verify(t, w, ids[3].String())
			var damaged *restore.SegmentError
			if !errors.As(err, &damaged) || damaged.Blob != name {
				t.Errorf("verify: %v, want it to name %s", err, name)
			}
			if err := verify(t, w, ids[0].String()); err != nil {
				t.Errorf("a point before the damage: %v", err)
			}
		})
	}
}

// A record that lists another segment than the one under the name.
func TestI5_ForeignSegmentIsRefused(t *testing.T) {
	w, _, d, ids := chain(t)
	doc, records, err := catalog.Load(t.Context(), w.T, w.VM)
	if err != nil {
		t.Fatal(err)
	}
	change := map[string]func(*catalog.SegmentRef){
		"uuid": func(s *catalog.SegmentRef) { s.UUID = catalog.NewPinID() },
		"size": func(s *catalog.SegmentRef) { s.VirtualSize += 512 },
		"sum":  func(s *catalog.SegmentRef) { s.Sum = "0123456789abcdef" },
	}
	for what, f := range change {
		damaged := records[1]
		damaged.Segments = append([]catalog.SegmentRef(nil), damaged.Segments...)
		f(&damaged.Segments[0])
		list := []catalog.Record{records[0], damaged, records[2], records[3]}
		disk, err := restore.Open(t.Context(), w.T, doc, list, ids[3], d.ID, restore.Options{})
		if err == nil && what == "sum" {
			err = disk.VerifySegments(t.Context())
		}
		if !errors.Is(err, restore.ErrSegment) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestI5_FoldNeverCrossesAGap(t *testing.T) {
	w, f, d, ids := chain(t)
	w.Apply()
	d.Write(5, []byte("later"))
	last := w.Close()
	if err := f.Delete(t.Context(), catalog.RecordName(w.VM, ids[1])); err != nil {
		t.Fatal(err)
	}
	var broken *catalog.ChainError
	if err := verify(t, w, ids[2].String()); !errors.As(err, &broken) || broken.At != ids[2] || broken.Previous != ids[1] {
		t.Errorf("fold across a gap: %v", err)
	}
	for _, id := range []catalog.PointID{ids[0], ids[3], last} {
		if err := verify(t, w, id.String()); err != nil {
			t.Errorf("point %s does not need the lost record: %v", id, err)
		}
	}
}

func TestI6_HalfAppliedReplicaIsNotRead(t *testing.T) {
	w, _, d, _ := chain(t)
	w.Spoil(d)
	if err := verify(t, w, catalog.SpecLatest); err != nil {
		t.Error(err)
	}
}

func TestVerifySeesRottenReplica(t *testing.T) {
	w, f, d, ids := chain(t)
	w.Apply()
	d.Write(1, []byte("x"))
	last := w.Close()
	snapshots, err := catalog.Snapshots(t.Context(), f, w.VM, d.ID)
	if err != nil || len(snapshots) != 2 {
		t.Fatal(snapshots, err)
	}
	if !f.Rot(catalog.ReplicaName(w.VM, d.ID), snapshots[1].ID, 3*extent.BlockSize) {
		t.Fatal("nothing there to rot")
	}
	var differs *restore.DiffersError
	if err := verify(t, w, last.String()); !errors.As(err, &differs) || differs.Disk != "os.vhd" || differs.Point != last {
		t.Errorf("verify: %v", err)
	}
	if err := verify(t, w, ids[2].String()); err != nil {
		t.Errorf("an older point comes from another snapshot: %v", err)
	}
}

// A disk that grew since the snapshot: what follows the old end reads as zeros,
// not as the replica's footer, and is not asked for.
func TestI6_GrownDiskHidesTheOldFooter(t *testing.T) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("grows.img", mib)
	d.Write(mib-4, []byte("last"))
	w.CompleteDisk(d)
	d.Resize(3*mib + 512)
	d.Write(2*mib, []byte("new"))
	grown := w.Close()
	d.Resize(mib / 2)
	shrunk := w.Close()
	d.Resize(2 * mib)
	again := w.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	for _, id := range []catalog.PointID{grown, shrunk, again} {
		disk := open(t, w, id, d.ID)
		compareDisk(t, rng, disk, w.Oracle[id][d.ID])
		if err := disk.Verify(t.Context(), nil); err != nil {
			t.Errorf("%s: %v", id, err)
		}
	}
	w.Apply()
	if err := verify(t, w, again.String()); err != nil {
		t.Error(err)
	}
}

// What lies between the end of the disk and the end of its last block belongs to
// nobody.
func TestPaddingIsNoContent(t *testing.T) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("odd.img", 3*extent.BlockSize+512)
	d.Write(3*extent.BlockSize, []byte("end"))
	w.CompleteDisk(d)
	w.Close()
	snapshots, err := catalog.Snapshots(t.Context(), f, w.VM, d.ID)
	if err != nil || !f.Rot(catalog.ReplicaName(w.VM, d.ID), snapshots[0].ID, 3*extent.BlockSize+600) {
		t.Fatal("nothing there to rot", err)
	}
	if err := verify(t, w, "latest"); err != nil {
		t.Error(err)
	}
}

func verify(t *testing.T, w *catalogtest.World, spec string) error {
	t.Helper()
	s, err := restore.Hold(t.Context(), w.T, w.VM, spec, nil, restore.HoldOptions{})
	if err != nil {
		return err
	}
	return errors.Join(s.Verify(nil), s.Close())
}

func TestHolesAreNotRead(t *testing.T) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("big.img", 600*mib)
	d.Write(300*mib, []byte("lonely"))
	w.CompleteDisk(d)
	d.Write(5*mib, []byte("changed"))
	id := w.Close()
	disk := open(t, w, id, d.ID)
	_, before := f.Traffic()
	var last int64
	if err := disk.Verify(t.Context(), func(done, total int64) {
		if done <= last || total != 600*mib {
			t.Errorf("progress %d of %d after %d", done, total, last)
		}
		last = done
	}); err != nil {
		t.Fatal(err)
	}
	if _, after := f.Traffic(); after-before > mib {
		t.Errorf("%d bytes read for two blocks", after-before)
	}
	if last != 600*mib {
		t.Errorf("progress ends at %d", last)
	}
}

// A fragmented disk costs requests by its size, not by its fragments.
func TestNeighboursAreReadAtOnce(t *testing.T) {
	f := fake.New(fake.Options{})
	w := catalogtest.New(t, f, "vm")
	d := w.AddDisk("frag.img", 8*mib)
	for off := 0; off < len(d.Data); off += 2 * extent.BlockSize {
		d.Write(off, []byte{1})
	}
	w.CompleteDisk(d)
	for off := 0; off < len(d.Data); off += 6 * extent.BlockSize {
		d.Write(off, []byte{byte(off / extent.BlockSize % 2 * 3), 0})
	}
	id := w.Close()
	before := f.Counts()["ReadPages"]
	disk := open(t, w, id, d.ID)
	if err := disk.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if n := f.Counts()["ReadPages"] - before; n > 40 {
		t.Errorf("%d reads", n)
	}
}

// Every failing operation is reported, and the next try succeeds.
func TestVerifyReportsEveryFailure(t *testing.T) {
	w, f, _, _ := chain(t)
	for k := 1; ; k++ {
		f.FailAt(k, fake.Fault{Kind: fake.Refuse})
		before := f.Injected()
		err := verify(t, w, catalog.SpecLatest)
		if f.Injected() == before {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d operations", k-1)
			return
		}
		if !errors.Is(err, fake.ErrInjected) {
			t.Fatalf("operation %d: %v", k, err)
		}
	}
}

func TestCancelledReadEnds(t *testing.T) {
	w, f, _, ids := chain(t)
	ctx, cancel := context.WithCancel(t.Context())
	doc, records, err := catalog.Load(ctx, w.T, w.VM)
	if err != nil {
		t.Fatal(err)
	}
	d, err := restore.Open(ctx, w.T, doc, records, ids[3], w.Disks[0].ID, restore.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "ReadPages" {
			cancel()
			return fake.Fault{Kind: fake.Hang}
		}
		return fake.Fault{}
	})
	if err := d.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
