package journal

import (
	"fmt"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Rename gives d another name; ErrExists if a disk of the VM has it. d has the new
// name at once, and so does every later seal. nil says that it is durable too; after
// another error the next run knows the disk by its file, where the file system has
// inode generations, and else takes it for a new one.
func (vm *VM) Rename(d *Disk, name string) error {
	if err := vm.changeName(d, name); err != nil {
		return err
	}
	j := vm.j
	j.commit.Lock()
	defer j.commit.Unlock()
	if d.gone.Load() {
		return nil
	}
	rec := d.rec
	rec.Name = name
	var b kv.Batch
	if err := putJSON(&b, diskKey(vm.id, d.id), rec); err != nil {
		return err
	}
	if err := j.store.Apply(&b); err != nil {
		return fmt.Errorf("rename disk %s: %w", name, err)
	}
	d.rec = rec
	return nil
}

// changeName is Rename in memory.
func (vm *VM) changeName(d *Disk, name string) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.mu.names[name] {
		return fmt.Errorf("%s: %w", name, ErrExists)
	}
	delete(vm.mu.names, d.Name())
	vm.mu.names[name] = true
	d.label.Store(&name)
	return nil
}

// findDisk gives d the id the store knows it by, or a new one. The record of the same
// file comes before that of the same name: a disk that was renamed is itself.
func (vm *VM) findDisk(name string, id Identity, d *Disk) (rec diskRecord, known bool, err error) {
	prefix := preDisk + vm.id + "/"
	d.id = uuid.NewString()
	best := strange
	err = vm.j.store.Scan([]byte(prefix), func(k, v []byte) error {
		var r diskRecord
		if err := decodeJSON(string(k), v, &r); err != nil {
			return err
		}
		diskID := string(k[len(prefix):])
		if fit := r.fits(name, id); fit > best && !vm.attached(diskID) {
			best, d.id, rec, known = fit, diskID, r, true
		}
		return nil
	})
	return rec, known, err
}

// kinship is how much a record may be that of an image.
type kinship int

const (
	strange   kinship = iota
	namesake          // its name, and another file
	sameFile          // its file, and another name
	identical         // both
)

// fits compares a record with an image. An inode number alone says nothing: it is
// given to the next file as soon as one is removed.
func (r diskRecord) fits(name string, id Identity) kinship {
	file := id.Gen != 0 && r.Identity.Ino == id.Ino && r.Identity.Gen == id.Gen
	switch {
	case file && r.Name == name:
		return identical
	case file:
		return sameFile
	case r.Name == name:
		return namesake
	}
	return strange
}

// attached tells whether a disk of that id is in use.
func (vm *VM) attached(id string) bool {
	for _, d := range vm.Disks() {
		if d.id == id {
			return true
		}
	}
	return false
}
