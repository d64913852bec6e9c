package appliance

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// facts are what the health of the VM is a function of, now.
func (m *machine) facts(p shipper.Status, r control.Resync, k mark, now time.Time) health.Facts {
	_, comparison := m.resync.failure()
	state, _ := m.life.State()
	f := health.Facts{
		VM: m.name, Now: now, Interval: m.replication().Interval, Paused: state == lifecycle.Paused,
		Troubles: troublesOf(p), Disks: disksOf(p), Foreign: m.store.unsupportedOf(m.name), Store: m.app.untracked(m.name),
		Pending: unshipped(p), SealsRest: p.RestsSince, Spooled: p.Spooled, Quota: p.Quota,
		CatchUp: p.CatchUp, Comparing: r.State == control.ResyncRunning, ComparisonPaused: r.State == control.ResyncPaused, Comparison: comparison, Journal: m.app.journal.Failing(),
	}
	if p.Quota < min(minSpool, m.spoolLimit()) {
		f.Scarce = m.app.config().StateDir
	}
	if !p.LastPoint.IsZero() {
		f.LastPoint = p.LastPointAt
	}
	if k.reason != "" {
		f.Marked = &health.Mark{Disk: k.disk, Reason: k.reason}
	}
	for _, c := range p.Cycles {
		f.Cycles = append(f.Cycles, health.Cycle{SealedAt: c.SealedAt, DurableAt: c.DurableAt, Open: c.Open})
	}
	f.Forecast = m.trend.predict(m.limits(p))
	return f
}

// unshipped is what changed and is not at the target, sealed or not.
func unshipped(p shipper.Status) (bytes int64) {
	for _, d := range p.Disks {
		bytes += d.Unshipped
	}
	return bytes
}

func troublesOf(p shipper.Status) []health.Trouble {
	var all []health.Trouble
	for _, t := range p.Troubles {
		class, code, cause, action := retry.Describe(t.Err)
		all = append(all, health.Trouble{Stage: t.Stage, Class: class, Code: code, Cause: cause, Action: action, Since: t.Since, NextTry: t.NextTry})
	}
	return all
}

// disksOf says of every disk what health asks; an image that is being written is not
// broken.
func disksOf(p shipper.Status) []health.Disk {
	var all []health.Disk
	for _, d := range p.Disks {
		hd := health.Disk{Name: d.Name, Foreign: !protectable(d), Complete: d.Stage == shipper.StageComplete}
		switch {
		case growing(d):
			hd.NotYet = d.Err
		case brokenChain(d):
			hd.Chain = d.Err
		case !hd.Foreign:
			hd.Err = d.Err
		}
		all = append(all, hd)
	}
	return all
}

// limits are what the VM must not reach: seals rest when a quarter of the quota is
// left, a disk is marked at the threshold of the config.
func (m *machine) limits(p shipper.Status) health.Limits {
	l := health.Limits{Spool: p.Quota - p.Quota/4, Disk: map[string]int64{}}
	for _, d := range p.Disks {
		l.Disk[d.Name] = int64(m.app.config().Resync.Threshold * float64(d.VirtualSize))
	}
	return l
}

// trend keeps samples of what grows and shrinks, for forecasts.
type trend struct {
	mu struct {
		sync.Mutex // never held over I/O
		samples    []health.Sample
	}
}

// How a trend is sampled: over five minutes, or three intervals if that is longer.
const (
	trendLength = 5 * time.Minute
	trendSteps  = 30
)

func trendOver(interval time.Duration) time.Duration { return max(trendLength, 3*interval) }

// sample takes the pipeline in, if its time has come.
func (t *trend) sample(p shipper.Status, interval time.Duration, now time.Time) {
	length := trendOver(interval)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := len(t.mu.samples); n > 0 && now.Sub(t.mu.samples[n-1].At) < length/trendSteps {
		return
	}
	s := health.Sample{At: now, Spooled: p.Spooled, In: p.SpooledBytes, Out: p.SentBytes, Changed: map[string]int64{}}
	for _, d := range p.Disks {
		if d.Stage == shipper.StageComplete {
			s.Changed[d.Name] = d.Unshipped
		}
	}
	t.mu.samples = append(t.mu.samples, s)
	t.mu.samples = slices.DeleteFunc(t.mu.samples, func(s health.Sample) bool { return now.Sub(s.At) > length })
}

func (t *trend) predict(l health.Limits) *health.Forecast {
	t.mu.Lock()
	defer t.mu.Unlock()
	return health.Predict(t.mu.samples, l)
}

// pacerStatus is what the account's pacer does; nil if the target never throttled.
func (a *Appliance) pacerStatus() *control.Pacer {
	s := a.pacer.State()
	if s.Refused == 0 {
		return nil
	}
	p := &control.Pacer{Limited: !math.IsInf(s.Rate, 1), Throttled: s.Refused, LastThrottled: s.LastCut.UTC()}
	if p.Limited {
		p.BytesPerSecond = int64(s.Rate)
	}
	return p
}
