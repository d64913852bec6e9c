package appliance

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// The states of a VM that this appliance knows (after Hyper-V Replica's).
const (
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
	if vm != "" && len(s.VMs) == 0 {
		return s, a.noVM(vm)
	}
	return s, nil
}

func (a *Appliance) noVM(vm string) error {
	return control.NotFound("list the VMs with: vhdrelay status", "there is no VM %q", vm)
}

func (m *machine) status() control.VM {
	p := m.pipeline.Status()
	r := m.resync.status()
	now := m.app.now()
	state := stateOf(p, r)
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
	vm.Reasons = m.seen.date(reasonsOf(m.facts(p, now)), now)
	vm.Health = healthOf(vm.Reasons)
	return vm
}

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

// stateOf is the state of a VM as its pipeline shows it.
func stateOf(p shipper.Status, r control.Resync) string {
	complete, begun := true, false
	for _, d := range p.Disks {
		complete = complete && d.Stage == shipper.StageComplete
		begun = begun || d.Stage != shipper.StageWaiting
	}
	for _, t := range p.Troubles {
		if t.NextTry.IsZero() && !t.Pending {
			return StateError
		}
	}
	switch {
	case !begun:
		return StateWaiting
	case !complete:
		return StateInitial
	case p.CatchUp != "" && p.OverQuota:
		return StateResyncRequired
	case p.CatchUp != "":
		return StateResynchronizing
	}
	return StateReplicating
}

// facts are what a VM's health is a function of.
type facts struct {
	pipeline    shipper.Status
	now         time.Time
	interval    time.Duration
	journal     error
	unprotected []string
	vm          string
}

func (m *machine) facts(p shipper.Status, now time.Time) facts {
	return facts{pipeline: p, now: now, interval: m.replication().Interval, journal: m.app.journal.Failing(), unprotected: m.store.unprotected(m.name), vm: m.name}
}

// reasonsOf says why a VM is not healthy; a pure function.
func reasonsOf(f facts) []control.Reason {
	var all []control.Reason
	add := func(severity control.Severity, code, action, format string, args ...any) {
		all = append(all, control.Reason{Code: code, Severity: severity, Message: fmt.Sprintf(format, args...), Action: action})
	}
	for _, t := range f.pipeline.Troubles {
		all = append(all, troubleReason(t))
	}
	p := f.pipeline
	for _, d := range p.Disks {
		if d.Err != nil {
			add(control.SeverityCritical, "bad-image", "repair the image, then run: vhdrelay sync "+f.vm, "disk %s: %v", d.Name, d.Err)
		}
	}
	if p.CatchUp != "" {
		add(control.SeverityCritical, "resynchronization-required", "none: it catches up by itself as soon as the target takes the changes", "points pause: %s", p.CatchUp)
	}
	if !initiallyReplicated(p) {
		add(control.SeverityWarning, "initial-replication", "none: wait for it to end", "initial replication is not finished")
	}
	if p.Spooled > p.Quota/2 {
		add(control.SeverityWarning, "spool-over-half", "look at the target and the line to it, or raise replication.spool_limit", "the spool takes %d of %d bytes", p.Spooled, p.Quota)
	}
	if age := f.now.Sub(p.LastPointAt); !p.LastPoint.IsZero() && p.Pending > 0 && age > max(overdue, 5*f.interval) {
		add(control.SeverityWarning, "rpo-exceeded", "look at the other reasons; try: vhdrelay sync "+f.vm, "no recovery point for %s while changes wait", age.Round(time.Second))
	}
	if f.journal != nil {
		add(control.SeverityWarning, "journal-failing", "look at the disk of the state directory", "changes are marked on the images instead of the journal: %v", f.journal)
	}
	if len(f.unprotected) > 0 {
		add(control.SeverityWarning, "unprotected-format", "convert them to a fixed VHD or raw", "served but not protected: %s", strings.Join(f.unprotected, ", "))
	}
	return all
}

func initiallyReplicated(p shipper.Status) bool {
	return !slices.ContainsFunc(p.Disks, func(d shipper.DiskStatus) bool { return d.Stage != shipper.StageComplete })
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
