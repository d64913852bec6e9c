package appliance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

const (
	docJob = "appliance/job/" // and the id

	// keepJobs is how many ended jobs of one kind a VM keeps, keepPrunes how many of those that come by the
	// clock, and keepFor how long any is kept.
	keepJobs   = 20
	keepPrunes = 1
	keepFor    = 30 * 24 * time.Hour

	// rateWindow is over what time the rate of a job is measured.
	rateWindow = 30 * time.Second
)

// jobStore keeps the records of jobs; the journal is one.
type jobStore interface {
	Keys(prefix string) ([]string, error)
	Load(key string, v any) (bool, error)
	Save(key string, v any) error
	Remove(key string) error
}

// jobs is the table of long work. What a job has done is not kept here: it is asked of the stage that does the
// work whenever somebody looks, and noted when the job ends.
type jobs struct {
	store jobStore
	now   func() time.Time
	log   *slog.Logger

	mu struct {
		sync.Mutex // held over the synced write of a record: jobs change rarely
		all        []*job
		next       uint64
		changed    chan struct{}
	}
}

// job is one job; its table's lock guards it.
type job struct {
	table    *jobs
	record   jobRecord
	progress func() jobProgress // nil: nobody is at work on it in this process yet
	waits    string             // what it waits for, "" while it gets on
	pace     pace
}

// jobRecord is what is durable of a job.
type jobRecord struct {
	control.Job
	// Request is what verify and export were asked for: a restart begins them again.
	Request *control.JobRequest `json:"request,omitempty"`
	// After is the newest epoch when the last step of a resync began, a later point ends it; Differing is how
	// many bytes it carries.
	After     uint64 `json:"after,omitempty"`
	Differing int64  `json:"differing,omitempty"`
}

// jobProgress is how far a job's present step is, in bytes, and what it does or waits for.
type jobProgress struct {
	done, total int64
	message     string
}

// openJobs reads the table. A record that cannot be read is left out and said: a job is not worth a start.
func openJobs(store jobStore, now func() time.Time, log *slog.Logger) (*jobs, error) {
	t := &jobs{store: store, now: now, log: log}
	t.mu.changed = make(chan struct{})
	keys, err := store.Keys(docJob)
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		j := &job{table: t}
		if _, err := store.Load(key, &j.record); err != nil {
			log.Warn("job cannot be read and is left out", "code", "job-unreadable", "job", key, "cause", err, "action", "none: the work itself goes on")
			continue
		}
		t.mu.all = append(t.mu.all, j)
		t.mu.next = max(t.mu.next, j.number())
	}
	slices.SortFunc(t.mu.all, func(x, y *job) int { return cmp.Compare(x.number(), y.number()) })
	return t, nil
}

func (j *job) number() uint64 {
	n, _ := strconv.ParseUint(j.record.ID, 10, 64) // 0 for an id that is none of ours
	return n
}

// begin makes a job of the kind, or finds the one that runs already: that is how one goes on after a restart.
// first is the record of a new one.
func (t *jobs) begin(first jobRecord, steps []string, progress func() jobProgress) *job {
	t.mu.Lock()
	defer t.mu.Unlock()
	if j := t.runningLocked(first.Kind, first.VM, first.Disk); j != nil {
		j.progress = progress
		return j
	}
	t.mu.next++
	first.ID, first.State, first.Started = strconv.FormatUint(t.mu.next, 10), control.JobRunning, t.now().UTC()
	for i, name := range steps {
		s := control.JobStep{Name: name, State: control.JobWaiting}
		if i == 0 {
			s.State, s.Started = control.JobRunning, first.Started
		}
		first.Steps = append(first.Steps, s)
	}
	j := &job{table: t, record: first, progress: progress}
	t.mu.all = append(t.mu.all, j)
	t.log.Log(context.Background(), levelOf(first.Kind), "job started", "job", first.ID, "kind", first.Kind, "vm", first.VM, "reason", first.Reason)
	t.saveLocked(j)
	return j
}

// levelOf keeps what comes by the clock out of the log.
func levelOf(kind control.JobKind) slog.Level {
	if kind == control.JobPrune {
		return slog.LevelDebug
	}
	return slog.LevelInfo
}

// running is the job of a kind that has not ended, nil for none.
func (t *jobs) running(kind control.JobKind, vm, disk string) *job {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.runningLocked(kind, vm, disk)
}

