package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// leaving is an unprotect that is under way: it goes on over failures and restarts
// until nothing of the VM is left that was to go.
type leaving struct {
	kick chan struct{}
	mu   struct {
		sync.Mutex // never held over I/O
		err        error
		attempt    int
		since      time.Time
		changed    chan struct{} // closed when an attempt has ended
		done       bool
	}
}

func newLeaving() *leaving {
	l := &leaving{kick: make(chan struct{}, 1)}
	l.mu.changed = make(chan struct{})
	return l
}

// note takes the end of an attempt in and returns how long to wait for the next; 0
// for an operator.
func (l *leaving) note(err error, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.err == nil {
		l.mu.since = now
	}
	l.mu.err, l.mu.done = err, err == nil
	l.mu.attempt++
	close(l.mu.changed)
	l.mu.changed = make(chan struct{})
	if retry.Classify(err) != retry.Recoverable {
		return 0
	}
	return retry.Next(l.mu.attempt)
}

func (l *leaving) state() (done bool, since time.Time, changed <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.done, l.mu.since, l.mu.changed, l.mu.err
}

// Unprotect implements control.Backend. It is durable before anything is touched.
func (a *Appliance) Unprotect(ctx context.Context, vm string, opts control.UnprotectOptions) (control.Moved, error) {
	if err := a.decideToLeave(vm, opts.DeleteReplica); err != nil {
		return control.Moved{}, err
	}
	l := a.leave(vm)
	for l != nil {
		done, _, changed, err := l.state()
		if done {
			break
		}
		if err != nil {
			return control.Moved{}, described(fmt.Errorf("unprotected, and it goes on by itself until all is removed: %w", err))
		}
		select {
		case <-ctx.Done():
			return control.Moved{}, ctx.Err()
		case <-changed:
		}
	}
	return control.Moved{VM: vm, State: string(lifecycle.Disabled)}, nil
}

// decideToLeave makes durable what is to go.
func (a *Appliance) decideToLeave(vm string, erase bool) error {
	m, _ := a.find(vm)
	a.mu.Lock()
	life := a.mu.lives[vm]
	a.mu.Unlock()
	if m == nil && (life == nil || !life.Record().Unprotected) {
		return a.noVM(vm)
	}
	return refusal(life.Do(lifecycle.Unprotect, lifecycle.Disabled, func(r *lifecycle.Record) {
		r.Unprotected = true
		if m != nil {
			r.ID, r.Generation = m.log.ID(), m.pipeline.Status().Generation
			r.Leaving = &lifecycle.Leaving{Local: true}
		}
		if erase && r.Leaving == nil {
			r.Leaving = &lifecycle.Leaving{}
		}
		if r.Leaving != nil {
			r.Leaving = &lifecycle.Leaving{Local: r.Leaving.Local, Erase: erase}
		}
	}))
}

// leave carries an unprotect on, in one goroutine a VM; nil if nothing is to be done.
// A second call tries again at once.
func (a *Appliance) leave(vm string) *leaving {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.lives[vm].Record().Leaving == nil {
		return nil
	}
	if l := a.mu.leaving[vm]; l != nil {
		l.mu.Lock()
		l.mu.err = nil
		l.mu.Unlock()
		select {
		case l.kick <- struct{}{}:
		default:
		}
		return l
	}
	l := newLeaving()
	a.mu.leaving[vm] = l
	if a.mu.spawn != nil {
		a.mu.spawn(func(ctx context.Context) { a.keepLeaving(ctx, vm, l) })
	}
	return l
}

// resumeLeaving goes on with what a stop interrupted.
func (a *Appliance) resumeLeaving() {
	a.mu.Lock()
	var names []string
	for name, life := range a.mu.lives {
		if life.Record().Leaving != nil {
			names = append(names, name)
		}
	}
	a.mu.Unlock()
	for _, name := range names {
		a.leave(name)
	}
}

// keepLeaving tries until it is done or ctx ends.
func (a *Appliance) keepLeaving(ctx context.Context, vm string, l *leaving) {
	for {
		err := a.leaveOnce(ctx, vm)
		if ctx.Err() != nil {
			return
		}
		if err == nil && !a.endLeaving(vm) {
			continue // more was asked for meanwhile
		}
		if err == nil {
			l.note(nil, a.now())
			a.log.Info("VM unprotected", "vm", vm)
			return
		}
		wait := l.note(err, a.now())
		class, code, cause, action := retry.Describe(err)
		a.log.Warn("unprotect has not come to its end", "vm", vm, "class", class.String(), "code", code, "cause", cause, "action", action, "retry_in", wait)
		if !l.pause(ctx, wait) {
			return
		}
	}
}

