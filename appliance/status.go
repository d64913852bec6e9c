package appliance

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// Status implements control.Backend.
func (a *Appliance) Status(_ context.Context, vm string) (control.Status, error) {
	s := control.Status{Version: Version, Pacer: a.pacerStatus()}
	machines := a.machines()
	slices.SortFunc(machines, func(x, y *machine) int { return strings.Compare(x.name, y.name) })
	for _, m := range machines {
		if vm == "" || m.name == vm {
			s.VMs = append(s.VMs, m.status())
		}
	}
	s.VMs = append(s.VMs, a.unprotectedVMs(vm, machines)...)
	s.VMs = append(s.VMs, a.untrackedVMs(vm, machines)...)
	if vm != "" && len(s.VMs) == 0 {
		return s, a.noVM(vm)
	}
	return s, nil
}

// untrackedVMs are the VMs whose images are served although nothing here could be
// made for them: they must not be missing (I12). vm "" asks for all.
func (a *Appliance) untrackedVMs(vm string, machines []*machine) []control.VM {
	var all []control.VM
	known := map[string]bool{}
	for _, m := range machines {
		known[m.name] = true
	}
	for _, s := range a.stores {
		for _, name := range s.untrackedVMs() {
			if known[name] || (vm != "" && vm != name) {
				continue
			}
			known[name] = true
			all = append(all, control.VM{Name: name, State: string(lifecycle.Error), Health: control.HealthCritical, Reasons: a.untracked(name),
				IntervalSeconds: a.config().EffectiveReplication(name).Interval.Seconds(), Resync: control.Resync{State: control.ResyncIdle}})
		}
	}
	return all
}

// untracked are the reasons of a VM's images without a tracker, in whatever store.
func (a *Appliance) untracked(vm string) []control.Reason {
	var reasons []control.Reason
	for _, s := range a.stores {
		reasons = append(reasons, s.untrackedOf(vm)...)
	}
	slices.SortFunc(reasons, func(x, y control.Reason) int { return strings.Compare(x.Message, y.Message) })
	return reasons
}

func (a *Appliance) noVM(vm string) error {
	if a.leftOut(vm) {
		return control.NotFound("its points stay at the target; when its disks are back it goes on where it was",
			"VM %q has no disk in any store: the config leaves it out, or its directory is gone", vm)
	}
	return control.NotFound("list the VMs with: vhdrelay status", "there is no VM %q", vm)
}

func (m *machine) status() control.VM {
	p := m.pipelineStatus()
	r := m.resync.status()
	now := m.app.now()
	mark := m.marked()
	state, since := m.look(p, r, mark)
	vm := control.VM{
		Name: m.name, State: string(state), StateSince: since, IntervalSeconds: m.replication().Interval.Seconds(), Generation: p.Generation,
		PendingBytes: p.Pending, SpooledBytes: p.Spooled, ApplyBacklogBytes: p.Backlog, AppliedEpoch: p.Applied.Epoch, Resync: r,
	}
	if !p.LastPoint.IsZero() {
		rpo := now.Sub(p.LastPointAt).Seconds()
		vm.DurableRPOSeconds = &rpo
		vm.LastPoint = &control.Point{ID: p.LastPoint.String(), Generation: p.LastPoint.Generation, Epoch: p.LastPoint.Epoch, Time: p.LastPointAt}
	}
	for _, d := range p.Disks {
		vm.Disks = append(vm.Disks, control.Disk{
			Name: d.Name, Format: string(d.Format), VirtualSize: d.VirtualSize, PendingBytes: d.Pending,
			InitialReplication: control.Transfer{DoneBytes: d.InitialDone, TotalBytes: d.InitialTotal},
		})
	}
	m.showChains(vm.Disks)
	vm.Jobs = m.app.jobs.active(m.name)
	vm.Recovery = m.recovery(vm.Disks)
	f := m.facts(p, r, mark, now)
	if f.Forecast != nil {
		vm.Forecast = &control.Forecast{What: f.Forecast.What, Seconds: f.Forecast.In.Seconds(), Message: f.Forecast.Message}
	}
	vm.Reasons = m.seen.date(health.Judge(f), now)
	vm.Health = health.Of(vm.Reasons)
	return vm
}

