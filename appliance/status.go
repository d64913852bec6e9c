package appliance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// The states of a VM that this appliance knows (after Hyper-V Replica's).
const (
	StateDisabled        = "Disabled" // no disk, or none that can be protected
	StateWaiting         = "WaitingForInitialReplication"
	StateInitial         = "InitialReplication"
	StateReplicating     = "Replicating"
	StateResyncRequired  = "ResynchronizationRequired"
	StateResynchronizing = "Resynchronizing"
	StateError           = "Error"
)

// overdue is how long a VM with changes may be without a new point before its
// health says so; five intervals if that is longer.
const overdue = time.Hour

// Status implements control.Backend.
func (a *Appliance) Status(_ context.Context, vm string) (control.Status, error) {
	s := control.Status{Version: Version}
	machines := a.machines()
	slices.SortFunc(machines, func(x, y *machine) int { return strings.Compare(x.name, y.name) })
	for _, m := range machines {
		if vm == "" || m.name == vm {
			s.VMs = append(s.VMs, m.status())
		}
	}
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
			all = append(all, control.VM{Name: name, State: StateError, Health: control.HealthCritical, Reasons: a.untracked(name),
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
	return control.NotFound("list the VMs with: vhdrelay status", "there is no VM %q", vm)
}

func (m *machine) status() control.VM {
	p := m.pipelineStatus()
	r := m.resync.status()
	now := m.app.now()
	mark := m.marked()
	state := stateOf(p, r, mark)
	vm := control.VM{
		Name: m.name, State: state, StateSince: m.seen.of("state "+state, now), IntervalSeconds: m.replication().Interval.Seconds(), Generation: p.Generation,
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
	vm.Recovery = m.recovery(vm.Disks)
	vm.Reasons = m.seen.date(reasonsOf(m.facts(p, r, mark, now)), now)
	vm.Health = healthOf(vm.Reasons)
	return vm
}

// pipelineStatus is the pipeline's, with another look at images that were not yet one
// when it looked: they may have been written since.
func (m *machine) pipelineStatus() shipper.Status {
	p := m.pipeline.Status()
	if !slices.ContainsFunc(p.Disks, growing) {
		return p
	}
	for _, a := range m.store.disksOf(m) {
		i := slices.IndexFunc(p.Disks, func(d shipper.DiskStatus) bool { return d.ID == a.disk.ID() && growing(d) })
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

// mark says that a disk waits for the comparison of all of it.
type mark struct{ disk, reason string }

// marked finds a disk that is suspect as a whole. The active regions of a crash are
// no mark: they are compared at once.
func (m *machine) marked() mark {
	for _, d := range m.log.Disks() {
		if r := d.Recovery(); r.Reason != journal.ReasonUnclean && len(d.Suspect()) > 0 {
			return mark{d.Name(), r.Reason}
		}
	}
	return mark{}
}

// protectable tells a disk that can become complete from one that is only served.
func protectable(d shipper.DiskStatus) bool { return !errors.Is(d.Err, image.ErrUnsupported) }

// stateOf is the state of a VM as its pipeline and its comparison show it.
func stateOf(p shipper.Status, r control.Resync, m mark) string {
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
		return StateDisabled
	case slices.ContainsFunc(p.Troubles, needsOperator):
		return StateError
	case !begun:
		return StateWaiting
	case !complete:
		return StateInitial
	case m.reason != "" && r.State == control.ResyncRunning, p.CatchUp != "" && !p.OverQuota:
		return StateResynchronizing
	case m.reason != "", p.CatchUp != "":
		return StateResyncRequired
	}
	return StateReplicating
}

func needsOperator(t shipper.Trouble) bool { return t.NextTry.IsZero() && !t.Pending }

// facts are what a VM's health is a function of.
type facts struct {
	vm          string
	now         time.Time
	interval    time.Duration
	pipeline    shipper.Status
	resync      control.Resync
	mark        mark
	journal     error            // why it takes no records
	comparison  error            // why the newest one ended early
	untracked   []control.Reason // images
	unsupported []string         // files
}

func (m *machine) facts(p shipper.Status, r control.Resync, k mark, now time.Time) facts {
	_, comparison := m.resync.failure()
	return facts{
		vm: m.name, now: now, interval: m.replication().Interval, pipeline: p, resync: r, mark: k,
		journal: m.app.journal.Failing(), comparison: comparison, untracked: m.app.untracked(m.name), unsupported: m.store.unsupportedOf(m.name),
	}
}

// reasonsOf says why a VM is not healthy, the worst first; a pure function.
func reasonsOf(f facts) []control.Reason {
	all := slices.Clone(f.untracked)
	for _, t := range f.pipeline.Troubles {
		all = append(all, troubleReason(t))
	}
	all = append(all, f.ofDisks()...)
	all = append(all, f.ofResync()...)
	all = append(all, f.ofBacklog()...)
	if f.journal != nil {
		all = append(all, warning("journal-failing", "look at the disk of the state directory", "changes are marked on the images instead of the journal: %v", f.journal))
	}
	slices.SortStableFunc(all, func(a, b control.Reason) int { return rank(a) - rank(b) })
	return all
}

func rank(r control.Reason) int {
	if r.Severity == control.SeverityCritical {
		return 0
	}
	return 1
}

func warning(code, action, format string, args ...any) control.Reason {
	return control.Reason{Code: code, Severity: control.SeverityWarning, Message: fmt.Sprintf(format, args...), Action: action}
}

func critical(code, action, format string, args ...any) control.Reason {
	r := warning(code, action, format, args...)
	r.Severity = control.SeverityCritical
	return r
}

// ofDisks are the reasons that lie in the images.
func (f facts) ofDisks() []control.Reason {
	var all []control.Reason
	served, unfinished := slices.Clone(f.unsupported), false
	for _, d := range f.pipeline.Disks {
		switch {
		case !protectable(d):
			served = append(served, d.Name)
			continue
		case d.Err != nil && !growing(d):
			all = append(all, critical("bad-image", "repair the image, then run: vhdrelay sync "+f.vm, "disk %s: %v", d.Name, d.Err))
		}
		unfinished = unfinished || d.Stage != shipper.StageComplete
	}
	if unfinished {
		all = append(all, warning("initial-replication", "none: wait for it to end", "initial replication is not finished"))
	}
	if len(served) > 0 {
		all = append(all, warning("unprotected-format", "convert them to a fixed VHD or raw", "served but not protected: %s", strings.Join(served, ", ")))
	}
	if len(f.pipeline.Disks) == 0 {
		all = append(all, warning("no-disks", "none, if they were removed on purpose: the points made so far stay", "the VM has no disk any more"))
	}
	return all
}

// ofResync are the reasons that lie in what is to be compared or caught up.
func (f facts) ofResync() []control.Reason {
	var all []control.Reason
	if f.pipeline.CatchUp != "" {
		all = append(all, critical("resynchronization-required", "none: it catches up by itself as soon as the target takes the changes", "points pause: %s", f.pipeline.CatchUp))
	}
	switch {
	case f.mark.reason == "":
	case f.resync.State == control.ResyncRunning:
		all = append(all, warning("resynchronizing", "none: wait for it to end", "points pause, disk %s is compared: %s", f.mark.disk, f.mark.reason))
	default:
		all = append(all, critical("resynchronization-required", "none: it is compared as soon as its initial replication allows", "points pause, disk %s has to be compared: %s", f.mark.disk, f.mark.reason))
	}
	if f.comparison != nil {
		all = append(all, warning(codeComparison, actionComparison, "%v", f.comparison))
	}
	return all
}

// ofBacklog are the reasons that lie in what waits for the target.
func (f facts) ofBacklog() []control.Reason {
	var all []control.Reason
	p := f.pipeline
	if p.Spooled > p.Quota/2 {
		all = append(all, warning("spool-over-half", "look at the target and the line to it, or raise replication.spool_limit", "the spool takes %d of %d bytes", p.Spooled, p.Quota))
	}
	if age := f.now.Sub(p.LastPointAt); !p.LastPoint.IsZero() && p.Pending > 0 && age > max(overdue, 5*f.interval) {
		all = append(all, warning("rpo-exceeded", "look at the other reasons; try: vhdrelay sync "+f.vm, "no recovery point for %s while changes wait", age.Round(time.Second)))
	}
	return all
}

func troubleReason(t shipper.Trouble) control.Reason {
	class, code, cause, action := retry.Describe(t.Err)
	severity, next := control.SeverityWarning, ""
	if class != retry.Recoverable {
		severity = control.SeverityCritical
	} else if !t.NextTry.IsZero() {
		next = "; next try " + t.NextTry.UTC().Format(time.RFC3339)
	}
	return control.Reason{Code: code, Severity: severity, Message: fmt.Sprintf("%s: %s (%s%s)", t.Stage, cause, class, next), Action: action, Since: t.Since}
}

func healthOf(reasons []control.Reason) control.Health {
	health := control.HealthNormal
	for _, r := range reasons {
		if r.Severity == control.SeverityCritical {
			return control.HealthCritical
		}
		health = control.HealthWarning
	}
	return health
}

// reasonTimes remembers since when a reason has held.
type reasonTimes struct {
	mu struct {
		sync.Mutex // never held over I/O
		since      map[string]time.Time
		state      string
		stateAt    time.Time
	}
}

// of is since when the state has been what it is.
func (t *reasonTimes) of(state string, now time.Time) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.state != state {
		t.mu.state, t.mu.stateAt = state, now
	}
	return t.mu.stateAt
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
