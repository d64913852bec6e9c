package appliance

import (
	"context"
	"fmt"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// Resync implements control.Backend: the disks are compared whole with the checksum
// table, or with deep their replicas are.
func (a *Appliance) Resync(ctx context.Context, vm, disk string, opts control.ResyncOptions, progress func(control.Progress)) (control.Resync, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.Resync{}, err
	}
	if err := m.permits(lifecycle.Resync); err != nil {
		return control.Resync{}, err
	}
	if opts.Cancel {
		return m.resync.cancel()
	}
	disks := m.disksNamed(disk)
	if len(disks) == 0 {
		return control.Resync{}, control.NotFound("list them with: vhdrelay status "+vm, "VM %s has no disk %q", vm, disk)
	}
	if err := m.resync.ask(disks, opts); err != nil {
		return m.resync.status(), err
	}
	return m.resync.await(ctx, progress)
}

// disksNamed are the VM's tracked disks of that name, all for "".
func (m *machine) disksNamed(name string) (disks []*attached) {
	for _, a := range m.store.disksOf(m) {
		if name == "" || a.disk.Name() == name {
			disks = append(disks, a)
		}
	}
	return disks
}

// ask has disks compared. A comparison that is under way or was interrupted goes on;
// it does not start over.
func (r *resyncer) ask(disks []*attached, opts control.ResyncOptions) error {
	const reason = "asked for by an operator"
	waits := map[*attached]bool{}
	for _, t := range r.tasks() {
		waits[t.a] = waits[t.a] || t.kind == taskMatch || t.kind == taskSource && t.reason != journal.ReasonUnclean
	}
	for _, a := range disks {
		if opts.Deep || waits[a] {
			continue
		}
		if err := a.disk.SetSuspect(reason); err != nil {
			return fmt.Errorf("disk %s: %w", a.disk.Name(), err)
		}
	}
	err := r.wishes.update(func(l *wishList) {
		l.Now, l.Held = l.Now || opts.Now, ""
		for _, a := range disks {
			if _, wanted := l.Deep[a.disk.Name()]; opts.Deep && !wanted {
				l.want(a.disk.Name(), reason)
			}
		}
	})
	r.goOn()
	return err
}

// cancel ends the running comparison. What was compared stays compared; what is
// suspect stays so, and waits until somebody asks for a comparison.
func (r *resyncer) cancel() (control.Resync, error) {
	tasks := r.tasks()
	cancellable := 0
	for _, t := range tasks {
		if t.kind != taskMatch {
			cancellable++
		}
	}
	if cancellable == 0 {
		return r.status(), control.Refused("nothing-to-cancel", "vhdrelay status "+r.m.name+" says what runs", "VM %s has no comparison that could be cancelled", r.m.name)
	}
	err := r.wishes.cancel()
	r.mu.Lock()
	if r.mu.stop != nil {
		r.mu.stop(errStopped)
	}
	r.mu.Unlock()
	return r.status(), err
}

// pause holds the comparisons of the VM, over restarts too; false if there is none
// to hold.
func (r *resyncer) pause() (bool, error) {
	if len(r.tasks()) == 0 {
		return false, nil
	}
	if err := r.wishes.update(func(l *wishList) { l.Held = heldPaused }); err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.running != nil {
		r.mu.running.Pause()
	}
	return true, nil
}

// resume lets paused comparisons go on where they were.
func (r *resyncer) resume() error {
	if r.wishes.get().Held != heldPaused {
		return nil
	}
	err := r.wishes.update(func(l *wishList) { l.Held = "" })
	r.goOn()
	return err
}

// paused tells whether an operator holds them.
func (r *resyncer) paused() bool { return r.wishes.get().Held == heldPaused }

func (r *resyncer) goOn() {
	r.mu.Lock()
	if r.mu.running != nil {
		r.mu.running.Resume()
	}
	r.mu.Unlock()
	r.wake()
}

// Adopt implements control.Backend: this host becomes the VM's writer, and what the
// target holds is compared instead of sent.
func (a *Appliance) Adopt(ctx context.Context, vm string, progress func(control.Progress)) (control.Resync, error) {
	m, err := a.find(vm)
	if err != nil {
		return control.Resync{}, err
	}
	if err := m.permits(lifecycle.Adopt); err != nil {
		return m.resync.status(), err
	}
	if err := m.pipeline.Adopt(); err != nil {
		return m.resync.status(), described(err)
	}
	a.log.Info("VM is adopted", "vm", vm)
	say := func(p shipper.Progress) {
		if progress != nil {
			progress(control.Progress{Stage: p.Stage, Done: p.Done, Total: p.Total})
		}
	}
	if err := m.awaitComplete(ctx, say); err != nil {
		return m.resync.status(), described(err)
	}
	return m.resync.await(ctx, progress)
}