// pipelineStatus is the pipeline's, with another look at images that were none when
// it looked: they may have been written, or mended, since.
func (m *machine) pipelineStatus() shipper.Status {
	p := m.pipeline.Status()
	if !slices.ContainsFunc(p.Disks, unready) {
		return p
	}
	for _, a := range m.store.disksOf(m) {
		id, _ := m.pipeline.DiskOf(a.disk.ID())
		i := slices.IndexFunc(p.Disks, func(d shipper.DiskStatus) bool { return d.ID == id && unready(d) })
		if i < 0 {
			continue
		}
		info, err := a.probe()
		p.Disks[i].Err = err
		if err == nil {
			p.Disks[i].Format, p.Disks[i].VirtualSize, p.Disks[i].InitialTotal = info.Format, info.VirtualSize, info.VirtualSize
		}
	}
	return p
}

func growing(d shipper.DiskStatus) bool { return errors.Is(d.Err, image.ErrNotYet) }

func brokenChain(d shipper.DiskStatus) bool { return errors.Is(d.Err, image.ErrParent) }

func unready(d shipper.DiskStatus) bool { return growing(d) || errors.Is(d.Err, image.ErrInvalid) }

// recovery sums what the last start found suspect, and completes the disks.
func (m *machine) recovery(disks []control.Disk) control.Recovery {
	var sum control.Recovery
	for _, d := range m.log.Disks() {
		r := d.Recovery()
		sum.SuspectBytes += r.SuspectBytes
		sum.ComparedBytes += r.ComparedBytes
		sum.DifferingBytes += r.DifferingBytes
		if r.Reason != "" {
			sum.Reason = r.Reason
		}
		for i := range disks {
			if disks[i].Name == d.Name() {
				disks[i].ActiveRegions = d.ActiveRegions()
			}
		}
	}
	return sum
}

// mark says that a disk waits for the comparison of all of it, or its replica does.
type mark struct{ disk, reason string }

// marked finds a disk that is suspect as a whole. The active regions of a crash are
// no mark: they are compared at once.
func (m *machine) marked() mark {
	for _, d := range m.log.Disks() {
		if r := d.Recovery(); r.Reason != journal.ReasonUnclean && d.Suspected() {
			return mark{d.Name(), r.Reason}
		}
	}
	for _, d := range m.pipeline.Status().Disks {
		if d.Touched != "" {
			return mark{d.Name, d.Touched}
		}
	}
	return mark{}
}

// protectable tells a disk that can become complete from one that is only served.
func protectable(d shipper.DiskStatus) bool { return !errors.Is(d.Err, image.ErrUnsupported) }

// stateOf is the state of a VM as its pipeline and its comparison show it. Paused and
// unprotected are not seen: a command made them.
func stateOf(p shipper.Status, r control.Resync, m mark) lifecycle.State {
	disks, complete, begun := 0, true, false
	for _, d := range p.Disks {
		if protectable(d) {
			disks++
			complete = complete && d.Stage == shipper.StageComplete
			begun = begun || d.Stage != shipper.StageWaiting
		}
	}
	switch {
	case disks == 0:
		return lifecycle.Disabled
	case slices.ContainsFunc(p.Troubles, needsOperator):
		return lifecycle.Error
	case !begun && p.Generation == 0:
		return lifecycle.Ready
	case !begun:
		return lifecycle.Waiting
	case !complete:
		return lifecycle.Initial
	}
	return resyncState(p, r, m)
}

// resyncState is the state of a VM whose disks are complete.
func resyncState(p shipper.Status, r control.Resync, m mark) lifecycle.State {
	switch marked := m.reason != ""; {
	case marked && r.State == control.ResyncPaused:
		return lifecycle.ResynchronizationPaused
	case marked && r.State == control.ResyncRunning, p.CatchUp != "" && !p.OverQuota && !p.Resting:
		return lifecycle.Resynchronizing
	case marked, p.CatchUp != "":
		return lifecycle.ResynchronizationRequired
	}
	return lifecycle.Replicating
}

func needsOperator(t shipper.Trouble) bool { return t.NextTry.IsZero() && !t.Pending }

// reasonTimes remembers since when a reason has held.
type reasonTimes struct {
	mu struct {
		sync.Mutex // never held over I/O
		since      map[string]time.Time
	}
}

// date gives every reason the time it was first seen, until it is gone.
func (t *reasonTimes) date(reasons []control.Reason, now time.Time) []control.Reason {
	t.mu.Lock()
	defer t.mu.Unlock()
	since := map[string]time.Time{}
	for i, r := range reasons {
		at, seen := t.mu.since[r.Code]
		if !seen {
			at = now
		}
		if r.Since.IsZero() {
			reasons[i].Since = at
		}
		since[r.Code] = at
	}
	t.mu.since = since
	return reasons
}
