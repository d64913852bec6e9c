package health

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// goesOn finds the commands after which nothing is left to be resumed.
var goesOn = regexp.MustCompile(`vhdrelay (resume|adopt|protect|unprotect|sync) `)

// Limits of BEHAVIOUR §Health.
const (
	Window     = time.Hour       // the monitoring interval, if five intervals are not longer
	Overdue    = time.Hour       // without a point, likewise
	MaxLatency = 5 * time.Minute // of the average cycle
	maxMissed  = 0.2             // of the cycles of the window
)

// Judge says why a VM is not healthy, the worst first; nothing if it is. A reason
// without a time of its own has a zero Since: the caller knows since when it holds.
func Judge(f Facts) []control.Reason {
	var all []control.Reason
	all = append(all, f.Store...)
	all = append(all, f.troubles()...)
	all = append(all, f.disks()...)
	all = append(all, f.resync()...)
	all = append(all, f.backlog()...)
	all = append(all, f.cycles()...)
	if f.Journal != nil {
		all = append(all, reason(JournalFailing, "look at the disk of the state directory", "changes are marked on the images instead of the journal: %v", f.Journal))
	}
	if f.Leaving != nil {
		all = append(all, reason(Leaving, "look at the target; try at once with: vhdrelay unprotect "+f.VM+" --delete-replica", "unprotect has not come to its end: %v", f.Leaving))
	}
	slices.SortStableFunc(all, func(a, b control.Reason) int { return rank(a) - rank(b) })
	return all
}

// Of is the worst of the reasons.
func Of(reasons []control.Reason) control.Health {
	health := control.HealthNormal
	for _, r := range reasons {
		if r.Severity == control.SeverityCritical {
			return control.HealthCritical
		}
		health = control.HealthWarning
	}
	return health
}

func rank(r control.Reason) int {
	if r.Severity == control.SeverityCritical {
		return 0
	}
	return 1
}

// reason has the severity that the table gives its code.
func reason(code, action, format string, args ...any) control.Reason {
	m, known := MeaningOf(code)
	if !known {
		m.Severity = control.SeverityCritical // a gap in the table is no good news
	}
	return control.Reason{Code: code, Severity: m.Severity, Message: fmt.Sprintf(format, args...), Action: action}
}

// troubles tells each once: several stages meet the same cause.
func (f Facts) troubles() []control.Reason {
	var all []control.Reason
	for _, t := range f.Troubles {
		if t.Code == BadImage && slices.ContainsFunc(f.Disks, broken) {
			continue // each of them is named, and not only the one that was met first
		}
		if t.Code == ChainBroken && slices.ContainsFunc(f.Disks, func(d Disk) bool { return d.Chain != nil }) {
			continue
		}
		r := f.trouble(t)
		same := func(have control.Reason) bool { return have.Code == r.Code && have.Cause == r.Cause }
		if i := slices.IndexFunc(all, same); i < 0 {
			all = append(all, r)
		} else if r.Since.Before(all[i].Since) {
			all[i].Since = r.Since
		}
	}
	return all
}

func (f Facts) trouble(t Trouble) control.Reason {
	code, next := CannotSend, ""
	switch {
	case t.Code == Fenced || t.Code == BadImage || t.Code == ChainBroken:
		code = t.Code
	case t.Class == retry.Bug:
		code = Defect
	case t.Class == retry.Recoverable:
		code = Retrying
		if !t.NextTry.IsZero() {
			next = ", next try " + t.NextTry.UTC().Format(time.RFC3339)
		}
	}
	r := reason(code, t.Action, "%s: %s (%s, %s%s)", t.Stage, t.Cause, t.Class, t.Code, next)
	r.Cause, r.Since = t.Code, t.Since
	if code == CannotSend {
		r.Action = then(t.Action, "vhdrelay resume "+f.VM)
	}
	return r
}

// then joins an error's own action with the command that goes on, unless the action names the commands that do.
func then(action, command string) string {
	if goesOn.MatchString(action) {
		return action
	}
	return strings.TrimSuffix(action, ", then resume the VM") + "; then: " + command
}

// broken tells an image that is to be repaired.
func broken(d Disk) bool { return d.Err != nil && !d.Foreign }

// disks are the reasons that lie in the images.
func (f Facts) disks() []control.Reason {
	var all []control.Reason
	served, unfinished := slices.Clone(f.Foreign), false
	for _, d := range f.Disks {
		switch {
		case d.Foreign:
			served = append(served, d.Name)
			continue
		case broken(d):
			all = append(all, reason(BadImage, "repair or remove the image, then: vhdrelay resume "+f.VM, "disk %s: %v", d.Name, d.Err))
		case d.Chain != nil:
			all = append(all, reason(ChainBroken, "put the image that is named into its place in the store, as it was; unless that was at the mount, then: vhdrelay resume "+f.VM, "disk %s: %v", d.Name, d.Chain))
		case d.NotYet != nil:
			all = append(all, reason(ImageIncomplete, "finish copying the image, or remove it", "disk %s: %v", d.Name, d.NotYet))
		}
		unfinished = unfinished || !d.Complete
	}
	if unfinished {
		all = append(all, reason(InitialUnfinished, "none: wait for it to end", "initial replication is not finished"))
	}
	if len(served) > 0 {
		all = append(all, reason(UnprotectedFormat, "convert them to a fixed VHD or raw", "served but not protected: %s", strings.Join(served, ", ")))
	}
	if len(f.Disks) == 0 && len(f.Store) == 0 {
		all = append(all, reason(NoDisks, "none, if they were removed on purpose: the points made so far stay; vhdrelay unprotect "+f.VM+" forgets the VM", "the VM has no disk any more"))
	}
	return all
}