func (t *jobs) runningLocked(kind control.JobKind, vm, disk string) *job {
	for _, j := range t.mu.all {
		if r := j.record; r.Kind == kind && r.VM == vm && r.Disk == disk && !r.Over() {
			return j
		}
	}
	return nil
}

// saveLocked makes a record durable. A state disk that refuses it says so elsewhere: the work does not stop for it.
func (t *jobs) saveLocked(j *job) {
	if err := t.store.Save(docJob+j.record.ID, j.record); err != nil {
		t.log.Warn("job not noted; it is forgotten at a restart", "code", "job-not-saved", "job", j.record.ID, "cause", err, "action", "look at the disk of the state directory")
	}
	close(t.mu.changed)
	t.mu.changed = make(chan struct{})
}

// step says which step runs; those before it are done. It never goes back, and costs nothing if nothing is new.
func (j *job) step(name string) {
	t := j.table
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.IndexFunc(j.record.Steps, func(s control.JobStep) bool { return s.Name == name })
	if j.record.Over() || at < 0 || j.record.Steps[at].State != control.JobWaiting {
		return
	}
	now := t.now().UTC()
	j.record.Steps = slices.Clone(j.record.Steps)
	for i := range at {
		endStep(&j.record.Steps[i], control.JobDone, now)
	}
	j.record.Steps[at].State, j.record.Steps[at].Started = control.JobRunning, now
	j.pace, j.waits = pace{}, ""
	t.saveLocked(j)
}

func endStep(s *control.JobStep, state control.JobState, now time.Time) {
	if s.State == control.JobWaiting {
		s.Started = now
	}
	if s.Ended.IsZero() {
		s.State, s.Ended = state, now
	}
}

// note changes the record durably.
func (j *job) note(change func(*jobRecord)) {
	j.table.mu.Lock()
	defer j.table.mu.Unlock()
	change(&j.record)
	j.table.saveLocked(j)
}

// durable is the record as it was last noted.
func (j *job) durable() jobRecord {
	j.table.mu.Lock()
	defer j.table.mu.Unlock()
	return j.record
}

// follow says whom to ask how far the job is.
func (j *job) follow(progress func() jobProgress) {
	j.table.mu.Lock()
	defer j.table.mu.Unlock()
	j.progress = progress
}

// wait says what a job that goes on waits for; "" for nothing.
func (j *job) wait(why string) {
	j.table.mu.Lock()
	defer j.table.mu.Unlock()
	j.waits = why
}

// end ends a job: with what it achieved, or with err. A cancelled one keeps what was done.
func (j *job) end(state control.JobState, result string, err error) {
	t := j.table
	t.mu.Lock()
	defer t.mu.Unlock()
	if j.record.Over() {
		return
	}
	now := t.now().UTC()
	r := &j.record
	if j.progress != nil {
		p := j.progress()
		r.DoneBytes, r.TotalBytes = p.done, p.total
	}
	r.State, r.Ended, r.Result = state, now, cmp.Or(result, r.Result)
	if e, ok := errors.AsType[*control.Error](described(err)); ok {
		r.Code, r.Cause, r.Action = e.Code, e.Message, e.Action
	}
	r.Steps = slices.Clone(r.Steps)
	for i := range r.Steps {
		if state == control.JobDone || r.Steps[i].State == control.JobRunning {
			endStep(&r.Steps[i], state, now)
		}
	}
	j.progress = nil
	level := levelOf(r.Kind)
	if state == control.JobFailed {
		level = slog.LevelWarn
	}
	t.log.Log(context.Background(), level, "job ended", "job", r.ID, "kind", r.Kind, "vm", r.VM, "state", r.State, "result", r.Result,
		"code", r.Code, "cause", r.Cause, "action", r.Action, "took", now.Sub(r.Started).Round(time.Second))
	t.saveLocked(j)
	t.forgetLocked(now)
}

// forgetLocked drops what is too old, and of every kind and VM all but the newest.
func (t *jobs) forgetLocked(now time.Time) {
	type sort struct {
		kind control.JobKind
		vm   string
	}
	have := map[sort]int{}
	var kept []*job
	for _, j := range slices.Backward(t.mu.all) {
		r, most := j.record, keepJobs
		if r.Kind == control.JobPrune {
			most = keepPrunes
		}
		key := sort{r.Kind, r.VM}
		if r.Over() {
			have[key]++
		}
		if !r.Over() || have[key] <= most && now.Sub(r.Ended) < keepFor {
			kept = append(kept, j)
			continue
		}
		if err := t.store.Remove(docJob + r.ID); err != nil {
			t.log.Debug("old job not removed", "job", r.ID, "cause", err)
		}
	}
	slices.Reverse(kept)
	t.mu.all = kept
}

