package appliance

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/appliance/cli"
	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// StartJob implements control.Backend.
func (a *Appliance) StartJob(ctx context.Context, req control.JobRequest) (control.Job, error) {
	if err := checkRequest(req); err != nil {
		return control.Job{}, err
	}
	if a.jobs.running(req.Kind, req.VM, req.Disk) != nil {
		return control.Job{}, control.Refused("job-running", "wait for it with: vhdrelay jobs ID --wait", "VM %s has a job %s that runs already", req.VM, req.Kind)
	}
	j := a.jobs.begin(jobRecord{Job: control.Job{Kind: req.Kind, VM: req.VM, Disk: req.Disk}, Request: &req}, []string{string(req.Kind)}, nil)
	select {
	case a.work <- j:
	case <-ctx.Done(): // noted, so the next start runs it
	}
	return a.Job(ctx, j.durable().ID)
}

func checkRequest(req control.JobRequest) error {
	usage := func(format string, args ...any) error {
		return &control.Error{Code: control.CodeUsage, Message: fmt.Sprintf(format, args...), Exit: control.ExitUsage}
	}
	if req.Point != "" {
		if _, err := cli.ParsePoint(req.Point); err != nil {
			return usage("%v", err)
		}
	}
	switch {
	case req.Kind == control.JobVerify:
	case req.Kind != control.JobExport:
		return usage("a job of kind %q cannot be asked for", req.Kind)
	case !filepath.IsAbs(req.Output):
		return usage("the output of an export in the background must be an absolute path, not %q", req.Output)
	}
	return nil
}

// background runs verifications and exports until ctx ends, those first that an earlier process did not finish.
func (a *Appliance) background(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, j := range a.jobs.unfinished() {
		wg.Go(func() { a.perform(ctx, j) })
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case j := <-a.work:
			wg.Go(func() { a.perform(ctx, j) })
		}
	}
}

// unfinished are the jobs that only this package works on.
func (t *jobs) unfinished() []*job {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []*job
	for _, j := range t.mu.all {
		if j.record.Request != nil && !j.record.Over() {
			all = append(all, j)
		}
	}
	return all
}

// perform does what a job was asked for. A stop leaves it running in its record: the next start does it again,
// and an export goes on where it was.
func (a *Appliance) perform(ctx context.Context, j *job) {
	var now atomic.Pointer[control.Progress]
	now.Store(&control.Progress{})
	j.follow(func() jobProgress {
		p := now.Load()
		return jobProgress{done: p.Done, total: p.Total, message: p.Stage}
	})
	result, err := a.answer(ctx, *j.durable().Request, func(p control.Progress) { now.Store(&p) })
	switch {
	case ctx.Err() != nil:
	case err != nil:
		j.end(control.JobFailed, result, err)
	default:
		j.end(control.JobDone, result, nil)
	}
}

// answer is the work itself.
func (a *Appliance) answer(ctx context.Context, req control.JobRequest, progress func(control.Progress)) (string, error) {
	spec := cli.PointSpec{}
	if req.Point != "" {
		var err error
		if spec, err = cli.ParsePoint(req.Point); err != nil {
			return "", err
		}
	}
	target := a.config().Target
	if req.Kind == control.JobVerify {
		v, err := Verify(ctx, target, cli.VerifyRequest{VM: req.VM, Disk: req.Disk, Point: spec}, progress)
		matching := 0
		for _, d := range v.Disks {
			if d.Match {
				matching++
			}
		}
		return fmt.Sprintf("point %s: %d of %d disks match their CRC-64", v.Point, matching, len(v.Disks)), err
	}
	e, err := Export(ctx, target, cli.ExportRequest{VM: req.VM, Disk: req.Disk, Point: spec, Output: req.Output, Format: req.Format, Force: req.Force}, progress)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("point %s: %d disks below %s", e.Point, len(e.Files), req.Output), nil
}