// endLeaving ends an unprotect of which nothing is left to do; false: something is.
// Under one lock with leave: who asks for more finds this one, or begins another.
func (a *Appliance) endLeaving(vm string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.mu.lives[vm].Record().Leaving != nil {
		return false
	}
	delete(a.mu.leaving, vm)
	return true
}

func (l *leaving) pause(ctx context.Context, wait time.Duration) bool {
	var due <-chan time.Time
	if wait > 0 {
		t := time.NewTimer(wait)
		defer t.Stop()
		due = t.C
	}
	select {
	case <-ctx.Done():
		return false
	case <-due:
	case <-l.kick:
	}
	return true
}

// leaveOnce removes what is to go, as far as it gets; what is gone already is no
// obstacle.
func (a *Appliance) leaveOnce(ctx context.Context, vm string) error {
	if err := a.retire(ctx, vm); err != nil {
		return err
	}
	a.mu.Lock()
	life := a.mu.lives[vm]
	a.mu.Unlock()
	rec := life.Record()
	if rec.Leaving == nil {
		return nil
	}
	rec, err := a.keepGeneration(life, rec)
	if err != nil {
		return err
	}
	if rec.Leaving.Erase && rec.ID != "" {
		if err := a.erase(ctx, vm, rec); err != nil {
			return err
		}
	}
	if rec.Leaving.Local {
		if err := a.forgetLocal(vm, rec.ID); err != nil {
			return fmt.Errorf("remove local state: %w", err)
		}
	}
	return life.Amend(func(r *lifecycle.Record) {
		if r.Leaving != nil && (rec.Leaving.Erase || !r.Leaving.Erase) { // nobody asked for more meanwhile
			r.Leaving = nil
		}
	})
}

// keepGeneration notes the generation that the VM left with. A takeover that was under way when it was unprotected may have
// raised it since then, or have come as far as vm.json only.
func (a *Appliance) keepGeneration(life *lifecycle.Life, rec lifecycle.Record) (lifecycle.Record, error) {
	generation, taking, err := shipper.Generations(documents{a.journal}, rec.ID)
	if err != nil || generation == 0 || generation == rec.Generation && taking == rec.TakingOver {
		return rec, err
	}
	err = life.Amend(func(r *lifecycle.Record) { r.Generation, r.TakingOver = generation, taking })
	return life.Record(), err
}

