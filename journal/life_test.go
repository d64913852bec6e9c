package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

func TestR1_NewerStoreIsRefusedUntouched(t *testing.T) {
	for raw, want := range map[string]error{"2": ErrNewer, "x": ErrFormat, "0": ErrFormat} {
		s := &memory.Store{}
		var b kv.Batch
		b.Put([]byte(keyVersion), []byte(raw))
		if err := s.Apply(&b); err != nil {
			t.Fatal(err)
		}
		_, err := Open(s, Options{})
		if !errors.Is(err, want) {
			t.Errorf("version %q: %v", raw, err)
		}
		if advised, ok := errors.AsType[newerError](err); ok != (want == ErrNewer) || ok && advised.ErrorAction() == "" {
			t.Errorf("version %q: nothing to do: %v", raw, err)
		}
		if err := Check(s); !errors.Is(err, want) {
			t.Errorf("check of version %q: %v", raw, err)
		}
		if s.Applies() != 1 {
			t.Error("the store was written to")
		}
	}
}

func TestR2_R3_R4_CleanStopKeepsTheChangeSets(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(3 * setPageBlocks)
	d := r.disk("a", f)
	write(t, d, f, 5, 3, 1)
	write(t, d, f, setPageBlocks-1, 3, 1)
	for range 3 {
		s := r.sealed(SealRequest{})
		if err := s.MergeBack(); err != nil {
			t.Fatal(err)
		}
	}
	r.close()
	r.close()
	store := r.store.Crash()
	r2 := openRig(t, store, Options{})
	if !r2.j.WasClean() || r2.vm.ID() != r.vm.ID() || r2.vm.LastEpoch() != 3 {
		t.Errorf("clean %v, id %s, epoch %d", r2.j.WasClean(), r2.vm.ID(), r2.vm.LastEpoch())
	}
	d2 := r2.disk("a", f)
	if d2.ID() != d.ID() || len(d2.Suspect()) != 0 || d2.PendingBlocks() != 6 || d2.ActiveRegions() != d.ActiveRegions() {
		t.Errorf("suspect %v, pending %d, active %d", d2.Suspect(), d2.PendingBlocks(), d2.ActiveRegions())
	}
	r2.check()
	crashed := openRig(t, store.Crash(), Options{})
	if crashed.j.WasClean() {
		t.Error("clean after a crash: the flag is not removed in Open")
	}
	d3 := crashed.disk("a", f)
	want := []blockRange{blocks(0, 1024), blocks(31*1024, 33*1024)}
	if got := d3.Suspect(); !slices.Equal(got, want) || d3.PendingBlocks() != 0 {
		t.Errorf("after a crash: suspect %v, pending %d", got, d3.PendingBlocks())
	}
	if e := crashed.vm.LastEpoch(); e < 3 {
		t.Errorf("epoch %d after a crash", e)
	}
}

func TestR4_DiskNotAttachedKeepsItsCleanStop(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 5, 3, 1)
	r.close()
	openRig(t, r.store, Options{}) // crashes without having attached it
	r3 := openRig(t, r.store, Options{})
	d3 := r3.disk("a", f)
	if r3.j.WasClean() || len(d3.Suspect()) != 0 || d3.PendingBlocks() != 3 {
		t.Errorf("suspect %v, pending %d", d3.Suspect(), d3.PendingBlocks())
	}
}