// resync are the reasons that lie in what is to be compared or caught up.
func (f Facts) resync() []control.Reason {
	var all []control.Reason
	if f.CatchUp != "" {
		action := "none: it catches up by itself as soon as the target takes the changes"
		if f.Paused {
			action = "let it go on: vhdrelay resume " + f.VM
		}
		all = append(all, reason(ResyncRequired, action, "points pause: %s", f.CatchUp))
	}
	switch {
	case f.Marked == nil:
	case f.Comparing:
		all = append(all, reason(Resynchronizing, "none: wait for it to end", "disk %s is compared: %s", f.Marked.Disk, f.Marked.Reason))
	case f.ComparisonPaused:
		all = append(all, reason(ResyncRequired, "let it go on: vhdrelay resume "+f.VM, "the comparison of disk %s is paused: %s", f.Marked.Disk, f.Marked.Reason))
	default:
		all = append(all, reason(ResyncRequired, "it waits for resync.window; at once: vhdrelay resync "+f.VM+" --now", "disk %s has to be compared: %s", f.Marked.Disk, f.Marked.Reason))
	}
	if f.Comparison != nil {
		all = append(all, reason(ComparisonFailed, "look at the image and at the disk of the state directory; it is tried again", "%v", f.Comparison))
	}
	return all
}

// backlog are the reasons that lie in what waits for the target.
func (f Facts) backlog() []control.Reason {
	var all []control.Reason
	if f.Paused {
		all = append(all, reason(VMPaused, "vhdrelay resume "+f.VM, "paused by an operator: nothing is sent%s", f.soon()))
	}
	if f.Spooled > f.Quota/2 {
		all = append(all, reason(SpoolOverHalf, "look at the target and the line to it, or raise replication.spool_limit",
			"the spool takes %d of %d bytes%s", f.Spooled, f.Quota, f.soon()))
	}
	if f.Scarce != "" {
		all = append(all, reason(StateDiskFull, "free space on the file system of "+f.Scarce,
			"for lack of free space in %s the spool may take %d bytes, too few for an epoch", f.Scarce, f.Quota))
	}
	if age := f.Now.Sub(f.LastPoint); !f.LastPoint.IsZero() && f.Pending > 0 && age > f.window(Overdue) {
		all = append(all, reason(RPOExceeded, "look at the other reasons; try: vhdrelay sync "+f.VM, "no recovery point for %s while changes wait", age.Round(time.Second)))
	}
	return all
}

// soon is the forecast as the end of a message.
func (f Facts) soon() string {
	if f.Forecast == nil {
		return ""
	}
	return "; " + f.Forecast.Message
}

// window is a limit of an hour, or five intervals if that is longer.
func (f Facts) window(least time.Duration) time.Duration { return max(least, 5*f.Interval) }

// cycles are the reasons that lie in how the last cycles went.
func (f Facts) cycles() []control.Reason {
	var all []control.Reason
	if f.Interval <= 0 {
		return nil
	}
	due := int(f.window(Window) / f.Interval)
	if missed := f.missed(); float64(missed) > maxMissed*float64(due) {
		all = append(all, reason(CyclesMissed, "look at the other reasons; a faster line, a longer replication.interval or less change",
			"%d of %d cycles of the last %s had no point in time", missed, due, f.window(Window)))
	}
	if mean := f.latency(); mean > MaxLatency {
		all = append(all, reason(CycleLatency, "look at the other reasons; a faster line, or replication.compression: better",
			"a cycle takes %s from its seal to its point, on average", mean.Round(time.Second)))
	}
	return all
}

// missed counts the cycles of the window whose point was not durable before the next
// but one seal was due. Several seals within one interval are one cycle; a seal that
// the quota kept back is one too.
func (f Facts) missed() int {
	from := f.Now.Add(-f.window(Window))
	inTime := map[int64]bool{} // by number of the interval since the epoch
	for _, c := range f.Cycles {
		limit := c.SealedAt.Add(2 * f.Interval)
		if c.SealedAt.Before(from) || c.DurableAt.IsZero() && !c.Open && f.Now.Before(limit) {
			continue
		}
		slot := c.SealedAt.UnixNano() / int64(f.Interval)
		inTime[slot] = inTime[slot] || !c.DurableAt.IsZero() && !c.DurableAt.After(limit)
	}
	missed := 0
	for _, ok := range inTime {
		if !ok {
			missed++
		}
	}
	if !f.SealsRest.IsZero() {
		rest := f.Now.Sub(later(f.SealsRest, from))
		missed += int(rest / f.Interval)
	}
	return missed
}

// latency is the mean of the window's cycles from seal to point; one that has none
// yet counts with its age.
func (f Facts) latency() time.Duration {
	from := f.Now.Add(-f.window(Window))
	var sum time.Duration
	n := 0
	for _, c := range f.Cycles {
		switch {
		case c.Open || c.SealedAt.Before(from):
			continue
		case c.DurableAt.IsZero():
			sum += f.Now.Sub(c.SealedAt)
		default:
			sum += c.DurableAt.Sub(c.SealedAt)
		}
		n++
	}
	return sum / time.Duration(max(n, 1))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
