package journal

import (
	"context"
	"errors"
	"maps"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

func TestI2_WriteBelongsToThePhaseItBeganIn(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 1, 1, 1)
	c := extent.Change{Off: off(2), Len: extent.BlockSize}
	p, err := d.Begin(c) // in flight at the seal
	if err != nil {
		t.Fatal(err)
	}
	s := r.seal(SealRequest{})
	write(t, d, f, 3, 1, 3) // touches nothing of the old set: waits for nobody
	select {
	case <-s.phase.drained:
		t.Fatal("drained with a write in flight")
	default:
	}
	if err := s.Disks[0].ReadBlocks(blocks(1, 2), make([]byte, extent.BlockSize)); !errors.Is(err, ErrNotSettled) {
		t.Errorf("read before wait: %v", err)
	}
	if err := s.Spooled(); !errors.Is(err, ErrNotSettled) {
		t.Errorf("spooled before wait: %v", err)
	}
	f.do(c, 2)
	d.End(c, p, nil)
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := map[extent.FileBlock]uint64{1: 1, 2: 2}
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, want) {
		t.Errorf("captured %v, want %v", got, want)
	}
	spooled(t, s)
	s = r.sealed(SealRequest{})
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 3}) {
		t.Errorf("next epoch: %v", got)
	}
}

func TestI2_WaitEndsWithItsContext(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	p, _ := d.Begin(extent.Change{Len: 1})
	s := r.seal(SealRequest{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	if err := r.j.Close(t.Context()); !errors.Is(err, ErrSealed) {
		t.Errorf("close with a sealed epoch: %v", err)
	}
	d.End(extent.Change{Len: 1}, p, nil)
	if err := s.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestI2_NewWriteToAnOldBlockWaitsForTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		f := newModelFile(100)
		d := r.disk("a", f)
		old := extent.Change{Off: off(5), Len: extent.BlockSize}
		p, _ := d.Begin(old)
		s := r.seal(SealRequest{SavedLimit: 1 << 20, Extra: map[string][]blockRange{d.id: {blocks(7, 8)}}})
		var wg sync.WaitGroup
		for i, b := range []extent.FileBlock{5, 7} { // changed, and extra
			wg.Go(func() { write(t, d, f, b, 1, uint64(100+i)) })
		}
		synctest.Wait()
		if f.stamp(5) != 0 || f.stamp(7) != 0 {
			t.Error("overwritten before the old phase was drained")
		}
		f.do(old, 50)
		d.End(old, p, nil)
		wg.Wait()
		if err := s.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{5: 50, 7: 0}) {
			t.Errorf("captured %v", got)
		}
		if f.stamp(5) != 100 || f.stamp(7) != 101 || s.SavedBytes() != 2*extent.BlockSize {
			t.Errorf("now %d %d, saved %d", f.stamp(5), f.stamp(7), s.SavedBytes())
		}
		spooled(t, s)
		r.close()
	})
}

func TestI3_OverwrittenBlocksAreReadFromTheSavedFile(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(1000)
	d := r.disk("a", f)
	for b := range extent.FileBlock(300) {
		write(t, d, f, b, 1, 1000+uint64(b))
	}
	s := r.sealed(SealRequest{})
	sd := s.Disks[0]
	write(t, d, f, 10, 280, 7)
	change(t, d, f, extent.Change{Kind: extent.Discard, Off: off(0), Len: 5 * extent.BlockSize}, 0)
	write(t, d, f, 10, 280, 8) // saved once
	if s.SavedBytes() != 285*extent.BlockSize || sd.heldBlocks() != 285 {
		t.Errorf("saved %d blocks, held %d", s.SavedBytes()/extent.BlockSize, sd.heldBlocks())
	}
	p := make([]byte, 4*extent.BlockSize)
	for range 2 { // peeking is repeatable, wanted or held
		if err := sd.PeekBlocks(blocks(8, 12), p); err != nil {
			t.Fatal(err)
		}
	}
	got := capture(t, sd, 33)
	for b := range extent.FileBlock(300) {
		if got[b] != 1000+uint64(b) {
			t.Fatalf("block %d reads %d", b, got[b])
		}
	}
	if sd.heldBlocks() != 0 || s.Torn() {
		t.Errorf("held %d, torn %v", sd.heldBlocks(), s.Torn())
	}
	if err := sd.ReadBlocks(blocks(11, 12), make([]byte, extent.BlockSize)); !errors.Is(err, ErrReadTwice) {
		t.Errorf("read twice: %v", err)
	}
	if err := sd.ReadBlocks(blocks(299, 301), make([]byte, 2*extent.BlockSize)); !errors.Is(err, ErrNotListed) {
		t.Errorf("not listed: %v", err)
	}
	spooled(t, s)
	if err := sd.ReadBlocks(blocks(11, 12), make([]byte, extent.BlockSize)); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v", err)
	}
	if st, err := os.Stat(savedPath(r, d)); err != nil || st.Size() != 0 {
		t.Errorf("saved file: %v, %v", st, err)
	}
	r.close()
	if _, err := os.Stat(savedPath(r, d)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("saved file after close: %v", err)
	}
}

