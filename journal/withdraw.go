package journal

import (
	"errors"
	"fmt"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Withdraw is RemoveDisk for a disk that somebody may still write to and that an
// epoch may still read: its file was removed, replaced or renamed under a running
// guest. When it returns no later seal has the disk and its name is free; nil says
// that the store has forgotten it too. Begin and End may go on and touch memory
// only: what they change is nobody's. Its File must stay open while Sealed of the
// VM lists the disk. After an error the records are left over, and a disk of that
// name finds them: it is suspect then, as after a crash.
func (vm *VM) Withdraw(d *Disk) error {
	err := d.erase()
	vm.detach(d)
	return errors.Join(err, vm.closeSaved(d))
}

func (d *Disk) erase() error {
	d.vm.j.commit.Lock()
	defer d.vm.j.commit.Unlock()
	return d.eraseLocked()
}

// eraseLocked takes everything about d out of the store, for good. The caller
// holds the commit lock.
func (d *Disk) eraseLocked() error {
	d.gone.Store(true)
	s := d.vm.j.store
	// The disk's record goes last: until then a repeat finds what is left.
	for _, prefix := range []string{preActive, preSet} {
		if err := deletePrefix(s, prefix+d.id+"/"); err != nil {
			return err
		}
	}
	var b kv.Batch
	for _, key := range []string{preClean + d.id, preSuspect + d.id, diskKey(d.vm.id, d.id)} {
		b.Delete([]byte(key))
	}
	if err := s.Apply(&b); err != nil {
		return fmt.Errorf("remove disk %s: %w", d.Name(), err)
	}
	return nil
}

// detach takes d out of the VM's list. Its place in the phases stays, unused.
func (vm *VM) detach(d *Disk) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.mu.disks[d.index] = nil
	delete(vm.mu.names, d.Name())
}

// closeSaved closes the saved blocks of a withdrawn disk now, or leaves it to the
// end of the epoch that reads them.
func (vm *VM) closeSaved(d *Disk) error {
	if s := vm.sealed.Load(); s != nil && s.disk(d) != nil {
		s.ending.Lock()
		defer s.ending.Unlock()
		if !s.ended.Load() {
			return nil
		}
	}
	return d.saved.close()
}

// activateUnrecorded makes the regions of a disk that is gone active in memory.
func (d *Disk) activateUnrecorded(span regionSpan) {
	for r := span.first; r < span.end; r++ {
		d.regions.activate(r)
	}
}

// saveSuspicion applies a change of d's suspicion record, unless d is gone.
func (d *Disk) saveSuspicion(b *kv.Batch) error {
	j := d.vm.j
	j.commit.Lock()
	defer j.commit.Unlock()
	if d.gone.Load() {
		return nil
	}
	return j.store.Apply(b)
}
