package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func someJobs() []control.Job {
	eta := 90.0
	return []control.Job{
		{ID: "7", Kind: control.JobProtect, VM: "new01", State: control.JobRunning, Started: now.Add(-time.Minute), DoneBytes: 1 << 30, TotalBytes: 4 << 30,
			RateBytesPerSecond: 34 << 20, ETASeconds: &eta, Steps: []control.JobStep{
				{Name: "prerequisites", State: control.JobDone, Started: now.Add(-time.Minute), Ended: now.Add(-58 * time.Second)},
				{Name: "initial replication", State: control.JobRunning, Started: now.Add(-58 * time.Second)},
				{Name: "finalize", State: control.JobWaiting}}},
		{ID: "6", Kind: control.JobExport, VM: "web01", Disk: "os.vhd", State: control.JobFailed, Started: now.Add(-2 * time.Hour), Ended: now.Add(-time.Hour),
			Code: "output-exists", Cause: "os.vhd exists", Action: "choose another output, or overwrite it with --force",
			Steps: []control.JobStep{{Name: "export", State: control.JobFailed, Started: now.Add(-2 * time.Hour), Ended: now.Add(-time.Hour)}}},
		{ID: "5", Kind: control.JobResync, VM: "web01", State: control.JobDone, Reason: "unclean stop", Started: now.Add(-3 * time.Hour), Ended: now.Add(-3*time.Hour + 2*time.Second),
			Result: "8388608 bytes compared, 4096 found different, 1234 sent with what was written meanwhile"},
	}
}

func (b *backend) Jobs(_ context.Context, vm string) (control.Jobs, error) {
	var jobs control.Jobs
	for _, j := range someJobs() {
		if vm == "" || j.VM == vm {
			jobs.Jobs = append(jobs.Jobs, j)
		}
	}
	return jobs, nil
}

func (b *backend) Job(_ context.Context, id string) (control.Job, error) {
	for _, j := range someJobs() {
		if j.ID == id {
			return j, nil
		}
	}
	return control.Job{}, control.NotFound("list them with: vhdrelay jobs", "there is no job %q", id)
}

func (b *backend) WaitJob(ctx context.Context, id string, progress func(control.Progress)) (control.Job, error) {
	j, err := b.Job(ctx, id)
	if err == nil && !j.Over() {
		progress(control.Progress{Stage: "job 7, initial replication", Item: j.VM, Done: j.DoneBytes, Total: j.TotalBytes})
		j.State, j.Ended, j.Result, j.ETASeconds = control.JobDone, now, "point 1-1 is readable", nil
	}
	return j, err
}

func (b *backend) StartJob(_ context.Context, req control.JobRequest) (control.Job, error) {
	if req.VM == "busy" {
		return control.Job{}, control.Refused("job-running", "wait for it", "it runs already")
	}
	return control.Job{ID: "8", Kind: req.Kind, VM: req.VM, Disk: req.Disk, State: control.JobRunning, Started: now, Reason: req.Output}, nil
}

func (b *backend) Preflight(_ context.Context, vm string, progress func(control.Progress)) (control.Preflight, error) {
	progress(control.Progress{Stage: "checking the host"})
	return somePreflight(vm == "bad"), nil
}

func somePreflight(bad bool) control.Preflight {
	seconds := 12.5
	p := control.Preflight{Checks: []control.Check{
		{Code: "kernel", Result: control.CheckPass, Message: "6.18.0"},
		{Code: "state-disk", Result: control.CheckWarn, Message: "on the file system of store main", Action: "put state_dir on a disk of its own"},
		{Code: "disk", Result: control.CheckPass, VM: "web01", Disk: "os.vhd", Message: "vhd-fixed, 1.0 GiB"},
	}, Moves: []control.Move{{VM: "web01", Bytes: 200 << 20, VirtualBytes: 1 << 30, RateBytesPerSecond: 16 << 20, Seconds: &seconds}}}
	if bad {
		p.Checks = append(p.Checks, control.Check{Code: "target", Result: control.CheckFail, Message: "cannot write: 403", Action: "renew the SAS"})
	}
	return p
}

func TestJobs(t *testing.T) {
	r := newRig(t)
	r.serve(t)
	golden(t, "jobs", r.session("jobs", "jobs --vm new01", "jobs --vm none", "jobs 7", "jobs 6", "jobs 7 --wait", "jobs 6 --wait", "jobs 99", "jobs --wait",
		"verify web01/os.vhd --background", "export web01 --output /srv/out --background --point 1-9", "verify busy --background",
		"verify web01 --background --target dir:///x"))
}

func TestJobsJSON(t *testing.T) {
	r := newRig(t)
	r.serve(t)
	var jobs control.Jobs
	if _, exit := r.run("jobs", "--json"); exit != control.ExitDone || json.Unmarshal(r.out.Bytes(), &jobs) != nil || len(jobs.Jobs) != 3 || jobs.Jobs[0].Steps[1].State != control.JobRunning {
		t.Errorf("exit %d: %s", exit, r.out.String())
	}
	var job control.Job
	if _, exit := r.run("export", "web01", "--output", "out", "--background", "--json"); exit != control.ExitDone || json.Unmarshal(r.out.Bytes(), &job) != nil || !strings.HasPrefix(job.Reason, "/") {
		t.Errorf("a relative output must be made absolute here: exit %d: %s", exit, r.out.String())
	}
}

// The answer is the same whether an appliance checks or the command itself.
func TestPreflight(t *testing.T) {
	r := newRig(t)
	r.deps.Preflight = func(_ context.Context, c *config.Config, vm string, progress func(control.Progress)) (control.Preflight, error) {
		progress(control.Progress{Stage: "checking the host"})
		if vm == "none" {
			return control.Preflight{}, control.NotFound("list the stores", "there is no image of a VM %q", vm)
		}
		return somePreflight(vm == "bad"), nil
	}
	alone := r.session("preflight", "preflight bad", "preflight none")
	golden(t, "preflight", alone)
	r.serve(t)
	if served := r.session("preflight", "preflight bad"); !strings.HasPrefix(alone, served) {
		t.Errorf("with an appliance: %s", served)
	}
	var p control.Preflight
	if _, exit := r.run("preflight", "bad", "--json"); exit != control.ExitFailed || json.Unmarshal(r.out.Bytes(), &p) != nil || p.Worst() != control.CheckFail {
		t.Errorf("exit %d: %s", exit, r.out.String())
	}
}