func TestI3_ReaderTakesTheSavedCopyIfItWasOvertaken(t *testing.T) {
	var r *rig
	var d *Disk
	f := newModelFile(100)
	overtake := true
	r = newRig(t, Options{Hook: func(p string) {
		if p == BeforeReaderSwap && overtake { // between the reader's pread and its swap
			overtake = false
			write(t, d, f, 4, 1, 99)
		}
	}})
	d = r.disk("a", f)
	write(t, d, f, 3, 3, 1)
	s := r.sealed(SealRequest{})
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 1, 4: 1, 5: 1}) {
		t.Errorf("captured %v", got)
	}
	if s.SavedBytes() != extent.BlockSize {
		t.Errorf("saved %d", s.SavedBytes())
	}
}

func TestI3_SecondWriterWaitsForTheFirstOnesSave(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang, held := make(chan struct{}), false
		f := newModelFile(100)
		r := newRig(t, Options{Hook: func(p string) {
			if p == AfterBlocksClaimed && !held {
				held = true
				<-hang
			}
		}})
		d := r.disk("a", f)
		write(t, d, f, 3, 1, 1)
		s := r.sealed(SealRequest{})
		var wg sync.WaitGroup
		wg.Go(func() { write(t, d, f, 3, 1, 2) })
		synctest.Wait()
		wg.Go(func() { write(t, d, f, 3, 1, 3) })
		read := make(chan map[extent.FileBlock]uint64, 1)
		go func() { read <- capture(t, s.Disks[0], 0) }()
		synctest.Wait()
		if f.stamp(3) != 1 || len(read) != 0 {
			t.Error("somebody passed a claim")
		}
		write(t, d, f, 50, 1, 1) // no other write waits
		close(hang)
		wg.Wait()
		if got := <-read; got[3] != 1 {
			t.Errorf("captured %v", got)
		}
		spooled(t, s)
		r.close()
	})
}

// A write is in its own phase's change set before it does the I/O of saving a block: a seal that comes meanwhile would miss it.
func TestI2_WriteIsMarkedBeforeItSaves(t *testing.T) {
	var d *Disk
	var saved, marked bool
	f := newModelFile(100)
	r := newRig(t, Options{Hook: func(p string) {
		if p == AfterBlocksClaimed {
			saved, marked = true, d.Changed(blocks(7, 8))
		}
	}})
	d = r.disk("a", f)
	write(t, d, f, 3, 1, 1)
	s := r.sealed(SealRequest{SavedLimit: 1 << 20, Extra: map[string][]blockRange{d.id: {blocks(7, 8)}}}) // listed, and not changed
	write(t, d, f, 7, 1, 2)
	if !saved || !marked {
		t.Errorf("saved %v, marked by then %v", saved, marked)
	}
	spooled(t, s)
	r.close()
}