func TestR5_R6_ChangesBehindOurBack(t *testing.T) {
	later := time.Unix(2_000_000, 0)
	for name, c := range map[string]struct {
		clean    bool
		boot     Boot
		ino      uint64
		beat     time.Duration // after the image's last change of ours; 0: none
		change   func(f *modelFile)
		distrust bool
	}{
		"clean, unchanged":              {clean: true, boot: modelBoot, ino: 1},
		"clean, size":                   {clean: true, boot: modelBoot, ino: 1, change: func(f *modelFile) { f.mu.size++ }, distrust: true},
		"clean, ctime":                  {clean: true, boot: modelBoot, ino: 1, change: func(f *modelFile) { f.mu.ctime = later }, distrust: true},
		"clean, replaced":               {clean: true, boot: modelBoot, ino: 2, distrust: true},
		"unclean, same boot":            {boot: modelBoot, ino: 1},
		"unclean, same boot, changed":   {boot: modelBoot, ino: 1, change: func(f *modelFile) { f.mu.ctime = later }, distrust: true},
		"unclean, beat covers it":       {boot: modelBoot, ino: 1, beat: 2_000_000 * time.Second, change: func(f *modelFile) { f.mu.ctime = later }},
		"unclean, next boot":            {boot: Boot{ID: "2", Start: later}, ino: 1},
		"unclean, boot without us":      {boot: Boot{ID: "2", Start: later.Add(1)}, ino: 1, change: func(f *modelFile) { f.mu.ctime = later }, distrust: true},
		"unclean, last beat was lost":   {boot: Boot{ID: "2", Start: later.Add(1)}, ino: 1, beat: 1_999_900 * time.Second, change: func(f *modelFile) { f.mu.ctime = later }},
		"unclean, changed in next boot": {boot: Boot{ID: "2", Start: later}, ino: 1, change: func(f *modelFile) { f.mu.ctime = later.Add(1) }, distrust: true},
		"unclean, replaced":             {boot: modelBoot, ino: 2, distrust: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{Now: func() time.Time { return time.Unix(1000, 0) }})
			f := newModelFile(4 * extent.BlocksPerRegion)
			d := r.disk("a", f)
			write(t, d, f, 0, 1, 1)
			if c.beat != 0 {
				if err := r.j.Heartbeat(time.Unix(0, 0).Add(c.beat)); err != nil {
					t.Fatal(err)
				}
			}
			if c.clean {
				r.close()
			}
			if c.change != nil {
				c.change(f)
			}
			r2 := openRig(t, r.store, Options{Saved: r.opts.Saved, Boot: func() Boot { return c.boot }})
			d2, err := r2.vm.AddDisk("a", f, Identity{Ino: c.ino})
			if err != nil {
				t.Fatal(err)
			}
			whole := len(d2.Suspect()) == 1 && d2.Suspect()[0].Len() >= 4*extent.BlocksPerRegion
			if whole != c.distrust || c.distrust && d2.Recovery().Reason == "" {
				t.Errorf("suspect %v, %+v", d2.Suspect(), d2.Recovery())
			}
		})
	}
}

func TestR7_R8_MarkedImageIsSuspectDurably(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(4 * extent.BlocksPerRegion)
	f.mu.marked = true
	d := r.disk("a", f)
	if len(d.Suspect()) != 1 || f.mu.marked {
		t.Fatalf("suspect %v, marked %v", d.Suspect(), f.mu.marked)
	}
	again := openRig(t, r.store.Crash(), Options{}).disk("a", f)
	if !slices.Equal(again.Suspect(), d.Suspect()) || again.Recovery().Reason == "" {
		t.Errorf("after a crash: %v", again.Suspect())
	}
}

func TestR9_I11_ComparisonClearsSuspicionAndResumes(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(200*extent.BlocksPerRegion + 10)
	d := r.disk("a", f)
	if err := d.SetSuspect("asked for"); err != nil {
		t.Fatal(err)
	}
	d.Suspect()
	rec := d.Recovery()
	if rec.SuspectBytes != 201*extent.RegionSize || rec.Reason != "asked for" {
		t.Errorf("%+v", rec)
	}
	half := blocks(0, 100*extent.BlocksPerRegion+7)
	for part := range half.Split(extent.BlocksPerChunk) {
		if err := d.Compared(part); err != nil {
			t.Fatal(err)
		}
	}
	d.Mark(blocks(3, 5))
	if got := d.Suspect(); !slices.Equal(got, []blockRange{blocks(100*extent.BlocksPerRegion, 201*extent.BlocksPerRegion)}) {
		t.Errorf("suspect %v", got)
	}
	if rec := d.Recovery(); rec.ComparedBytes != 100*extent.RegionSize || rec.DifferingBytes != 2*extent.BlockSize {
		t.Errorf("%+v", rec)
	}
	again := openRig(t, r.store.Crash(), Options{}).disk("a", f)
	first := again.Suspect()
	if len(first) != 2 || first[0] != blocks(0, 1024) || first[1].Start != 96*extent.BlocksPerRegion {
		t.Errorf("resumes at %v: the marked region and from the durable cursor", first)
	}
	if err := d.Compared(blocks(100*extent.BlocksPerRegion, 200*extent.BlocksPerRegion+10)); err != nil {
		t.Fatal(err)
	}
	if len(d.Suspect()) != 0 {
		t.Errorf("suspect at the end: %v", d.Suspect())
	}
	if _, err := r.store.Get([]byte(preSuspect + d.id)); !errors.Is(err, kv.ErrNotFound) {
		t.Errorf("the record stays: %v", err)
	}
	if err := d.SetSuspect("again"); err != nil || d.Recovery().Reason != "again" || d.Recovery().ComparedBytes != 0 {
		t.Errorf("%v, %+v", err, d.Recovery())
	}
	r.close()
	if got := openRig(t, r.store, Options{}).disk("a", f).Suspect(); len(got) != 1 {
		t.Errorf("suspicion after a clean stop: %v", got)
	}
}

