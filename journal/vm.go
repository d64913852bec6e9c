package journal

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/google/uuid"
)

// epochBatch is how many epoch numbers one synced commit reserves.
const epochBatch = 16

// VM is a consistency group: its disks are sealed together.
type VM struct {
	j    *Journal
	name string
	id   string

	phase      atomic.Pointer[phase]
	sealed     atomic.Pointer[Sealed] // the one that is outstanding; set before the phase switches
	onPressure atomic.Pointer[func()]

	house sync.Mutex // one Deactivate at a time; held over its I/O

	mu struct { // guards disks and the outstanding seal; no I/O
		sync.Mutex
		disks []*Disk         // by index; nil until loaded, and once removed
		names map[string]bool // attached or being attached
	}
	epochs struct { // guards the numbers; held over the commit that reserves more
		sync.Mutex
		last, reserved uint64
	}
}

// VM returns the VM of that name, made if it does not exist. Its id is stable.
func (j *Journal) VM(name string) (*VM, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.mu.closed {
		return nil, ErrClosed
	}
	if vm := j.mu.vms[name]; vm != nil {
		return vm, nil
	}
	rec := vmRecord{ID: uuid.NewString(), Created: j.opts.Now().UTC()}
	found, err := getJSON(j.store, preVM+name, &rec)
	if err == nil && !found {
		err = j.saveJSON(preVM+name, rec)
	}
	if err != nil {
		return nil, fmt.Errorf("vm %s: %w", name, err)
	}
	vm := &VM{j: j, name: name, id: rec.ID}
	vm.mu.names = make(map[string]bool)
	vm.phase.Store(newPhase(0))
	var e epochRecord
	if _, err := getJSON(j.store, preEpoch+vm.id, &e); err != nil {
		return nil, err
	}
	vm.epochs.last, vm.epochs.reserved = e.Reserved, e.Reserved
	j.mu.vms[name] = vm
	return vm, nil
}

// VMs returns the VMs loaded in this run, by name.
func (j *Journal) VMs() []*VM {
	out := j.vmList()
	slices.SortFunc(out, func(a, b *VM) int { return strings.Compare(a.name, b.name) })
	return out
}

// KnownVMs returns the names of all VMs the store knows, loaded in this run or not.
func (j *Journal) KnownVMs() ([]string, error) {
	var names []string
	err := j.store.Scan([]byte(preVM), func(k, _ []byte) error {
		names = append(names, string(k[len(preVM):]))
		return nil
	})
	return names, err
}

// ID returns the VM's UUID as text.
func (vm *VM) ID() string { return vm.id }

// Name returns the VM's name.
func (vm *VM) Name() string { return vm.name }

// Disks returns the attached disks in the order they were added.
func (vm *VM) Disks() []*Disk {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	var out []*Disk
	for _, d := range vm.mu.disks {
		if d != nil {
			out = append(out, d)
		}
	}
	return out
}

// OnPressure sets the function called, in a goroutine of its own, when the
// activity log of a disk passes 7/8 of its cap: a seal would free regions.
func (vm *VM) OnPressure(fn func()) { vm.onPressure.Store(&fn) }

// LastEpoch returns the newest number given to a seal, or, after an unclean
// stop, the newest that may have been.
func (vm *VM) LastEpoch() uint64 {
	vm.epochs.Lock()
	defer vm.epochs.Unlock()
	return vm.epochs.last
}

// RaiseEpoch makes every later epoch's number greater than atLeast; durable.
func (vm *VM) RaiseEpoch(atLeast uint64) error {
	vm.epochs.Lock()
	defer vm.epochs.Unlock()
	if atLeast <= vm.epochs.last {
		return nil
	}
	if err := vm.reserveLocked(atLeast); err != nil {
		return err
	}
	vm.epochs.last = atLeast
	return nil
}

// nextEpoch returns a number that is durable and was never used.
func (vm *VM) nextEpoch() (uint64, error) {
	vm.epochs.Lock()
	defer vm.epochs.Unlock()
	if err := vm.reserveLocked(vm.epochs.last + 1); err != nil {
		return 0, err
	}
	vm.epochs.last++
	return vm.epochs.last, nil
}

// reserveLocked makes n a number that no later run will use. The caller holds epochs.
func (vm *VM) reserveLocked(n uint64) error {
	if n <= vm.epochs.reserved {
		return nil
	}
	vm.j.hook(BeforeEpochReserve)
	upto := n + epochBatch - 1
	if err := vm.j.saveJSON(preEpoch+vm.id, epochRecord{Reserved: upto}); err != nil {
		return fmt.Errorf("reserve epoch numbers: %w", err)
	}
	vm.epochs.reserved = upto
	vm.j.hook(AfterEpochReserve)
	return nil
}

// Seal ends the current phase of the VM: what was answered before is in this
// epoch, what begins after it returns is in the next (I2). It waits for no
// write; once in 16 times it waits for one store commit. ErrSealed while an
// epoch is outstanding.
func (vm *VM) Seal(r SealRequest) (*Sealed, error) {
	if vm.sealed.Load() != nil {
		return nil, ErrSealed
	}
	epoch, err := vm.nextEpoch()
	if err != nil {
		return nil, err
	}
	// The time comes after the commit, which may take seconds: the point would have one from before what it holds.
	s := &Sealed{Epoch: epoch, UUID: uuid.New(), Time: vm.j.opts.Now().Round(0), vm: vm, limit: r.SavedLimit}
	if !vm.advance(s, r) {
		return nil, ErrSealed // the number is a gap
	}
	vm.j.hook(AfterPhaseSwitch)
	return s, nil
}

// advance installs s and a new phase, unless another seal was faster.
func (vm *VM) advance(s *Sealed, r SealRequest) bool {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	if vm.sealed.Load() != nil {
		return false
	}
	old := vm.phase.Load()
	s.phase = old
	s.addDisks(vm.mu.disks, r)
	vm.sealed.Store(s) // before the switch: whoever enters the new phase sees it
	vm.phase.Store(newPhase(len(vm.mu.disks)))
	if old.writersIn() == 0 {
		old.drain()
	}
	return true
}

// Sealed returns the outstanding epoch, nil if there is none.
func (vm *VM) Sealed() *Sealed { return vm.sealed.Load() }

// merge adds change sets to the current phase. It counts itself in like a
// writer, so that a seal cannot pass it.
func (vm *VM) merge(add func(p *phase)) {
	p := vm.enter()
	add(p)
	p.writers.Add(^uint64(phaseMarked - 1))
	vm.leave(p, phaseOut)
}

// quiet returns ErrSealed or ErrBusy if the VM cannot be stopped cleanly now.
func (vm *VM) quiet() error {
	if vm.sealed.Load() != nil {
		return fmt.Errorf("vm %s: %w", vm.name, ErrSealed)
	}
	for _, d := range vm.Disks() {
		if d.regions.pinned() {
			return fmt.Errorf("vm %s, disk %s: %w", vm.name, d.Name(), ErrBusy)
		}
	}
	return nil
}

// stopClean lowers the reservation to the last number used.
func (vm *VM) stopClean() error {
	vm.epochs.Lock()
	defer vm.epochs.Unlock()
	if err := vm.j.saveJSON(preEpoch+vm.id, epochRecord{Reserved: vm.epochs.last}); err != nil {
		return fmt.Errorf("write epoch of vm %s: %w", vm.name, err)
	}
	vm.epochs.reserved = vm.epochs.last
	return nil
}
