package journal

import (
	"errors"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// A VM that is forgotten leaves nothing: its name begins anew, with another id.
func TestForgetVM(t *testing.T) {
	r := newRig(t, Options{})
	d := r.disk("a", newModelFile(10*extent.BlockSize))
	c := extent.Change{Len: 1}
	p, err := d.Begin(c)
	if err != nil {
		t.Fatal(err)
	}
	d.End(c, p, nil)
	id := r.vm.ID()
	if err := r.j.ForgetVM("vm"); !errors.Is(err, ErrBusy) {
		t.Errorf("with a disk: %v", err)
	}
	s, err := r.vm.Seal(SealRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.j.ForgetVM("vm"); !errors.Is(err, ErrSealed) {
		t.Errorf("with a sealed epoch: %v", err)
	}
	if err := errors.Join(s.MergeBack(), r.vm.Withdraw(d)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.j.ForgetVM("vm"); err != nil {
			t.Fatal(err)
		}
	}
	if left := r.left(t, id); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	again, err := r.j.VM("vm")
	if err != nil || again.ID() == id || again.LastEpoch() != 0 {
		t.Errorf("%v, id %s again, epoch %d", err, again.ID(), again.LastEpoch())
	}
}

// left are the keys of the store that name a VM or a disk.
func (r *rig) left(t *testing.T, id string) (keys []string) {
	t.Helper()
	for _, prefix := range []string{preVM + "vm", preEpoch + id, preDisk, preActive, preSet, preSuspect, preClean} {
		found, err := r.j.keys(prefix)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, found...)
	}
	return keys
}

// After a crash the disks of a VM that nobody attached go as well.
func TestForgetVMWithDisksThatAreNotAttached(t *testing.T) {
	r := newRig(t, Options{})
	d := r.disk("a", newModelFile(10*extent.BlockSize))
	c := extent.Change{Len: 1}
	p, err := d.Begin(c)
	if err != nil {
		t.Fatal(err)
	}
	d.End(c, p, nil)
	id := r.vm.ID()
	r2 := openRig(t, r.store.Crash(), Options{})
	if len(r2.left(t, id)) == 0 {
		t.Fatal("nothing there to begin with")
	}
	// openRig loads the VM of that name without its disks.
	if err := r2.j.ForgetVM("vm"); err != nil {
		t.Fatal(err)
	}
	if left := r2.left(t, id); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestDocumentsByPrefix(t *testing.T) {
	r := newRig(t, Options{})
	for _, key := range []string{"a/2", "a/1", "ab", "b/1"} {
		if err := r.j.Save(key, 1); err != nil {
			t.Fatal(err)
		}
	}
	keys, err := r.j.Documents("a/")
	if err != nil || !slices.Equal(keys, []string{"a/1", "a/2"}) {
		t.Errorf("%q %v", keys, err)
	}
	if err := r.j.RemoveDocuments("a/"); err != nil {
		t.Fatal(err)
	}
	if keys, err = r.j.Documents(""); err != nil || !slices.Equal(keys, []string{"ab", "b/1"}) {
		t.Errorf("%q %v", keys, err)
	}
}
