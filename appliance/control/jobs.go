package control

import (
	"context"
	"net/http"
	"net/url"
	"time"
)

// JobKind says what a job does.
type JobKind string

// The kinds of jobs.
const (
	JobProtect JobKind = "protect" // enable protection: from the first byte to a point that was proven readable
	JobResync  JobKind = "resync"
	JobVerify  JobKind = "verify"
	JobPrune   JobKind = "prune"
	JobExport  JobKind = "export"
)

// JobState says how a job or one of its steps is doing.
type JobState string

// The states of a job; a step may also wait for the one before it.
const (
	JobWaiting   JobState = "waiting"
	JobRunning   JobState = "running"
	JobDone      JobState = "done"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Job is a piece of long work. It survives a restart of the appliance and goes on.
type Job struct {
	ID    string   `json:"id"`
	Kind  JobKind  `json:"kind"`
	VM    string   `json:"vm"`
	Disk  string   `json:"disk,omitempty"`
	State JobState `json:"state"`
	// Reason is why it runs, where that is not plain from its kind.
	Reason  string    `json:"reason,omitempty"`
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Steps   []JobStep `json:"steps"`
	// DoneBytes of TotalBytes are of the step that runs, or of the whole job once it has ended.
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
	// RateBytesPerSecond is 0 while it is not known; ETASeconds is null then.
	RateBytesPerSecond int64    `json:"rate_bytes_per_second"`
	ETASeconds         *float64 `json:"eta_seconds"`
	// Message is what it does or waits for now.
	Message string `json:"message,omitempty"`
	// Result is what it achieved; Code, Cause and Action are why it failed, and what to do.
	Result string `json:"result,omitempty"`
	Code   Code   `json:"code,omitempty"`
	Cause  string `json:"cause,omitempty"`
	Action string `json:"action,omitempty"`
}

// JobStep is one part of a job.
type JobStep struct {
	Name    string    `json:"name"`
	State   JobState  `json:"state"`
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended,omitzero"`
}

// Over reports whether the job has ended.
func (j Job) Over() bool { return j.State != JobRunning && j.State != JobWaiting }

// Step is the step that runs, "" if none does.
func (j Job) Step() string {
	for _, s := range j.Steps {
		if s.State == JobRunning {
			return s.Name
		}
	}
	return ""
}

// Jobs is what `jobs --json` prints: what runs first, then the newest first.
type Jobs struct {
	Jobs []Job `json:"jobs"`
}

// JobRequest asks the appliance to verify or to export in the background.
type JobRequest struct {
	Kind JobKind `json:"kind"`
	VM   string  `json:"vm"`
	Disk string  `json:"disk,omitempty"`
	// Point is latest, an id or a time; "" is latest.
	Point string `json:"point,omitempty"`
	// Output, Format and Force are export's.
	Output string `json:"output,omitempty"`
	Format string `json:"format,omitempty"`
	Force  bool   `json:"force,omitempty"`
}

// Watcher is the part of Backend that looks at long work and at what it needs.
type Watcher interface {
	// Jobs lists the jobs of one VM, or all for "".
	Jobs(ctx context.Context, vm string) (Jobs, error)
	// Job returns one job. CodeNotFound if there is none of that id, or no more.
	Job(ctx context.Context, id string) (Job, error)
	// WaitJob returns the job when it has ended, however it did.
	WaitJob(ctx context.Context, id string, progress func(Progress)) (Job, error)
	// StartJob begins a verification or an export that goes on when the caller has gone.
	StartJob(ctx context.Context, req JobRequest) (Job, error)
	// Preflight checks every prerequisite of one VM, or of all for "".
	Preflight(ctx context.Context, vm string, progress func(Progress)) (Preflight, error)
}

// Normal returns j with every list that JSON must show as [] made non-nil and every time in UTC.
func (j Job) Normal() Job {
	j.Started, j.Ended = j.Started.UTC(), utc(j.Ended)
	j.Steps = append([]JobStep{}, j.Steps...)
	for i := range j.Steps {
		j.Steps[i].Started, j.Steps[i].Ended = utc(j.Steps[i].Started), utc(j.Steps[i].Ended)
	}
	return j
}

// Normal is every job's.
func (j Jobs) Normal() Jobs {
	j.Jobs = append([]Job{}, j.Jobs...)
	for i := range j.Jobs {
		j.Jobs[i] = j.Jobs[i].Normal()
	}
	return j
}

// utc leaves the zero time what it is, so that omitzero finds it.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.UTC()
}

const (
	pathJobs      = "/v1/jobs"
	pathJob       = "/v1/job"
	pathJobWait   = "/v1/job/wait"
	pathJobStart  = "/v1/job/start"
	pathPreflight = "/v1/preflight"
)

// handleWatcher adds the routes of a Watcher.
func handleWatcher(mux *http.ServeMux, w Watcher) {
	mux.HandleFunc("GET "+pathJobs, func(out http.ResponseWriter, r *http.Request) {
		jobs, err := w.Jobs(r.Context(), r.URL.Query().Get("vm"))
		answer(out, jobs.Normal(), err)
	})
	mux.HandleFunc("GET "+pathJob, func(out http.ResponseWriter, r *http.Request) {
		job, err := w.Job(r.Context(), r.URL.Query().Get("id"))
		answer(out, job.Normal(), err)
	})
	mux.HandleFunc("POST "+pathJobWait, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		job, err := w.WaitJob(ctx, q.ID, s.progress)
		return job.Normal(), err
	}))
	mux.HandleFunc("POST "+pathJobStart, streamed(func(ctx context.Context, q request, _ *stream) (any, error) {
		job, err := w.StartJob(ctx, q.Job)
		return job.Normal(), err
	}))
	mux.HandleFunc("POST "+pathPreflight, streamed(func(ctx context.Context, q request, s *stream) (any, error) {
		p, err := w.Preflight(ctx, q.VM, s.progress)
		return p.Normal(), err
	}))
}

// Jobs is Watcher's.
func (c *Client) Jobs(ctx context.Context, vm string) (j Jobs, err error) {
	err = c.get(ctx, pathJobs, url.Values{"vm": {vm}}, &j)
	return j, err
}

// Job is Watcher's.
func (c *Client) Job(ctx context.Context, id string) (j Job, err error) {
	err = c.get(ctx, pathJob, url.Values{"id": {id}}, &j)
	return j, err
}

// WaitJob is Watcher's. progress may be nil.
func (c *Client) WaitJob(ctx context.Context, id string, progress func(Progress)) (j Job, err error) {
	err = c.stream(ctx, pathJobWait, request{ID: id}, sinks{progress: progress}, &j)
	return j, err
}

// StartJob is Watcher's.
func (c *Client) StartJob(ctx context.Context, req JobRequest) (j Job, err error) {
	err = c.stream(ctx, pathJobStart, request{Job: req}, sinks{}, &j)
	return j, err
}

// Preflight is Watcher's. progress may be nil.
func (c *Client) Preflight(ctx context.Context, vm string, progress func(Progress)) (p Preflight, err error) {
	err = c.stream(ctx, pathPreflight, request{VM: vm}, sinks{progress: progress}, &p)
	return p, err
}
