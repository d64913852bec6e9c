package journal

import (
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// fileOf is an identity with an inode generation, as ext4 and xfs have them.
func fileOf(ino uint64) Identity { return Identity{Ino: ino, Gen: 100 + ino} }

func (r *rig) known(name string, f *modelFile, id Identity) *Disk {
	r.t.Helper()
	d, err := r.vm.AddDisk(name, f, id)
	if err != nil {
		r.t.Fatal(err)
	}
	return d
}

// A renamed disk keeps its id, its change set and its activity log; its old name is
// free at once, and the next run knows it by the new one.
func TestRenamedDiskIsItself(t *testing.T) {
	r := newRig(t, Options{})
	f, g := newModelFile(4*extent.BlocksPerRegion), newModelFile(100)
	d := r.known("a", f, fileOf(1))
	write(t, d, f, 7, 2, 1)
	if err := r.vm.Rename(d, "b"); err != nil {
		t.Fatal(err)
	}
	e := r.known("a", g, fileOf(2))
	if d.Name() != "b" || e.ID() == d.ID() {
		t.Errorf("%s %s, %s %s", d.Name(), d.ID(), e.Name(), e.ID())
	}
	if err := r.vm.Rename(e, "b"); !errors.Is(err, ErrExists) {
		t.Errorf("a name in use: %v", err)
	}
	write(t, d, f, 20, 1, 1)
	r.close()
	r2 := openRig(t, r.store, Options{Saved: r.opts.Saved})
	e2, d2 := r2.known("a", g, fileOf(2)), r2.known("b", f, fileOf(1))
	if d2.ID() != d.ID() || e2.ID() != e.ID() || d2.PendingBlocks() != 3 || len(d2.Suspect()) != 0 {
		t.Errorf("pending %d, suspect %v", d2.PendingBlocks(), d2.Suspect())
	}
	r2.check()
}

// A file that was renamed while nothing served it, and one whose renaming the store
// did not take before the crash, is the disk it was: what was active is suspect (R6).
func TestR6_RenamedFileIsFoundByItsIdentity(t *testing.T) {
	r := newRig(t, Options{})
	f, g := newModelFile(4*extent.BlocksPerRegion), newModelFile(4*extent.BlocksPerRegion)
	d, e := r.known("a", f, fileOf(1)), r.known("b", g, fileOf(2))
	write(t, d, f, 0, 1, 1)
	r2 := openRig(t, r.store.Crash(), Options{Saved: r.opts.Saved})
	e2, d2 := r2.known("a", g, fileOf(2)), r2.known("b", f, fileOf(1)) // exchanged
	if d2.ID() != d.ID() || e2.ID() != e.ID() || len(d2.Suspect()) != 1 || len(e2.Suspect()) != 0 {
		t.Errorf("ids %s %s, were %s %s; suspect %v %v", d2.ID(), e2.ID(), d.ID(), e.ID(), d2.Suspect(), e2.Suspect())
	}
}

// Another file under a disk's name is that disk, and compared whole; without inode
// generations a file under another name is a new disk.
func TestR5_NamesakeIsComparedWhole(t *testing.T) {
	r := newRig(t, Options{})
	f := newModelFile(4 * extent.BlocksPerRegion)
	d := r.known("a", f, Identity{Ino: 1})
	r.close()
	r2 := openRig(t, r.store, Options{Saved: r.opts.Saved})
	if n := r2.known("b", f, Identity{Ino: 1}); n.ID() == d.ID() || len(n.Suspect()) != 0 {
		t.Errorf("taken for the disk of another name by its inode number alone, or suspect: %v", n.Suspect())
	}
	if a := r2.known("a", f, Identity{Ino: 9}); a.ID() != d.ID() || len(a.Suspect()) != 1 {
		t.Errorf("suspect %v", a.Suspect())
	}
}

// What the store did not take is in force in memory, and a withdrawn disk is not
// written again.
func TestRenameWithoutAStore(t *testing.T) {
	r := newRig(t, Options{})
	d := r.known("a", newModelFile(10), fileOf(1))
	r.store.Before = func(int, *kv.Batch) memory.Fault { return memory.Lost }
	if err := r.vm.Rename(d, "b"); err == nil || d.Name() != "b" {
		t.Errorf("%v, %s", err, d.Name())
	}
	r.store.Before = nil
	if err := r.vm.Withdraw(d); err != nil {
		t.Fatal(err)
	}
	if err := r.vm.Rename(d, "c"); err != nil {
		t.Error(err)
	}
	r.check()
}