func TestI3_EndOfTheEpochWaitsForItsSavers(t *testing.T) {
	hang, saving := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f := newModelFile(100)
	r := newRig(t, Options{Hook: func(p string) {
		if p == AfterBlocksClaimed {
			once.Do(func() { close(saving); <-hang })
		}
	}})
	d := r.disk("a", f)
	write(t, d, f, 3, 1, 1)
	s := r.sealed(SealRequest{})
	var wg sync.WaitGroup
	wg.Go(func() { write(t, d, f, 3, 1, 2) })
	<-saving
	ended := make(chan error, 1)
	go func() { ended <- s.MergeBack() }()
	for !s.ended.Load() { // it is past its merge and on its way to the savers
		runtime.Gosched()
	}
	if _, err := r.vm.Seal(SealRequest{}); !errors.Is(err, ErrSealed) || len(ended) != 0 {
		t.Errorf("sealed while a late save may come: %v", err)
	}
	close(hang)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	wg.Wait()
	r.close()
}

func TestI3_FailedSaveTearsAndTheWriteGoesOn(t *testing.T) {
	for name, c := range map[string]struct {
		limit int64
		saved string
		fail  bool
	}{"limit": {limit: 1}, "read error": {limit: 1 << 30, fail: true}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{})
			f := newModelFile(100)
			d := r.disk("a", f)
			write(t, d, f, 3, 2, 1)
			s := r.seal(SealRequest{SavedLimit: c.limit})
			if err := s.Wait(t.Context()); err != nil {
				t.Fatal(err)
			}
			if c.fail {
				f.set(func() { f.mu.readErr = errDisk })
			}
			write(t, d, f, 3, 1, 2)
			f.set(func() { f.mu.readErr = nil })
			if !s.Torn() || s.Voided() || s.SavedBytes() != 0 {
				t.Errorf("torn %v, void %v, saved %d", s.Torn(), s.Voided(), s.SavedBytes())
			}
			if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 2, 4: 1}) {
				t.Errorf("captured %v", got)
			}
			spooled(t, s)
			s = r.sealed(SealRequest{})
			if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 2}) {
				t.Errorf("the torn block is not in the next epoch: %v", got)
			}
		})
	}
}

// A block of a translated image that could not be saved is in the next epoch, and a table read with it is one that was read.
func TestI3_FailedSaveOnATranslatedImageTears(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 3, 2, 1)
	s := r.seal(SealRequest{SavedLimit: 1, Whole: map[string]bool{d.ID(): true}})
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, d, f, 50, 1, 2) // protected like every block
	page := make([]byte, extent.BlockSize)
	if err := s.Disks[0].PeekBlocks(blocks(50, 51), page); err != nil || page[0] == 0 || !s.Torn() || s.Voided() {
		t.Errorf("%d, torn %v, void %v, error %v", page[0], s.Torn(), s.Voided(), err)
	}
	spooled(t, s)
	s = r.sealed(SealRequest{})
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{50: 2}) {
		t.Errorf("in the next epoch: %v", got)
	}
}

func TestI4_VoidEpochIsMergedBack(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 3, 2, 1)
	s := r.seal(SealRequest{})
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	write(t, d, f, 3, 1, 2)
	s.Void("a reason")
	if err := s.Disks[0].ReadBlocks(blocks(3, 4), make([]byte, extent.BlockSize)); !errors.Is(err, ErrVoid) {
		t.Errorf("read: %v", err)
	}
	if err := s.Spooled(); !errors.Is(err, ErrVoid) {
		t.Errorf("spooled: %v", err)
	}
	if err := s.MergeBack(); err != nil {
		t.Fatal(err)
	}
	s = r.sealed(SealRequest{})
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 2, 4: 1}) {
		t.Errorf("after merge-back: %v", got)
	}
}

func TestI3_WideDiscardTearsInsteadOfSaving(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(20 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 3, 2, 1)
	s := r.sealed(SealRequest{})
	change(t, d, f, extent.Change{Kind: extent.Discard, Len: wideChange + 1}, 0)
	if !s.Torn() || s.SavedBytes() != 0 {
		t.Errorf("torn %v, saved %d", s.Torn(), s.SavedBytes())
	}
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{3: 0, 4: 0}) {
		t.Errorf("captured %v", got)
	}
}