// retire ends the VM's machine: its stages, its disks' tracking, its open files.
func (a *Appliance) retire(ctx context.Context, vm string) error {
	a.mu.Lock()
	m := a.mu.machines[vm]
	a.mu.Unlock()
	if m == nil {
		return nil
	}
	if err := m.stop(ctx); err != nil {
		return err
	}
	if e := m.log.Sealed(); e != nil { // nobody captures it any more
		if err := e.MergeBack(); err != nil {
			return err
		}
	}
	m.store.release(m)
	if err := m.pipeline.Close(); err != nil {
		a.log.Warn("closing the tables of an unprotected VM", "vm", vm, "cause", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.mu.machines, vm)
	return nil
}

// release ends the tracking of a machine's disks, also of those that are open.
func (s *store) release(m *machine) {
	moved := map[string]bool{} // open, and in the directory of another VM by now: that is whose they are from here on
	s.mu.Lock()
	for key, a := range s.mu.images {
		if a.vm == m {
			moved[a.now] = true
			s.detachLocked(key, "the VM is not protected any more")
		}
	}
	s.mu.Unlock()
	s.retrack(m.name, moved)
}

// retrack has fs ask again for the images of a VM and those at some paths, open ones too.
func (s *store) retrack(vm string, also map[string]bool) {
	if s.srv == nil {
		return
	}
	s.srv.Retrack(func(path string) bool {
		owner, _, _ := belongs(s.conf, path)
		return owner == vm || also[path]
	})
}

// admit attaches the images of a VM that fs does not know of yet. One that fs knows
// has its answer already: attached behind its back it would be a disk whose changes
// nobody is told of.
func (s *store) admit(vm string) error {
	return s.walk(func(rel, full string) error {
		if owner, _, _ := belongs(s.conf, rel); owner != vm || !image.IsImageName(rel) {
			return nil
		}
		id, err := fs.Identify(full)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		_, answered := s.mu.untracked[fileID{id.Dev, id.Ino}]
		s.mu.Unlock()
		if !answered {
			s.Attach(rel, id)
		}
		return nil
	})
}

// erase deletes what the target holds of the VM.
func (a *Appliance) erase(ctx context.Context, vm string, rec lifecycle.Record) error {
	t, err := a.openTarget(ctx)
	if err != nil {
		return err
	}
	return shipper.Erasure{Target: t, Pacer: a.pacer, VM: vm, ID: rec.ID, Generation: rec.Generation, TakingOver: rec.TakingOver, Lease: uuid.NewString()}.Run(ctx)
}

// forgetLocal removes what the state directory has of a VM. Its disks were detached
// with their tables.
func (a *Appliance) forgetLocal(vm, id string) error {
	if id == "" || strings.ContainsRune(id, filepath.Separator) {
		return fmt.Errorf("vm %s: %q is no id", vm, id)
	}
	err := errors.Join(
		a.removeTables(id),
		a.journal.RemoveDocuments("disk/"+id+"/"),
		a.journal.Remove("ship/"+id),
		os.RemoveAll(filepath.Join(a.config().StateDir, "spool", id)))
	if err != nil {
		return err
	}
	return a.journal.ForgetVM(vm)
}

// removeTables removes the checksum tables and block tables of all disks the pipeline ever knew.
func (a *Appliance) removeTables(id string) error {
	prefix := "disk/" + id + "/"
	keys, err := a.journal.Documents(prefix)
	if err != nil {
		return err
	}
	for _, key := range keys {
		disk := filepath.Join(a.tableDir(), strings.TrimPrefix(key, prefix))
		blocks, err := filepath.Glob(disk + ".blocks-*")
		if err != nil {
			return err
		}
		for _, path := range append(blocks, disk+".table") {
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// Protect implements control.Backend.
func (a *Appliance) Protect(_ context.Context, vm string) (control.Moved, error) {
	if m, err := a.find(vm); err == nil {
		if !a.isUnprotected(vm) {
			return control.Moved{}, refusal(lifecycle.Permit(vm, m.protectedState(), lifecycle.Protect))
		}
	} else if !a.isUnprotected(vm) {
		return control.Moved{}, err
	}
	if err := a.takeBack(vm); err != nil {
		return control.Moved{}, err
	}
	for _, s := range a.stores {
		s.retrack(vm, nil)
		if err := s.admit(vm); err != nil {
			return control.Moved{}, fmt.Errorf("store %s: %w", s.conf.Name, err)
		}
	}
	a.log.Info("VM protected", "vm", vm)
	m, err := a.find(vm)
	if err != nil {
		return control.Moved{VM: vm, State: string(lifecycle.Ready)}, nil
	}
	m.lookAgain()
	return m.moved(), nil
}

// protectedState is where the VM stands, one without a disk included: it is protected,
// and begins with its first disk.
func (m *machine) protectedState() lifecycle.State {
	if s := m.lookAgain(); s != lifecycle.Disabled {
		return s
	}
	return lifecycle.Ready
}

// takeBack makes the protection durable.
func (a *Appliance) takeBack(vm string) error {
	a.mu.Lock()
	life := a.mu.lives[vm]
	a.mu.Unlock()
	if life.Record().Leaving != nil {
		return control.Refused(control.CodeRefused, "see vhdrelay status "+vm+"; without the replica: vhdrelay unprotect "+vm,
			"VM %s is %s, and its unprotect has not come to its end: protect is refused", vm, lifecycle.Disabled)
	}
	return refusal(life.Do(lifecycle.Protect, lifecycle.Ready, func(r *lifecycle.Record) { r.Unprotected = false }))
}

// unprotectedVMs are the VMs that an operator took out, and that are served all the
// same. vm "" asks for all.
func (a *Appliance) unprotectedVMs(vm string, machines []*machine) []control.VM {
	a.mu.Lock()
	lives, under := map[string]lifecycle.Record{}, map[string]*leaving{}
	for name, l := range a.mu.lives {
		if r := l.Record(); r.Unprotected && (vm == "" || vm == name) {
			lives[name], under[name] = r, a.mu.leaving[name]
		}
	}
	a.mu.Unlock()
	for _, m := range machines {
		delete(lives, m.name) // it has not come far enough to be gone
	}
	var all []control.VM
	for name, r := range lives {
		f := health.Facts{VM: name, Now: a.now(), Disks: []health.Disk{{Complete: true}}}
		var since time.Time
		if l := under[name]; l != nil {
			_, since, _, f.Leaving = l.state()
		}
		v := control.VM{Name: name, State: string(r.State), StateSince: r.Since, Reasons: health.Judge(f), Resync: control.Resync{State: control.ResyncIdle},
			IntervalSeconds: a.config().EffectiveReplication(name).Interval.Seconds()}
		for i := range v.Reasons {
			v.Reasons[i].Since = since
		}
		v.Health = health.Of(v.Reasons)
		all = append(all, v)
	}
	slices.SortFunc(all, func(x, y control.VM) int { return strings.Compare(x.Name, y.Name) })
	return all
}
