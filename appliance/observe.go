package appliance

import (
	"context"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/metrics"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// listenRetry is how long the metrics wait for an address that another process has.
const listenRetry = time.Minute

// listenMetrics answers Prometheus until ctx ends. An address that is not to be had is said once, and tried again.
func (a *Appliance) listenMetrics(ctx context.Context) error {
	address := a.config().MetricsListen
	if address == "" {
		return nil
	}
	for said := false; ; said = true {
		err := a.metrics.Serve(ctx, address)
		if err == nil {
			return nil
		}
		if !said {
			a.log.Warn("metrics cannot be served; replication goes on, and it is tried again", "code", "metrics-listen", "address", address, "cause", err,
				"action", "free the address, or set metrics_listen to another")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(listenRetry):
		}
	}
}

// facts are what a scrape sees.
func (a *Appliance) facts() metrics.Facts {
	status, _ := a.Status(context.Background(), "") // fails only for a VM that there is not
	f := metrics.Facts{Status: status, Jobs: a.jobs.list(""), Limit: a.bandwidth(), Quotas: map[string]int64{}}
	for _, m := range a.machines() {
		f.Quotas[m.name] = m.quota()
	}
	s := a.journal.Stats()
	f.Journal = metrics.Journal{
		Commits: int64(s.Commits), Activations: int64(s.Activations), Deactivations: int64(s.Deactivations), Evictions: int64(s.Evictions),
		SavedBytes: int64(s.SavedBytes), ActiveRegions: int64(s.Active), Failing: s.Failing,
	}
	return f
}

// openMeasured is the target as the pipelines see it.
func (a *Appliance) openMeasured(ctx context.Context) (target.Target, error) {
	t, err := a.openTarget(ctx)
	if err != nil {
		return nil, err
	}
	return a.metrics.Target(t), nil
}

// observer tells metrics and jobs of what the pipeline does.
func (m *machine) observer() shipper.Observer {
	return shipper.Observer{
		Stage: func(stage string, took time.Duration, err error) { m.app.metrics.Stage(m.name, stage, took, err) },
		Retry: m.app.metrics.Retry,
		Point: func(took time.Duration) { m.app.metrics.Point(m.name, took) },
		Drain: func(took time.Duration) { m.app.metrics.Drain(m.name, took) },
		Pruned: func(points, segments, snapshots int) {
			j := m.app.jobs.begin(jobRecord{Job: control.Job{Kind: control.JobPrune, VM: m.name}}, []string{string(control.JobPrune)}, nil)
			j.end(control.JobDone, fmt.Sprintf("%d points, %d segments and %d snapshots deleted", points, segments, snapshots), nil)
		},
	}
}
