package journal

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// peek reads a block as it was at the seal.
func peek(t testing.TB, sd *SealedDisk, b extent.FileBlock) uint64 {
	t.Helper()
	p := make([]byte, extent.BlockSize)
	if err := sd.PeekBlocks(blocks(b, b+1), p); err != nil {
		t.Fatalf("block %d: %v", b, err)
	}
	return binary.LittleEndian.Uint64(p)
}

// Until its list is narrowed every block of a disk that is sealed whole has the bytes of the seal, and those that were
// overwritten meanwhile keep them; afterwards only the list has.
func TestI3_WholeDiskIsProtectedUntilItsListIsNarrowed(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 100, 1)
	spooled(t, r.sealed(SealRequest{}))
	write(t, d, f, 3, 2, 2)
	s := r.seal(SealRequest{Whole: map[string]bool{d.ID(): true}})
	write(t, d, f, 50, 1, 3) // nobody has looked at the list yet
	if err := s.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	sd := s.Disks[0]
	write(t, d, f, 3, 1, 4)
	write(t, d, f, 60, 1, 5)
	for b, want := range map[extent.FileBlock]uint64{3: 2, 4: 2, 50: 1, 60: 1, 99: 1} {
		if got := peek(t, sd, b); got != want {
			t.Errorf("block %d is %d, want %d", b, got, want)
		}
	}
	var changed extent.Set[extent.FileBlock]
	for run := range sd.List(0) {
		changed.Add(run)
	}
	if n := changed.Blocks(); n != 2 || sd.ListBlocks() != 2 {
		t.Errorf("%d blocks changed, listed %d", n, sd.ListBlocks())
	}
	saved := s.SavedBytes()
	sd.Narrow(extent.Of(blocks(4, 5), blocks(50, 52)))
	write(t, d, f, 51, 1, 6)
	write(t, d, f, 70, 1, 7)
	if got := s.SavedBytes() - saved; got != extent.BlockSize {
		t.Errorf("%d bytes saved after the list was narrowed, want one block", got)
	}
	if err := sd.PeekBlocks(blocks(3, 4), make([]byte, extent.BlockSize)); !errors.Is(err, ErrNotListed) {
		t.Errorf("a block that left the list: %v", err)
	}
	if got := peek(t, sd, 50); got != 1 {
		t.Errorf("block 50, saved before the list was narrowed, is %d", got)
	}
	sd.Done(blocks(50, 51))
	write(t, d, f, 4, 1, 8)
	if got := [2]uint64{peek(t, sd, 4), peek(t, sd, 51)}; got != [2]uint64{2, 1} {
		t.Errorf("blocks 4 and 51 are %v", got)
	}
	write(t, d, f, 50, 1, 9)
	if err := sd.PeekBlocks(blocks(50, 51), make([]byte, extent.BlockSize)); !errors.Is(err, ErrReadTwice) {
		t.Errorf("a block that was done: %v", err)
	}
	spooled(t, s)
}

// A disk whose capture gives it back is not protected any more, and everything of it is changed.
func TestI4_WholeDiskIsGivenBack(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 3, 2, 1)
	s := r.sealed(SealRequest{Whole: map[string]bool{d.ID(): true}})
	s.ReturnDisk(d.ID())
	write(t, d, f, 60, 1, 5)
	if s.SavedBytes() != 0 || s.Disks[0].ListBlocks() != 0 {
		t.Errorf("%d bytes saved, %d listed", s.SavedBytes(), s.Disks[0].ListBlocks())
	}
	if d.inSealed(0) {
		t.Error("its regions may not leave the activity log")
	}
	spooled(t, s)
	if n := d.PendingBlocks(); n != 3 {
		t.Errorf("%d blocks changed, want 3", n)
	}
}

// No region of a disk that is sealed whole leaves the activity log: nobody knows yet what the capture reads.
func TestI4_WholeDiskIsNotEvicted(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(3 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	s := r.sealed(SealRequest{Whole: map[string]bool{d.ID(): true}})
	if !d.inSealed(2) {
		t.Error("a region of a disk that is sealed whole may go")
	}
	s.Disks[0].Narrow(extent.Of(blocks(extent.BlocksPerRegion, extent.BlocksPerRegion+1)))
	for g, want := range map[region]bool{0: true, 1: true, 2: false} { // changed, listed, neither
		if d.inSealed(g) != want {
			t.Errorf("region %d: %v", g, d.inSealed(g))
		}
	}
	spooled(t, s)
}

// Writers never get between the two lists.
func TestI3_NarrowedUnderWriters(t *testing.T) {
	r := newRig(t, Options{})
	const size = 64
	f := newModelFile(size)
	d := r.disk("a", f)
	write(t, d, f, 0, size, 1)
	for round := range uint64(30) {
		s := r.sealed(SealRequest{Whole: map[string]bool{d.ID(): true}})
		want := make([]uint64, size)
		for b := range want {
			want[b] = peek(t, s.Disks[0], extent.FileBlock(b))
		}
		var wg sync.WaitGroup
		for w := range uint64(3) {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(round, w))
				for range 40 {
					write(t, d, f, extent.FileBlock(w*20+rnd.Uint64N(20)), 1, 2+round*1000+w)
				}
			})
		}
		s.Disks[0].Narrow(extent.Of(blocks(10, 30), blocks(40, 50)))
		for run := range s.Disks[0].List(0) {
			for b := run.Start; b < run.End; b++ {
				if got := peek(t, s.Disks[0], b); got != want[b] {
					t.Fatalf("round %d: block %d is %d, was %d", round, b, got, want[b])
				}
			}
		}
		wg.Wait()
		spooled(t, s)
	}
}
