package retention_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/catalog/catalogtest"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// serviceTime is the target's clock; ours is the world's.
type serviceTime func() (time.Time, error)

func (s serviceTime) ServiceTime(context.Context) (time.Time, error) { return s() }

// rig is a world and its pruner, one clock for all.
type rig struct {
	*catalogtest.World
	t      *testing.T
	f      *fake.Fake
	p      *retention.Pruner
	policy retention.Policy
	skew   time.Duration
}

func newRig(t *testing.T) *rig {
	f := fake.New(fake.Options{})
	r := &rig{World: catalogtest.New(t, f, "vm"), t: t, f: f, policy: retention.Policy{Dense: time.Hour, Hourly: 6 * time.Hour, Daily: 72 * time.Hour}}
	r.p = retention.NewPruner(f, serviceTime(func() (time.Time, error) { return r.Now.Add(r.skew), nil }), "vm",
		retention.Options{Now: func() time.Time { return r.Now }})
	return r
}

func (r *rig) prune() (retention.Result, error) {
	return r.p.Prune(r.t.Context(), r.policy, r.Doc.Generation)
}

func (r *rig) mustPrune() retention.Result {
	r.t.Helper()
	result, err := r.prune()
	if err != nil {
		r.t.Fatal(err)
	}
	return result
}

// live reads the points as an operator's machine does.
func (r *rig) live() (catalog.VMDoc, []catalog.Record) {
	r.t.Helper()
	doc, records, err := catalog.Load(r.t.Context(), r.f, r.VM)
	if err != nil {
		r.t.Fatal(err)
	}
	return doc, records
}

// checkAll restores every point that is listed, and compares it with the oracle.
func (r *rig) checkAll() {
	r.t.Helper()
	doc, records := r.live()
	for _, record := range records {
		for _, d := range record.Disks {
			if d.State == catalog.StateComplete {
				r.check(doc, records, record.ID(), d.ID)
			}
		}
	}
}

func (r *rig) check(doc catalog.VMDoc, records []catalog.Record, id catalog.PointID, disk string) {
	r.t.Helper()
	d, err := restore.Open(r.t.Context(), r.f, doc, records, id, disk, restore.Options{})
	if err != nil {
		r.t.Fatalf("point %s: %v", id, err)
	}
	r.compare(d)
}

func (r *rig) compare(d *restore.Disk) {
	r.t.Helper()
	got, err := io.ReadAll(io.NewSectionReader(d, 0, d.Size()+1))
	if want := r.Oracle[d.Plan().Point][d.Plan().Disk.ID]; err != nil || !bytes.Equal(got, want) {
		r.t.Fatalf("point %s, disk %s: %d bytes, %v; want %d", d.Plan().Point, d.Plan().Disk.Name, len(got), err, len(want))
	}
}

// blobs lists the names of all blobs of the VM that contain part.
func (r *rig) blobs(part string) (names []string) {
	r.t.Helper()
	for item, err := range r.f.List(r.t.Context(), "vm/") {
		if err != nil {
			r.t.Fatal(err)
		}
		if bytes.Contains([]byte(item.Name), []byte(part)) {
			names = append(names, item.Name)
		}
	}
	return names
}

// step makes one random thing happen.
func (r *rig) step(rng *rand.Rand) {
	r.Scribble(rng)
	switch rng.IntN(20) {
	case 0:
		r.Open()
		r.Scribble(rng)
	case 1:
		r.Void()
	case 2:
		r.Open()
		r.TakeOver()
		return
	case 3:
		r.Disks[0].Resize((1 + rng.IntN(40)) * 512)
	}
	r.Close()
	switch rng.IntN(7) {
	case 0, 1:
		r.Apply()
	case 2:
		r.Apply(r.Disks[rng.IntN(2)])
	}
}