func TestI4_MergeBackOnlyAdds(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 1, 2, 1)
	s := r.sealed(SealRequest{Extra: map[string][]blockRange{d.id: {blocks(50, 60)}}})
	write(t, d, f, 2, 2, 2)
	s.Void("a reason")
	s.Void("another")
	if s.VoidReason() != "a reason" {
		t.Errorf("reason %q", s.VoidReason())
	}
	if err := s.MergeBack(); err != nil {
		t.Fatal(err)
	}
	if err := s.MergeBack(); !errors.Is(err, ErrEnded) {
		t.Errorf("twice: %v", err)
	}
	if n := d.PendingBlocks(); n != 3 {
		t.Errorf("%d pending", n)
	}
	s = r.sealed(SealRequest{})
	if got := capture(t, s.Disks[0], 0); !maps.Equal(got, map[extent.FileBlock]uint64{1: 1, 2: 2, 3: 2}) {
		t.Errorf("captured %v", got)
	}
}

func TestI4_ReturnedBlocksLeaveTheListAndStayChanged(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 10, 1)
	s := r.sealed(SealRequest{Extra: map[string][]blockRange{d.id: {blocks(8, 20)}}})
	if n := s.Disks[0].ListBlocks(); n != 20 {
		t.Errorf("%d listed", n)
	}
	s.Return(d.ID(), blocks(5, 15))
	if !s.Torn() || s.Disks[0].ListBlocks() != 10 {
		t.Errorf("open %v, %d listed", s.Torn(), s.Disks[0].ListBlocks())
	}
	got := slices.Sorted(maps.Keys(capture(t, s.Disks[0], 0)))
	if !slices.Equal(got, []extent.FileBlock{0, 1, 2, 3, 4, 15, 16, 17, 18, 19}) {
		t.Errorf("captured %v", got)
	}
	if err := s.Disks[0].ReadBlocks(blocks(6, 7), make([]byte, extent.BlockSize)); !errors.Is(err, ErrNotListed) {
		t.Errorf("a returned block: %v", err)
	}
	spooled(t, s)
	s = r.sealed(SealRequest{})
	got = slices.Sorted(maps.Keys(capture(t, s.Disks[0], 0)))
	if !slices.Equal(got, []extent.FileBlock{5, 6, 7, 8, 9}) {
		t.Errorf("next epoch %v", got)
	}
}

func TestListIsCutAndOrdered(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(3 * setPageBlocks)
	d := r.disk("a", f)
	write(t, d, f, setPageBlocks-3, 5, 1)
	write(t, d, f, 10, 1, 1)
	s := r.sealed(SealRequest{Extra: map[string][]blockRange{d.id: {blocks(11, 13), blocks(2*setPageBlocks, 2*setPageBlocks+1)}}})
	got := slices.Collect(s.Disks[0].List(2))
	want := []blockRange{blocks(10, 12), blocks(12, 13), blocks(setPageBlocks-3, setPageBlocks-1), blocks(setPageBlocks-1, setPageBlocks),
		blocks(setPageBlocks, setPageBlocks+2), blocks(2*setPageBlocks, 2*setPageBlocks+1)}
	if !slices.Equal(got, want) {
		t.Errorf("list %v, want %v", got, want)
	}
	for range s.Disks[0].List(1) {
		break
	}
}

