package control

import (
	"errors"
	"testing"
	"time"
)

func TestJobsCrossTheSocket(t *testing.T) {
	here := time.FixedZone("here", 3600)
	job := Job{ID: "4", Kind: JobResync, VM: "web01", State: JobRunning, Started: time.Date(2026, 1, 1, 1, 0, 0, 0, here)}
	client, _ := serve(t, &fake{
		jobs: func(vm string) (Jobs, error) { return Jobs{Jobs: []Job{job}}, nil },
		job: func(id string, progress func(Progress)) (Job, error) {
			if id != "4" {
				return Job{}, NotFound("", "no job %s", id)
			}
			if progress != nil {
				progress(Progress{Stage: "comparing", Done: 1, Total: 2})
				done := job
				done.State, done.Ended = JobDone, job.Started.Add(time.Hour)
				return done, nil
			}
			return job, nil
		},
		startJob: func(req JobRequest) (Job, error) {
			return Job{ID: "5", Kind: req.Kind, VM: req.VM, Disk: req.Point}, nil
		},
		preflight: func(vm string, _ func(Progress)) (Preflight, error) { return Preflight{}, nil },
	})
	ctx := deadline(t)
	all, err := client.Jobs(ctx, "web01")
	if err != nil || len(all.Jobs) != 1 || all.Jobs[0].Started.Location() != time.UTC || !all.Jobs[0].Ended.IsZero() || all.Jobs[0].Steps == nil {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := client.Job(ctx, "9"); !errors.Is(err, &Error{Code: CodeNotFound}) {
		t.Errorf("%v", err)
	}
	var seen []Progress
	done, err := client.WaitJob(ctx, "4", func(p Progress) { seen = append(seen, p) })
	if err != nil || !done.Over() || len(seen) != 1 || !done.Ended.Equal(job.Started.Add(time.Hour)) {
		t.Errorf("%+v, %v, %v", done, seen, err)
	}
	if one, err := client.Job(ctx, "4"); err != nil || one.Over() {
		t.Errorf("%+v, %v", one, err)
	}
	begun, err := client.StartJob(ctx, JobRequest{Kind: JobVerify, VM: "a", Point: "1-2"})
	if err != nil || begun.ID != "5" || begun.Kind != JobVerify || begun.Disk != "1-2" {
		t.Errorf("%+v, %v", begun, err)
	}
	if p, err := client.Preflight(ctx, "", nil); err != nil || p.Checks == nil || p.Moves == nil || p.Worst() != CheckPass {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestWorstCheck(t *testing.T) {
	for want, checks := range map[CheckResult][]CheckResult{
		CheckPass: {CheckPass, CheckPass}, CheckWarn: {CheckPass, CheckWarn, CheckPass}, CheckFail: {CheckWarn, CheckFail, CheckWarn},
	} {
		var p Preflight
		for _, c := range checks {
			p.Checks = append(p.Checks, Check{Result: c})
		}
		if got := p.Worst(); got != want {
			t.Errorf("%v: %s", checks, got)
		}
	}
}
