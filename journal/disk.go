package journal

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// Disk tracks one image. Begin and End are fs.Tracker's.
type Disk struct {
	vm    *VM
	label atomic.Pointer[string] // the name
	id    string
	rec   diskRecord // as the store has it; changed under the commit lock once the disk is attached
	file  File
	index int // in the phases' lists of change sets

	size    atomic.Int64 // never above the file's real size, except between a write and a shrink that race
	pressed atomic.Bool
	gone    atomic.Bool // removed or withdrawn: the store must not hear of it again. Set under the commit lock
	regions regionTable
	left    departures
	mark    imageMark
	evict   evictor
	sus     suspicion
	saved   savedFile

	// resize serializes changes of the file's size, each from Begin to End, its
	// I/O included. A writer takes it before it enters a phase, so that a change
	// in an old phase never waits for one in a newer.
	resize sync.Mutex
}

// ID returns the disk's UUID as text.
func (d *Disk) ID() string { return d.id }

// Name returns the name AddDisk was given, or the last Rename.
func (d *Disk) Name() string { return *d.label.Load() }

// Size returns the file's size in bytes as of the last change of size that ended.
func (d *Disk) Size() int64 { return d.size.Load() }

// ActiveRegions returns the number of regions in the activity log.
func (d *Disk) ActiveRegions() int { return int(d.regions.active.Load()) }

// PendingBlocks returns the number of changed blocks in the current change set
// and, while an epoch is outstanding, in its set.
func (d *Disk) PendingBlocks() int64 {
	n := d.vm.phase.Load().set(d.index).Count()
	if s := d.vm.sealed.Load(); s != nil {
		if sd := s.disk(d); sd != nil {
			n += sd.changes.Count()
		}
	}
	return n
}

// AddDisk attaches an image to the VM, before its first change: recovery steps
// 4 to 8 of README.md. name is the path relative to the VM; f must stay open
// until the journal closes or the disk is removed. A file that the store knows by
// another name is the disk it was, and has this name from now on. A disk that the
// store does not know is new and not suspect; an unknown image that carries the
// mark is.
func (vm *VM) AddDisk(name string, f File, id Identity) (*Disk, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("size of %s: %w", name, err)
	}
	if size > MaxFileSize {
		return nil, fmt.Errorf("%s: %w", name, ErrTooLarge)
	}
	d := &Disk{vm: vm, file: f}
	d.label.Store(&name)
	d.size.Store(size)
	rec, known, err := vm.findDisk(name, id, d)
	if err != nil {
		return nil, err
	}
	if err := vm.reserveIndex(d); err != nil {
		return nil, err
	}
	changed := new(blockMap)
	if err := d.load(rec, known, id, changed); err != nil {
		vm.release(name)
		return nil, fmt.Errorf("attach %s: %w", name, err)
	}
	vm.publish(d, changed)
	return d, nil
}

// publish makes d one of the VM's disks together with its change set: no seal
// and no deactivation sees the one without the other.
func (vm *VM) publish(d *Disk, changed *blockMap) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	vm.mu.disks[d.index] = d
	vm.phase.Load().set(d.index).Or(changed)
}

// reserveIndex gives d a place in every phase from now on.
func (vm *VM) reserveIndex(d *Disk) error {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.mu.names[d.Name()] {
		return fmt.Errorf("%s: %w", d.Name(), ErrExists)
	}
	vm.mu.names[d.Name()] = true
	d.index = len(vm.mu.disks)
	vm.mu.disks = append(vm.mu.disks, nil)
	vm.phase.Load().grow(len(vm.mu.disks))
	return nil
}

// release lets the name be attached again. The place in the phases stays unused.
func (vm *VM) release(name string) {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	delete(vm.mu.names, name)
}

// load reads what the store knows of d, its change set into changed, and starts
// its session.
func (d *Disk) load(rec diskRecord, known bool, id Identity, changed *blockMap) error {
	j := d.vm.j
	d.saved.open(j.opts.Saved, d.id)
	var facts *Facts
	if known {
		var f Facts
		clean, err := getJSON(j.store, preClean+d.id, &f)
		if err != nil {
			return err
		}
		if clean {
			facts = &f
		}
		if err := d.loadActivity(facts != nil, changed); err != nil {
			return err
		}
	} else if err := d.file.Datasync(); err != nil { // the first copy must not be ahead of the image after a power cut
		return fmt.Errorf("sync new image: %w", err)
	}
	reason, err := d.distrusted(rec, known, facts, id)
	if err != nil {
		return err
	}
	rec = diskRecord{Name: d.Name(), Session: j.session.ID, Attached: j.opts.Now().UTC(), Boot: j.session.Boot, Identity: id}
	if err := d.startSession(rec, reason); err != nil {
		return err
	}
	return d.settleMark()
}