func TestI2_SizeAtTheSealIsExact(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	grow := extent.Change{Off: off(150), Len: extent.BlockSize}
	p, _ := d.Begin(grow) // in flight at the seal
	s := r.seal(SealRequest{SavedLimit: 1 << 30})
	cut := extent.Change{Kind: extent.Truncate, Off: off(10)}
	done := make(chan struct{})
	go func() {
		change(t, d, f, cut, 0)
		close(done)
	}()
	f.do(grow, 1)
	d.End(grow, p, nil)
	<-done
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.Disks[0].Size != off(151) || d.Size() != off(10) {
		t.Errorf("size at the seal %d, now %d", s.Disks[0].Size, d.Size())
	}
	got := capture(t, s.Disks[0], 0)
	if got[150] != 1 || len(got) != 2 {
		t.Errorf("captured %v: the new block and the old last one were to be listed", got)
	}
	spooled(t, s)
	s = r.seal(SealRequest{})
	change(t, d, f, extent.Change{Kind: extent.Truncate, Off: off(40)}, 0)
	if err := s.Wait(t.Context()); err != nil || s.Disks[0].Size != off(10) {
		t.Errorf("size %d, %v", s.Disks[0].Size, err)
	}
	for b, stamp := range capture(t, s.Disks[0], 0) {
		if b >= 10 && stamp != 0 {
			t.Errorf("block %d past the end reads %d", b, stamp)
		}
	}
	spooled(t, s)
	r.close()
}

func TestI2_WriteOvertakenByAShrinkResizes(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 100, 1)
	change(t, d, f, extent.Change{Kind: extent.Truncate, Off: off(10) + 100}, 0)
	if d.Size() != off(10)+100 {
		t.Errorf("size %d", d.Size())
	}
	p, err := d.Begin(extent.Change{Off: off(90), Len: 10})
	if _, ok := p.(*resizing); !ok || err != nil {
		t.Errorf("a write past the new end is %T, %v", p, err)
	}
	d.End(extent.Change{Off: off(90), Len: 10}, p, nil)
	for _, c := range []extent.Change{{Off: -1, Len: 5}, {Off: 1 << 62, Len: 1 << 62}, {Kind: extent.Truncate, Off: MaxFileSize + 1}} {
		if _, err := d.Begin(c); !errors.Is(err, ErrTooLarge) || !errors.Is(err, unix.EFBIG) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	write(t, d, f, 0, 1, 3)
	if d.regions.pinned() {
		t.Error("pins are left")
	}
}

func TestResizeBlocks(t *testing.T) {
	for _, c := range []struct {
		c      extent.Change
		old    int64
		want   [2]blockRange
		shrink bool
	}{
		{extent.Change{Off: off(20), Len: 100}, off(10), [2]blockRange{blocks(9, 10), blocks(20, 21)}, false},
		{extent.Change{Off: 0, Len: 100}, 0, [2]blockRange{{}, blocks(0, 1)}, false},
		{extent.Change{Kind: extent.Truncate, Off: off(1 << 20)}, off(10) + 512, [2]blockRange{blocks(9, 11)}, false},
		{extent.Change{Kind: extent.Truncate, Off: off(3) + 1}, off(10), [2]blockRange{blocks(2, 10)}, true},
		{extent.Change{Kind: extent.Truncate}, off(10), [2]blockRange{blocks(0, 10)}, true},
	} {
		if got, shrinks := resizeBlocks(c.c, c.old); got != c.want || shrinks != c.shrink {
			t.Errorf("%+v of %d: %v %v, want %v %v", c.c, c.old, got, shrinks, c.want, c.shrink)
		}
	}
}

func TestDiskAddedAfterTheSealIsInTheNextEpoch(t *testing.T) {
	r := newRig(t, Options{})
	f, g := newModelFile(100), newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	s := r.sealed(SealRequest{})
	e := r.disk("b", g)
	write(t, e, g, 0, 1, 1)
	if len(s.Disks) != 1 || e.PendingBlocks() != 1 || d.PendingBlocks() != 1 {
		t.Errorf("%d disks, pending %d and %d", len(s.Disks), d.PendingBlocks(), e.PendingBlocks())
	}
	if err := r.vm.RemoveDisk(d); !errors.Is(err, ErrSealed) {
		t.Errorf("remove while sealed: %v", err)
	}
	capture(t, s.Disks[0], 0)
	spooled(t, s)
	if err := r.vm.RemoveDisk(d); err != nil {
		t.Fatal(err)
	}
	s = r.sealed(SealRequest{})
	if len(s.Disks) != 1 || s.Disks[0].Disk != e || !maps.Equal(capture(t, s.Disks[0], 0), map[extent.FileBlock]uint64{0: 1}) {
		t.Errorf("disks %v", s.Disks)
	}
	r.check()
}

