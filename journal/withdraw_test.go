package journal

import (
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// A disk whose file was replaced under a guest leaves at once: the guest goes on
// writing, the epoch that has it is still read, and the name is free.
func TestWithdrawWhileWrittenAndSealed(t *testing.T) {
	r := newRig(t, Options{})
	f, g := newModelFile(4*extent.BlocksPerRegion), newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	s := r.sealed(SealRequest{SavedLimit: 1 << 20})
	write(t, d, f, 0, 1, 2) // saves block 0
	pass, err := d.Begin(extent.Change{Len: 1})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Withdraw(d); err != nil {
		t.Fatal(err)
	}
	d.End(extent.Change{Len: 1}, pass, nil)
	e := r.disk("a", g)
	if e.ID() == d.ID() {
		t.Error("the new disk has the old one's id")
	}
	before := r.j.Stats().Commits
	write(t, d, f, 2*extent.BlocksPerRegion, 1, 3)
	if after := r.j.Stats().Commits; after != before {
		t.Errorf("a write to a withdrawn disk made %d commits", after-before)
	}
	if got := capture(t, s.Disks[0], 0); got[0] != 1 {
		t.Errorf("block 0 of the sealed epoch is %d, want 1", got[0])
	}
	spooled(t, s)
	if err := d.Compared(extent.Range[extent.FileBlock]{End: 4 * extent.BlocksPerRegion}); err != nil {
		t.Error(err)
	}
	if err := d.SetSuspect("too late"); err != nil {
		t.Error(err)
	}
	rest(r.vm)
	if _, err := r.vm.Deactivate(t.Context()); err != nil {
		t.Error(err)
	}
	if s = r.sealed(SealRequest{}); len(s.Disks) != 1 || s.Disks[0].Disk != e {
		t.Errorf("the next epoch has %d disks", len(s.Disks))
	}
	spooled(t, s)
	r.check()
}

// An epoch that is voided with a withdrawn disk in it merges back and the VM goes on.
func TestWithdrawThenMergeBack(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(100)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	s := r.sealed(SealRequest{})
	if err := r.vm.Withdraw(d); err != nil {
		t.Fatal(err)
	}
	if err := s.MergeBack(); err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Withdraw(d); err != nil {
		t.Errorf("again: %v", err)
	}
	if s = r.sealed(SealRequest{}); len(s.Disks) != 0 {
		t.Errorf("%d disks", len(s.Disks))
	}
	spooled(t, s)
	r.check()
}

// Whatever the store does, a withdrawn disk is no reason to fail a guest (I9).
func TestI9_WithdrawFromAFailingStore(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(8 * extent.BlocksPerRegion)
	d := r.disk("a", f)
	write(t, d, f, 0, 1, 1)
	r.store.Before = func(int, *kv.Batch) memory.Fault { return memory.Lost }
	if err := r.vm.Withdraw(d); !errors.Is(err, memory.ErrInjected) {
		t.Errorf("withdraw: %v", err)
	}
	write(t, d, f, 3*extent.BlocksPerRegion, 1, 2)
	if marked, _ := f.SuspectMarked(); marked {
		t.Error("a file that is no disk any more is marked")
	}
	// When it is a disk again, what it was written meanwhile is in no record of those that were left over.
	r.store.Before = nil
	if got := r.disk("a", f).Suspect(); len(got) != 1 || got[0] != blocks(0, 8*extent.BlocksPerRegion) {
		t.Errorf("suspect %v", got)
	}
}