// After any prune every listed point restores byte for byte, and so does every
// point a reader holds, listed or not.
func TestI5_EveryKeptPointStillRestores(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 3))
			r := newRig(t)
			r.CompleteDisk(r.AddDisk("a.img", 6*extent.BlockSize+512))
			r.CompleteDisk(r.AddDisk("b.img", 9*extent.BlockSize))
			var held []*restore.Session
			for range 90 {
				r.Now = r.Now.Add(time.Duration(1+rng.IntN(45)) * time.Minute)
				r.step(rng)
				if rng.IntN(10) == 0 {
					held = append(held, r.holdOldest())
				}
				if rng.IntN(3) == 0 {
					r.mustPrune()
					r.checkAll()
					r.checkHeld(held)
				}
				if len(held) > 0 && rng.IntN(12) == 0 {
					if err := held[0].Close(); err != nil {
						t.Fatal(err)
					}
					held = held[1:]
				}
			}
			r.checkBounded()
			for _, s := range held {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func (r *rig) holdOldest() *restore.Session {
	r.t.Helper()
	_, records := r.live()
	s, err := restore.Hold(r.t.Context(), r.f, r.VM, records[0].ID().String(), nil,
		restore.HoldOptions{PinTTL: 1000 * time.Hour, Now: func() time.Time { return r.Now }})
	if err != nil {
		r.t.Fatal(err)
	}
	return s
}

func (r *rig) checkHeld(held []*restore.Session) {
	r.t.Helper()
	for _, s := range held {
		for _, plan := range s.Plans() {
			d, err := s.Open(plan)
			if err != nil {
				r.t.Fatalf("held point %s: %v", plan.Point, err)
			}
			r.compare(d)
		}
	}
}

// checkBounded: with an apply, and nothing happening for a while, what is left
// is what the policy keeps.
func (r *rig) checkBounded() {
	r.t.Helper()
	r.Close()
	r.Apply()
	for range 3 {
		r.mustPrune()
		r.Now = r.Now.Add(61 * time.Minute)
	}
	r.checkAll()
	if records, segments := len(r.blobs("/points/")), len(r.blobs("/log/")); records > 120 || segments > 2*records+40 {
		r.t.Errorf("%d records and %d segments are left", records, segments)
	}
}

// simple is a rig with one disk, a base, and n points ten minutes apart, an
// apply at every third.
func simple(t *testing.T, n int) (*rig, *catalogtest.Disk) {
	r := newRig(t)
	d := r.AddDisk("a.img", 4*extent.BlockSize)
	r.CompleteDisk(d)
	for i := range n {
		r.Now = r.Now.Add(10 * time.Minute)
		d.Write(0, []byte{byte(i)})
		r.Close()
		if i%3 == 2 {
			r.Apply()
		}
	}
	return r, d
}

func TestI5_RecordFirstThenAnHour(t *testing.T) {
	r, _ := simple(t, 30) // 10:10 to 15:00; applies at epochs 3, 6 … 30
	segments := len(r.blobs("/log/"))
	first := r.mustPrune()
	if len(first.Records) == 0 || len(first.Segments)+len(first.Snapshots) != 0 || first.Waiting == 0 {
		t.Errorf("first run: %+v", first)
	}
	if !slices.IsSortedFunc(first.Records, func(a, b catalog.PointID) int { return b.Compare(a) }) {
		t.Errorf("records go newest first: %v", first.Records)
	}
	r.checkAll()
	r.Now = r.Now.Add(59 * time.Minute)
	if second := r.mustPrune(); len(second.Segments)+len(second.Snapshots) != 0 {
		t.Errorf("within the hour: %+v", second)
	}
	r.Now = r.Now.Add(time.Minute)
	third := r.mustPrune()
	if third.Waiting != 0 || len(third.Segments) == 0 || len(third.Snapshots) == 0 {
		t.Errorf("after the hour: %+v", third)
	}
	r.checkAll()
	// Dense is an hour: 14:00 is the oldest, its fold starts at the apply of 13:30.
	if left := r.blobs("/log/"); len(left) != segments-len(third.Segments) || len(left) > 9 {
		t.Errorf("left: %v", left)
	}
	if fourth := r.mustPrune(); len(fourth.Records)+len(fourth.Segments)+len(fourth.Snapshots) != 0 {
		t.Errorf("again: %+v", fourth)
	}
}

func TestPinHoldsWhatARecordNoLongerDoes(t *testing.T) {
	r, d := simple(t, 30)
	s, err := restore.Hold(t.Context(), r.f, r.VM, "1-5", nil, restore.HoldOptions{PinTTL: 3 * time.Hour, Now: func() time.Time { return r.Now }})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 2 {
		r.mustPrune()
		r.Now = r.Now.Add(61 * time.Minute)
	}
	if slices.Contains(r.blobs("/points/"), catalog.RecordName("vm", catalog.PointID{Generation: 1, Epoch: 5})) {
		t.Fatal("the record is kept: this proves nothing")
	}
	r.mustPrune()
	r.checkHeld([]*restore.Session{s})
	r.Now = r.Now.Add(2 * time.Hour) // expired: an hour later it holds nothing
	r.mustPrune()
	r.Now = r.Now.Add(2 * time.Hour)
	if result := r.mustPrune(); !slices.Contains(result.Segments, catalog.SegmentName("vm", d.ID, catalog.PointID{Generation: 1, Epoch: 5})) || len(result.Pins) != 1 {
		t.Errorf("after the pin: %+v", result)
	}
}

func TestNewestSnapshotAndWhatFollowsStay(t *testing.T) {
	r, d := simple(t, 3) // applied at 3
	r.policy = retention.Policy{}
	r.Now = r.Now.Add(10 * time.Minute)
	r.Close() // 4
	open := r.Open()
	for range 3 {
		r.mustPrune()
		r.Now = r.Now.Add(61 * time.Minute)
	}
	want := []string{catalog.SegmentName("vm", d.ID, catalog.PointID{Generation: 1, Epoch: 4}), catalog.SegmentName("vm", d.ID, open)}
	if left := r.blobs("/log/"); !slices.Equal(left, want) {
		t.Errorf("left: %v, want %v", left, want)
	}
	snapshots, err := catalog.Snapshots(t.Context(), r.f, "vm", d.ID)
	if err != nil || len(snapshots) != 1 || snapshots[0].Point.Epoch != 3 {
		t.Errorf("%+v, %v", snapshots, err)
	}
}

func TestSweepsVoidedAndBeyondACut(t *testing.T) {
	r, d := simple(t, 3)
	voided := r.Void()
	beyond := r.Open()
	r.TakeOver()
	r.Close()
	ours := r.Void()
	for range 3 {
		r.mustPrune()
		r.Now = r.Now.Add(61 * time.Minute)
	}
	for _, id := range []catalog.PointID{voided, beyond, ours} {
		if slices.Contains(r.blobs("/log/"), catalog.SegmentName("vm", d.ID, id)) {
			t.Errorf("segment %s is left", id)
		}
	}
	if slices.Contains(r.blobs("/points/"), catalog.RecordName("vm", voided)) {
		t.Error("a record beyond the cut is left")
	}
	if !slices.Contains(r.blobs("/points/"), catalog.RecordName("vm", ours)) {
		t.Error("the tombstone of a young epoch is gone: a late record would be a point")
	}
	r.checkAll()
}

func TestLatestCompletePointStays(t *testing.T) {
	r, _ := simple(t, 4)
	r.CompleteDisk(r.AddDisk("b.img", 4096))
	r.Now = r.Now.Add(time.Minute)
	r.Close()
	r.Apply()
	r.policy = retention.Policy{}
	r.mustPrune()
	_, kept := r.live()
	if len(kept) != 1 || kept[0].Epoch != 5 {
		t.Fatalf("%d points, the first of them %s", len(kept), kept[0].ID())
	}
	// The first disk is replicated anew: every later point lacks it.
	again := kept[0]
	again.Previous, again.Epoch, again.Segments = again.ID(), 6, nil
	again.Time = again.Time.Add(time.Hour)
	r.Now = again.Time
	again.EpochUUID = catalog.NewPinID()
	again.Disks = slices.Clone(again.Disks)
	again.Disks[0].State = catalog.StateInitial
	if err := catalog.CreateRecord(t.Context(), r.f, again); err != nil {
		t.Fatal(err)
	}
	r.mustPrune()
	doc, records := r.live()
	if found, ok := catalog.Latest(doc, records); !ok || found.Epoch != 5 {
		t.Errorf("latest is %s of %d points", found.ID(), len(records))
	}
}

func TestUnnamedDisksAreReported(t *testing.T) {
	r, _ := simple(t, 3)
	d := r.AddDisk("b.img", 4096)
	r.CompleteDisk(d)
	r.Close()
	r.RemoveDisk(d)
	r.Now = r.Now.Add(time.Hour)
	r.Close()
	r.Apply()
	if result := r.mustPrune(); len(result.Unnamed) != 0 {
		t.Errorf("a point names it still: %+v", result)
	}
	r.policy = retention.Policy{}
	if result := r.mustPrune(); !slices.Equal(result.Unnamed, []string{d.ID}) {
		t.Errorf("nobody names it: %+v", result)
	}
	if _, err := r.f.Properties(t.Context(), catalog.ReplicaName("vm", d.ID), ""); err != nil {
		t.Errorf("its replica is its owner's to delete: %v", err)
	}
}

func TestNothingIsPrunedWhen(t *testing.T) {
	for what, c := range map[string]struct {
		spoil func(r *rig)
		want  error
	}{
		"our clock is ahead":  {func(r *rig) { r.skew = -6 * time.Minute }, retention.ErrSkew},
		"our clock is behind": {func(r *rig) { r.skew = 6 * time.Minute }, retention.ErrSkew},
		"our clock was ahead": {func(r *rig) {
			r.Now = r.Now.Add(26 * time.Hour)
			r.Close()
			r.Now = r.Now.Add(-26 * time.Hour)
		}, retention.ErrSkew},
		"another took over":   {func(r *rig) { g := r.Doc.Generation; r.TakeOver(); r.Doc.Generation = g }, retention.ErrFenced},
		"the chain is broken": {func(r *rig) { r.breakChain() }, catalog.ErrChain},
		"a pin is newer than we": {func(r *rig) {
			if _, err := r.f.Create(r.t.Context(), catalog.PinName("vm", "x"), []byte(`{"version":2}`)); err != nil {
				r.t.Fatal(err)
			}
		}, catalog.ErrVersion},
	} {
		r, _ := simple(t, 30)
		c.spoil(r)
		before := r.blobs("")
		if _, err := r.prune(); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", what, err)
		}
		if after := r.blobs(""); !slices.Equal(before, after) {
			t.Errorf("%s: %d blobs, %d before", what, len(after), len(before))
		}
	}
}