// loadActivity reads the activity log, the suspicion and, after a clean stop,
// the change set (R4). After an unclean one every active region is suspect (R6).
func (d *Disk) loadActivity(clean bool, changed *blockMap) error {
	active, err := d.storedActive()
	if err != nil {
		return err
	}
	if err := d.sus.load(d); err != nil {
		return err
	}
	for _, r := range active {
		d.regions.activate(r)
		if !clean {
			d.sus.bits.Set(oneRegion(r))
		}
	}
	if !clean {
		if len(active) > 0 {
			d.sus.distrust(ReasonUnclean, d.sus.bits.Count()*extent.RegionSize)
		}
		return nil
	}
	return readSet(d.vm.j.store, d.id, changed)
}

// distrusted returns why the whole image is suspect, "" if it is not (R5–R7).
func (d *Disk) distrusted(rec diskRecord, known bool, facts *Facts, id Identity) (string, error) {
	marked, err := d.file.SuspectMarked()
	if err != nil {
		return "", err
	}
	if d.mark.set = marked; marked {
		return "the journal was failing when the appliance stopped", nil
	}
	if !known {
		return "", nil
	}
	now, err := d.file.Facts()
	if err != nil {
		return "", err
	}
	return d.vm.j.behindOurBack(rec, facts, now, id), nil
}

// startSession makes the disk unclean, before its first change (R8).
func (d *Disk) startSession(rec diskRecord, reason string) error {
	j := d.vm.j
	var b kv.Batch
	if err := putJSON(&b, diskKey(d.vm.id, d.id), rec); err != nil {
		return err
	}
	d.rec = rec
	b.Delete([]byte(preClean + d.id))
	if reason != "" {
		d.sus.setWhole(d, reason)
		if err := putJSON(&b, preSuspect+d.id, d.sus.record()); err != nil {
			return err
		}
	}
	if err := j.store.Apply(&b); err != nil {
		return err
	}
	j.hook(AfterDiskUnclean)
	return deletePrefix(j.store, preSet+d.id+"/")
}

// settleMark removes a mark the disk came with: its suspicion is in the store now.
func (d *Disk) settleMark() error {
	d.mark.Lock()
	defer d.mark.Unlock()
	if !d.mark.set {
		return nil
	}
	if err := d.file.ClearSuspectMark(); err != nil {
		return err
	}
	d.mark.set = false
	return nil
}

// stopClean writes what the next run needs to trust the disk: the image synced,
// the change set, the suspicion, then the facts that say so. The caller holds
// the commit lock, and no write is in flight.
func (d *Disk) stopClean() error {
	s := d.vm.j.store
	if err := d.syncImage(); err != nil {
		return err
	}
	if err := writeSet(s, d.id, d.vm.phase.Load().set(d.index)); err != nil {
		return err
	}
	facts, err := d.file.Facts()
	if err != nil {
		return err
	}
	var b kv.Batch
	if d.sus.bits.Count() > 0 {
		err = putJSON(&b, preSuspect+d.id, d.sus.record())
	} else {
		b.Delete([]byte(preSuspect + d.id))
	}
	if err != nil {
		return err
	}
	if err := putJSON(&b, preClean+d.id, facts); err != nil {
		return err
	}
	return s.Apply(&b)
}

// RemoveDisk detaches d and forgets everything about it, durably. No write of
// it may be in flight (ErrBusy) and no epoch outstanding (ErrSealed).
func (vm *VM) RemoveDisk(d *Disk) error {
	if vm.sealed.Load() != nil {
		return ErrSealed
	}
	if d.regions.pinned() {
		return ErrBusy
	}
	vm.j.commit.Lock()
	defer vm.j.commit.Unlock()
	if err := d.eraseLocked(); err != nil {
		d.gone.Store(false) // it is still there
		return err
	}
	vm.detach(d)
	return d.saved.close()
}