// list is every job of a VM, or of all for "": what runs first, then the newest first.
func (t *jobs) list(vm string) []control.Job {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []control.Job
	for _, j := range slices.Backward(t.mu.all) {
		if vm == "" || j.record.VM == vm {
			all = append(all, j.viewLocked())
		}
	}
	slices.SortStableFunc(all, func(x, y control.Job) int { return cmp.Compare(over(x), over(y)) })
	return all
}

// cancelAll ends what runs of a VM and depends on its pipeline.
func (t *jobs) cancelAll(vm, why string) {
	for _, kind := range []control.JobKind{control.JobProtect, control.JobResync} {
		if j := t.running(kind, vm, ""); j != nil {
			j.end(control.JobCancelled, why, nil)
		}
	}
}

// active are the jobs of a VM that have not ended.
func (t *jobs) active(vm string) []control.Job {
	all := t.list(vm)
	return all[:slices.IndexFunc(append(all, control.Job{State: control.JobDone}), control.Job.Over)]
}

func over(j control.Job) int {
	if j.Over() {
		return 1
	}
	return 0
}

// get is one job as it is now, and what is closed when one changes its step or ends.
func (t *jobs) get(id string) (control.Job, <-chan struct{}, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, j := range t.mu.all {
		if j.record.ID == id {
			return j.viewLocked(), t.mu.changed, nil
		}
	}
	return control.Job{}, nil, control.NotFound("list them with: vhdrelay jobs", "there is no job %q", id)
}

// viewLocked is the job as it is now, with rate and time left.
func (j *job) viewLocked() control.Job {
	v := j.record.Job
	if j.progress == nil {
		if !v.Over() {
			v.Message = "waits for the appliance to get to it"
		}
		return v
	}
	p := j.progress()
	v.DoneBytes, v.TotalBytes, v.Message = p.done, p.total, cmp.Or(j.waits, p.message)
	if rate := j.pace.at(j.table.now(), p.done); rate > 0 {
		v.RateBytesPerSecond = int64(rate)
		if left := p.total - p.done; left > 0 {
			eta := float64(left) / rate
			v.ETASeconds = &eta
		}
	}
	return v
}

// pace measures a rate between looks that come whenever they do.
type pace struct{ looks []look }

type look struct {
	at   time.Time
	done int64
}

// at notes how far it is and returns the bytes a second since the newest look that is a window old, or since the
// oldest; 0 where that says nothing.
func (p *pace) at(now time.Time, done int64) float64 {
	if n := len(p.looks); n > 0 && done < p.looks[n-1].done {
		p.looks = nil // it began again
	}
	for len(p.looks) > 1 && now.Sub(p.looks[1].at) >= rateWindow {
		p.looks = p.looks[1:]
	}
	if n := len(p.looks); n == 0 || now.Sub(p.looks[n-1].at) >= time.Second {
		p.looks = append(p.looks, look{now, done})
	}
	first := p.looks[0]
	if seconds := now.Sub(first.at).Seconds(); seconds >= 1 {
		return float64(done-first.done) / seconds
	}
	return 0
}

// Jobs implements control.Backend.
func (a *Appliance) Jobs(_ context.Context, vm string) (control.Jobs, error) {
	return control.Jobs{Jobs: a.jobs.list(vm)}, nil
}

// Job implements control.Backend.
func (a *Appliance) Job(_ context.Context, id string) (control.Job, error) {
	j, _, err := a.jobs.get(id)
	return j, err
}

// WaitJob implements control.Backend.
func (a *Appliance) WaitJob(ctx context.Context, id string, progress func(control.Progress)) (control.Job, error) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		j, changed, err := a.jobs.get(id)
		if err != nil || j.Over() {
			return j, err
		}
		if progress != nil {
			progress(control.Progress{Stage: fmt.Sprintf("job %s, %s", j.ID, cmp.Or(j.Step(), string(j.Kind))), Item: j.VM, Done: j.DoneBytes, Total: j.TotalBytes})
		}
		select {
		case <-ctx.Done():
			return j, ctx.Err()
		case <-changed:
		case <-tick.C:
		}
	}
}