// The clock was a day ahead for a while, and is right again: no point is lost for it, and what is old goes when the time
// has caught up.
func TestClockJumpCostsNoPoint(t *testing.T) {
	r, _ := simple(t, 30)
	r.mustPrune()
	_, before := r.live()
	r.Now = r.Now.Add(26 * time.Hour)
	jumped := r.Close()
	r.Now = r.Now.Add(-26 * time.Hour)
	for range 3 {
		_, err := r.prune()
		_, code, cause, action := retry.Describe(err)
		if !errors.Is(err, retention.ErrSkew) || retry.Classify(err) != retry.Recoverable || code != "clock-skew" ||
			!strings.Contains(cause, jumped.String()) || !strings.Contains(action, "pruning goes on at") {
			t.Fatalf("%v: %s, next: %s", err, code, action)
		}
		r.Now = r.Now.Add(8 * time.Hour)
	}
	if _, now := r.live(); len(now) != len(before)+1 {
		t.Errorf("%d points of %d", len(now), len(before)+1)
	}
	r.checkAll()
	r.Now = r.Now.Add(2 * time.Hour)
	r.mustPrune()
	if _, now := r.live(); len(now) >= len(before) {
		t.Errorf("%d points of %d are old, and stay", len(now), len(before))
	}
	r.checkAll()
}