// A writer that is counted in and has not marked yet holds up newer ones: they
// cannot know whether it touches their block.
func TestI2_NewWriteWaitsForUnmarkedWriters(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 50, 1, 1) // the region is active
	old := r.vm.enter()
	s := r.seal(SealRequest{SavedLimit: 1 << 20})
	done := make(chan struct{})
	go func() {
		write(t, d, f, 5, 1, 100)
		close(done)
	}()
	passed := func() bool {
		select {
		case <-done:
			return true
		default:
			return false
		}
	}
	for r.vm.phase.Load().writersIn() == 0 && !passed() {
		runtime.Gosched()
	}
	for range 10_000 {
		runtime.Gosched()
	}
	if passed() {
		t.Fatal("passed a writer that had not marked")
	}
	old.set(d.index).Set(blocks(5, 6))
	old.writers.Add(^uint64(phaseMarked - 1))
	f.do(extent.Change{Off: off(5), Len: extent.BlockSize}, 50)
	r.vm.leave(old, phaseOut)
	<-done
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := capture(t, s.Disks[0], 0); got[5] != 50 || f.stamp(5) != 100 {
		t.Errorf("captured %v, now %d", got, f.stamp(5))
	}
}

// A change of size waits for the old phase even if it touches none of its
// blocks: else the size at the seal would not be exact.
func TestI2_ResizeWaitsForTheDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, Options{})
		f := newModelFile(100)
		d := r.disk("a", f)
		old := extent.Change{Off: off(5), Len: extent.BlockSize}
		p, _ := d.Begin(old)
		s := r.seal(SealRequest{SavedLimit: 1 << 20})
		done := make(chan struct{})
		go func() {
			write(t, d, f, 150, 1, 1)
			close(done)
		}()
		synctest.Wait()
		if size, _ := f.Size(); size != off(100) {
			t.Error("the file grew before the old phase was drained")
		}
		f.do(old, 1)
		d.End(old, p, nil)
		if err := s.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		<-done
		if s.Disks[0].Size != off(100) || d.Size() != off(151) {
			t.Errorf("size at the seal %d, now %d", s.Disks[0].Size, d.Size())
		}
		spooled(t, s)
		r.close()
	})
}

// From its Begin on, a shrink sends later writes past the new end into its queue.
func TestI2_ShrinkInFlightIsTheSize(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	cut := extent.Change{Kind: extent.Truncate, Off: off(10)}
	p, err := d.Begin(cut)
	if err != nil || d.Size() != off(10) {
		t.Errorf("size %d in flight, %v", d.Size(), err)
	}
	d.End(cut, p, errDisk) // it failed: the size is the file's again
	if d.Size() != off(100) {
		t.Errorf("size %d after a failed shrink", d.Size())
	}
}

// Claim 1 of a phase: a seal sees the count of everybody who belongs to it. A
// writer that looked only once would enter a phase that was drained already.
func TestI2_NobodyEntersADrainedPhase(t *testing.T) {
	r := newRig(t, Options{})
	r.disk("a", newModelFile(10))
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for !stop.Load() {
				p := r.vm.enter()
				if p.over.Load() {
					t.Error("entered a drained phase")
					stop.Store(true)
				}
				r.vm.leave(p, phaseIn)
				runtime.Gosched()
			}
		})
	}
	for range 300 {
		if stop.Load() {
			break
		}
		spooled(t, r.sealed(SealRequest{}))
	}
	stop.Store(true)
	wg.Wait()
}

// A writer that left an empty phase just before another entered it and a seal
// replaced it must not report it drained: the other is still in.
func TestI2_AnOldZeroDoesNotDrain(t *testing.T) {
	r := newRig(t, Options{})
	p := r.vm.enter()
	s := r.seal(SealRequest{})
	r.vm.emptied(p) // the late look of the one that left
	if s.phase.over.Load() {
		t.Fatal("drained with a writer in it")
	}
	r.vm.leave(p, phaseIn)
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
}