// What became suspect while it was compared may have been read before: a chunk that was under way then must not
// clear it, nor complete a region whose other chunks were passed before.
func TestI11_NothingReadBeforeASuspicionClearsIt(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(2 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	suspect := func(why string) {
		t.Helper()
		if err := d.SetSuspect(why); err != nil {
			t.Fatal(err)
		}
	}
	compared := func(from, to extent.FileBlock) {
		t.Helper()
		if err := d.Compared(blocks(from, to)); err != nil {
			t.Fatal(err)
		}
	}
	suspect("first")
	d.Suspect() // a comparison begins
	compared(0, 512)
	suspect("changed behind our back") // while the rest is being read
	if !d.Suspected() {                // and somebody looks
		t.Fatal("not suspect")
	}
	compared(512, 2048)
	if got := d.Suspect(); len(got) != 1 || got[0] != blocks(0, 2048) {
		t.Fatalf("suspect %v", got)
	}
	compared(512, 1024) // of the next comparison, which reads all of it
	if got := d.Suspect(); len(got) != 1 || got[0] != blocks(0, 2048) {
		t.Fatalf("suspect %v", got)
	}
	compared(0, 2048)
	if got := d.Suspect(); len(got) != 0 {
		t.Errorf("suspect %v", got)
	}
}

func TestI4_UnrecordedMarkStopsTheComparison(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(4 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	f.set(func() { f.mu.markErr = errDisk })
	r.store.Before = func(int, *kv.Batch) memory.Fault { return memory.Lost }
	d.Mark(blocks(0, 1))
	if err := d.Compared(blocks(0, 1024)); !errors.Is(err, ErrUntracked) {
		t.Errorf("compared: %v", err)
	}
	if d.PendingBlocks() != 1 {
		t.Error("not even marked")
	}
	f.set(func() { f.mu.markErr = nil })
	d.Mark(blocks(0, 1))
	if err := d.Compared(blocks(0, 1024)); err != nil {
		t.Errorf("compared: %v", err)
	}
}

func TestI9_SuspicionTheStoreDoesNotTakeIsMarked(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(4 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	r.store.Before = func(int, *kv.Batch) memory.Fault { return memory.Lost }
	if err := d.SetSuspect("why"); err != nil || !f.mu.marked {
		t.Errorf("%v, marked %v", err, f.mu.marked)
	}
}

func TestI4_DeactivationTakesOnlyWhatIsSettled(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(16 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	for i := range extent.FileBlock(4) {
		write(t, d, f, i*extent.BlocksPerRegion, 1, 1)
	}
	rest(r.vm)
	if n, err := r.vm.Deactivate(t.Context()); n != 0 || err != nil || f.mu.syncs != 1 {
		t.Errorf("with changed blocks: %d, %v; %d syncs", n, err, f.mu.syncs)
	}
	s := r.sealed(SealRequest{})
	rest(r.vm)
	if _, err := r.vm.Deactivate(t.Context()); !errors.Is(err, ErrSealed) {
		t.Errorf("while sealed: %v", err)
	}
	spooled(t, s)
	write(t, d, f, 0, 1, 2)                                 // region 0 is changed again
	p, _ := d.Begin(extent.Change{Off: off(1024)})          // an empty change pins nothing
	d.End(extent.Change{Off: off(1024)}, p, nil)            //
	f.mu.beforeSync = func() { write(t, d, f, 1024, 1, 2) } // region 1 during the sync
	d.sus.bits.Set(oneRegion(2))                            // region 2 is suspect
	rest(r.vm)
	n, err := r.vm.Deactivate(t.Context())
	if n != 1 || err != nil || !slices.Equal(d.regions.list(), []region{0, 1, 2}) || hasRecord(r.store, d, 3) {
		t.Errorf("%d, %v; active %v", n, err, d.regions.list())
	}
	r.check()
}

func TestI4_FailedSyncMakesActiveRegionsSuspect(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(16 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	spooled(t, r.sealed(SealRequest{}))
	write(t, d, f, 5*extent.BlocksPerRegion, 1, 1)
	f.mu.syncErr = errDisk
	rest(r.vm)
	if n, err := r.vm.Deactivate(t.Context()); n != 0 || !errors.Is(err, errDisk) {
		t.Errorf("%d, %v", n, err)
	}
	f.mu.syncErr = nil
	if got := d.Suspect(); !slices.Equal(got, []blockRange{blocks(0, 1024), blocks(5*1024, 6*1024)}) {
		t.Errorf("suspect %v", got)
	}
	rest(r.vm)
	if n, err := r.vm.Deactivate(t.Context()); n != 0 || err != nil {
		t.Errorf("before the comparison: %d, %v", n, err)
	}
	s := r.sealed(SealRequest{})
	if !s.Disks[0].SuspectAtSeal {
		t.Error("the seal does not know")
	}
	spooled(t, s)
	if err := d.Compared(blocks(0, 16*1024)); err != nil {
		t.Fatal(err)
	}
	rest(r.vm)
	if n, err := r.vm.Deactivate(t.Context()); n != 2 || err != nil {
		t.Errorf("after the comparison: %d, %v", n, err)
	}
}

func TestI1_EvictionAtTheCap(t *testing.T) {
	r := newRig(t, Options{ActivityRegions: 4})
	f := newModelFile(64 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	pressed := make(chan struct{}, 10)
	r.vm.OnPressure(func() { pressed <- struct{}{} })
	var unknown extent.Set[extent.FileBlock]
	d.OnEvict(func(ranges []blockRange) error {
		for _, b := range ranges {
			g := regionsOf(b).first
			if d.regions.state(g) != wordLeaving || !hasRecord(r.store, d, g) || f.mu.synced[b.Start] != f.stamp(b.Start) {
				t.Errorf("region %d: forgotten out of order", g)
			}
			unknown.Add(b)
		}
		return nil
	})
	for i := range extent.FileBlock(20) {
		write(t, d, f, i*extent.BlocksPerRegion+i, 2, uint64(i+1))
		if n := d.ActiveRegions(); n > 4 {
			t.Errorf("%d active regions after %d", n, i)
		}
	}
	<-pressed
	if d.PendingBlocks() != 40 || r.j.Stats().Evictions < 16 {
		t.Errorf("pending %d, evicted %d", d.PendingBlocks(), r.j.Stats().Evictions)
	}
	for i := range extent.FileBlock(20) {
		b := i*extent.BlocksPerRegion + i
		if !hasRecord(r.store, d, region(i)) && !unknown.Contains(blocks(b, b+2)) {
			t.Errorf("region %d has no record and known entries", i)
		}
	}
	r.check()
}

func TestI9_NothingToEvictOvershootsTheCap(t *testing.T) {
	r := newRig(t, Options{ActivityRegions: 4})
	f := newModelFile(64 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	forget := errDisk
	d.OnEvict(func([]blockRange) error { return forget })
	for i := range extent.FileBlock(6) {
		write(t, d, f, i*extent.BlocksPerRegion, 1, 1)
	}
	if d.ActiveRegions() != 6 || d.anyLeaving(regionSpan{0, 10}) {
		t.Errorf("%d active", d.ActiveRegions())
	}
	s := r.sealed(SealRequest{})
	forget = nil
	write(t, d, f, 10*extent.BlocksPerRegion, 1, 1)
	if r.j.Stats().Evictions != 0 {
		t.Error("a region of the sealed set was evicted")
	}
	spooled(t, s)
	r.check()
}

func TestI5_EpochNumbersAreNeverReused(t *testing.T) {
	r := newRig(t, Options{})
	var last uint64
	for range 40 {
		s := r.sealed(SealRequest{})
		if s.Epoch <= last {
			t.Fatalf("epoch %d after %d", s.Epoch, last)
		}
		last = s.Epoch
		if again := openRig(t, r.store.Crash(), Options{}).sealed(SealRequest{}); again.Epoch <= last {
			t.Fatalf("epoch %d after a crash in %d", again.Epoch, last)
		}
		spooled(t, s)
	}
	if n := r.store.Applies(); n > 7 {
		t.Errorf("%d commits for 40 seals", n)
	}
	if err := r.vm.RaiseEpoch(1000); err != nil || r.vm.LastEpoch() != 1000 {
		t.Errorf("%v, %d", err, r.vm.LastEpoch())
	}
	if err := r.vm.RaiseEpoch(10); err != nil || r.sealed(SealRequest{}).Epoch != 1001 {
		t.Errorf("%v", err)
	}
}

func TestDocumentsAndSession(t *testing.T) {
	r := newRig(t, Options{})
	var v struct{ A int }
	if ok, err := r.j.Load("x", &v); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	v.A = 7
	if err := r.j.Save("x", v); err != nil {
		t.Fatal(err)
	}
	_, current, _ := r.j.Session()
	if err := r.j.PublishSession(); err != nil {
		t.Fatal(err)
	}
	r2 := openRig(t, r.store.Crash(), Options{})
	previous, now, published := r2.j.Session()
	if previous != current || now == current || !published || r2.j.Ancestor() != "" {
		t.Errorf("%s %s %v", previous, now, published)
	}
	v.A = 0
	if ok, err := r2.j.Load("x", &v); !ok || err != nil || v.A != 7 {
		t.Errorf("%v %v %+v", ok, err, v)
	}
	if err := r2.j.Remove("x"); err != nil {
		t.Fatal(err)
	}
	if ok, _ := r2.j.Load("x", &v); ok {
		t.Error("removed and there")
	}
}

func TestVMsAndDisksByName(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(10)
	d := r.disk("a", f)
	if _, err := r.vm.AddDisk("a", f, Identity{Ino: 1}); !errors.Is(err, ErrExists) {
		t.Errorf("second disk: %v", err)
	}
	p, _ := d.Begin(extent.Change{Len: 1})
	if err := r.j.Close(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("close: %v", err)
	}
	if err := r.vm.RemoveDisk(d); !errors.Is(err, ErrBusy) {
		t.Errorf("remove: %v", err)
	}
	d.End(extent.Change{Len: 1}, p, nil)
	if vm, err := r.j.VM("vm"); vm != r.vm || err != nil || len(r.j.VMs()) != 1 || vm.Name() != "vm" || d.Name() != "a" {
		t.Errorf("%v %v", vm, err)
	}
	if _, err := r.vm.AddDisk("b", newModelFile(MaxFileSize), Identity{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("huge: %v", err)
	}
	r.close()
	if _, err := r.j.VM("other"); !errors.Is(err, ErrClosed) {
		t.Errorf("after close: %v", err)
	}
}

func TestCheckFindsDamage(t *testing.T) {
	for key, value := range map[string]string{
		"nothing/known": "", "meta/other": "", preVM + "x": "{", preDisk + "no/such": "{}", preClean + "no": "{}", preEpoch + "no": "{}",
		preActive + "no/\x00\x00\x00\x00": "", preActive + "short": "", preSuspect + "no": `{"ranges":[[5,6],[1,2]]}`, preSet + "no/\x00\x00\x00\x00": "\x07",
	} {
		r := newRig(t, Options{})
		r.disk("a", newModelFile(10))
		r.check()
		var b kv.Batch
		b.Put([]byte(key), []byte(value))
		if err := r.store.Apply(&b); err != nil {
			t.Fatal(err)
		}
		if err := r.j.Check(); !errors.Is(err, ErrFormat) {
			t.Errorf("%q: %v", key, err)
		}
	}
	r := newRig(t, Options{})
	d := r.disk("a", newModelFile(10))
	d.regions.activate(3)
	if err := r.j.Check(); !errors.Is(err, ErrFormat) {
		t.Errorf("an active region without a record: %v", err)
	}
}

func TestDump(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(16 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 3*1024, 1)
	write(t, d, f, 5*1024, 1, 1)
	var out bytes.Buffer
	if err := r.j.Dump(&out); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"act/" + d.ID() + " [0,3)\n", "act/" + d.ID() + " [5,6)\n", "meta/version 1\n", `"name":"a"`} {
		if !strings.Contains(out.String(), line) {
			t.Errorf("no %q in\n%s", line, out.String())
		}
	}
}

func TestDumpJSON(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(16 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 3*1024, 1)
	write(t, d, f, 5*1024, 1, 1)
	var out bytes.Buffer
	if err := r.j.DumpJSON(&out); err != nil {
		t.Fatal(err)
	}
	var all []Dumped
	if err := json.Unmarshal(out.Bytes(), &all); err != nil {
		t.Fatalf("%v: %s", err, out.String())
	}
	have := map[string]bool{}
	for _, x := range all {
		if x.From != nil {
			have[fmt.Sprintf("%s %d-%d", x.Key, *x.From, *x.To)] = true
		} else {
			have[x.Key+" "+string(x.Value)] = true
		}
	}
	for _, want := range []string{"act/" + d.ID() + " 0-3", "act/" + d.ID() + " 5-6", "meta/version 1"} {
		if !have[want] {
			t.Errorf("no %q in %s", want, out.String())
		}
	}
	out.Reset()
	if err := DumpJSON(&memory.Store{}, &out); err != nil || !json.Valid(out.Bytes()) {
		t.Errorf("%v: %q", err, out.String())
	}
}

// The order of durable operations, reviewed as text.
func TestGoldenTrace(t *testing.T) {
	var trace []string
	var f *modelFile
	r := newRig(t, Options{Hook: func(p string) { trace = append(trace, p) }})
	f = newModelFile(4 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	write(t, d, f, 1, 1, 1)
	s := r.sealed(SealRequest{})
	write(t, d, f, 0, 1, 2)
	got := capture(t, s.Disks[0], 0)
	spooled(t, s)
	s = r.sealed(SealRequest{})
	spooled(t, s)
	rest(r.vm)
	if _, err := r.vm.Deactivate(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.close()
	want := []string{
		AfterSessionStart, AfterDiskUnclean, BeforeActivationCommit, AfterActivationCommit,
		BeforeEpochReserve, AfterEpochReserve, AfterPhaseSwitch, AfterSettle,
		AfterBlocksClaimed, AfterBlocksSaved, BeforeReaderSwap, AfterEpochEnd,
		AfterPhaseSwitch, AfterSettle, AfterEpochEnd,
		BeforeDeactivationSync, AfterDeactivationSync, BeforeDeactivationApply, AfterDeactivationApply,
		BeforeCleanSets, BeforeDeactivationSync, AfterDeactivationSync, AfterCleanSets, AfterCleanFlag,
	}
	if !slices.Equal(trace, want) {
		t.Errorf("trace\n%s\nwant\n%s", strings.Join(trace, "\n"), strings.Join(want, "\n"))
	}
	if !maps.Equal(got, map[extent.FileBlock]uint64{0: 1, 1: 1}) {
		t.Errorf("captured %v", got)
	}
}

func TestKnownVMs(t *testing.T) {
	r := newRig(t, Options{})
	if _, err := r.j.VM("a/b"); err != nil {
		t.Fatal(err)
	}
	r.close()
	j, err := Open(r.store, Options{Saved: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := j.KnownVMs(); err != nil || !slices.Equal(got, []string{"a/b", "vm"}) || len(j.VMs()) != 0 {
		t.Errorf("%q, loaded %d, %v", got, len(j.VMs()), err)
	}
}

// A store that is given up because it takes too long says so with a code of its own, and is failing as any other.
func TestI12_SlowStoreHasACode(t *testing.T) {
	var err error = slowError{"an activation took more than 1s"}
	var coded interface{ ErrorCode() string }
	var advised interface{ ErrorAction() string }
	around := fmt.Errorf("capture: %w", err)
	if !errors.Is(around, ErrFailing) || !errors.As(around, &coded) || coded.ErrorCode() != CodeSlow || !errors.As(around, &advised) || advised.ErrorAction() == "" {
		t.Errorf("%v", around)
	}
}