// What an operator reads while the clocks differ.
func TestI12_SkewSaysWhatToDo(t *testing.T) {
	r, _ := simple(t, 4)
	r.skew = -3 * time.Hour
	_, err := r.prune()
	class, code, cause, action := retry.Describe(err)
	if class != retry.Recoverable || code != "clock-skew" || !strings.Contains(cause, "by 3h0m0s: nothing is pruned") || !strings.Contains(action, "timedatectl") {
		t.Errorf("%v %s: %s; next: %s", class, code, cause, action)
	}
}

func (r *rig) breakChain() {
	last := r.Points[len(r.Points)-1]
	last.Previous, last.Epoch, last.Segments = r.Points[0].ID(), last.Epoch+1, nil
	if err := catalog.CreateRecord(r.t.Context(), r.f, last); err != nil {
		r.t.Fatal(err)
	}
}

func TestClockThatDoesNotAnswer(t *testing.T) {
	r, _ := simple(t, 30)
	p := retention.NewPruner(r.f, serviceTime(func() (time.Time, error) { return time.Time{}, target.ErrThrottled }), "vm", retention.Options{})
	if result, err := p.Prune(t.Context(), r.policy, 1); !errors.Is(err, target.ErrThrottled) || len(result.Records) != 0 {
		t.Errorf("%+v, %v", result, err)
	}
}

// Whatever fails, the points that are listed restore, and the next runs finish.
func TestPruneFailsAtEveryOperation(t *testing.T) {
	for _, kind := range []fake.Kind{fake.Refuse, fake.Applied, fake.NotApplied} {
		for k := 1; ; k += 3 {
			r, _ := simple(t, 24)
			r.mustPrune()
			for range 3 {
				r.Now = r.Now.Add(10 * time.Minute)
				r.Disks[0].Write(5, []byte("x"))
				r.Close()
			}
			r.Apply()
			r.Now = r.Now.Add(51 * time.Minute)
			r.f.FailAt(k, fake.Fault{Kind: kind})
			before := r.f.Injected()
			_, err := r.prune()
			met := r.f.Injected() > before
			r.f.FailAt(0, fake.Fault{})
			if met != (err != nil) {
				t.Fatalf("%v at %d: met %v, error %v", kind, k, met, err)
			}
			r.checkAll()
			if !met {
				break
			}
			r.mustPrune()
			r.checkAll()
		}
	}
}
