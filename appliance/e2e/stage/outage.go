package stage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// awayRatio is what a write's p99 may grow by while the target is away.
const awayRatio = 1.2

// Outage takes the target away for five minutes under load: connections hang, are refused, are reset.
func Outage(ctx context.Context, e *Env, r *Report) error {
	return outage(ctx, e, r, e.scale(2*time.Minute), e.scale(5*time.Minute))
}

func outage(ctx context.Context, e *Env, r *Report, up, away time.Duration) (err error) {
	g, target, end, err := setup(ctx, e, r, "outage", standardDisks, rig.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	o := &outages{guest: g, target: target, quota: sizeOf(g.disks) / 2}
	g.load.Rate = 10_000_000
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	if err := errors.Join(o.window(ctx, rig.Pass, up), o.away(ctx, away), o.back(ctx), o.window(ctx, rig.Pass, up)); err != nil {
		return err
	}
	r.Check(g.stop(), "the load of an outage")
	o.judge(r)
	r.Check(g.atRest(ctx), "at rest")
	return g.checkAll(ctx, mostPoints)
}

// outages changes the fault and samples latencies and the spool.
type outages struct {
	*guest
	target        *rig.Target
	quota         int64 // bytes of spool the appliance may use
	up, down      []time.Duration
	spooled, used int64 // the most that was seen, as status says and as the file system does
	catchUp       time.Duration
}

// away is one outage in three shapes.
func (o *outages) away(ctx context.Context, d time.Duration) error {
	for _, f := range []rig.Fault{rig.Hang, rig.Refuse, rig.Reset} {
		if err := o.window(ctx, f, d/3); err != nil {
			return err
		}
	}
	return nil
}

// window lets the load run with a fault and notes what its writes took.
func (o *outages) window(ctx context.Context, f rig.Fault, d time.Duration) error {
	o.env.say("fault %d for %v", f, d)
	o.target.Proxy.Set(f)
	from := time.Now()
	for time.Since(from) < d {
		if err := o.pause(ctx, min(2*time.Second, d)); err != nil {
			return fmt.Errorf("the guest got an error, fault %d: %w", f, err)
		}
		if err := o.sampleSpool(ctx); err != nil {
			return err
		}
	}
	took := o.log.Took(from, time.Now())
	if f == rig.Pass {
		o.up = append(o.up, took...)
	} else {
		o.down = append(o.down, took...)
	}
	return nil
}

func (o *outages) sampleSpool(ctx context.Context) error {
	vm, err := o.rig.VM(ctx, o.vm)
	if err != nil {
		return err
	}
	used, err := rig.Usage(o.rig.State)
	o.spooled, o.used = max(o.spooled, vm.SpooledBytes), max(o.used, used)
	return err
}

// back gives the target back and waits, under load, until nothing of the outage is left to see.
func (o *outages) back(ctx context.Context) error {
	o.target.Proxy.Set(rig.Pass)
	began := time.Now()
	err := o.await(ctx, 5*time.Minute, "the VM to catch up", func(vm rig.VM) bool {
		return vm.LastPoint != nil && vm.LastPoint.Time.After(began) && vm.State == "Replicating" &&
			vm.DurableRPOSeconds != nil && *vm.DurableRPOSeconds < 3*vm.IntervalSeconds
	})
	o.catchUp = time.Since(began)
	o.env.say("caught up after %v", o.catchUp.Round(time.Millisecond))
	return err
}

// stateSlack is what the state directory holds besides the spool: the journal's database, checksum tables.
const stateSlack = 128 << 20

func (o *outages) judge(r *Report) {
	up, down := quantile(o.up, 0.99), quantile(o.down, 0.99)
	ratio := float64(down) / float64(max(up, 1))
	r.Figure("write p99", "away %v, up %v, ratio %.2f (at most %.1f)", down, up, ratio, awayRatio)
	r.Figure("write max", "away %v, up %v", quantile(o.down, 1), quantile(o.up, 1))
	if ratio > awayRatio {
		r.Fail("the p99 of a guest write is %v with the target away and %v with it", down, up)
	}
	o.judgeSpool(r)
}

func (o *outages) judgeSpool(r *Report) {
	r.Figure("spool", "most %d MiB as status says, quota %d MiB; state directory %d MiB", o.spooled>>20, o.quota>>20, o.used>>20)
	r.Figure("caught up", "after %v", o.catchUp.Round(100*time.Millisecond))
	if o.spooled > o.quota {
		r.Fail("%d bytes spooled, the quota is %d", o.spooled, o.quota)
	}
	if o.used > o.quota+stateSlack {
		r.Fail("the state directory takes %d bytes, the quota is %d", o.used, o.quota)
	}
}

// quantile of an unsorted list, 0 of an empty one.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return list[int(float64(len(list)-1)*q)]
}

// quotaRate is what the guest writes a second, quotaShare the part of it that the spool holds.
const (
	quotaRate  = 5_000_000
	quotaShare = 10
)

// Quota takes the target away with a spool that holds a tenth of what is written meanwhile, and less than what differs
// in the end: nothing is compressed.
func Quota(ctx context.Context, e *Env, r *Report) error {
	if e.Short {
		return quota(ctx, e, r, 36*time.Second) // the least the configuration takes for a spool is 16 MiB
	}
	return quota(ctx, e, r, 2*time.Minute)
}

func quota(ctx context.Context, e *Env, r *Report, away time.Duration) (err error) {
	limit := int64(quotaRate * away.Seconds() / quotaShare)
	g, target, end, err := setup(ctx, e, r, "quota", standardDisks, rig.Options{SpoolLimit: limit, Compression: `"off"`})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.stop(), end()) }()
	g.load.Rate = quotaRate
	g.start(ctx)
	if err := g.replicated(ctx); err != nil {
		return err
	}
	before := g.log.Totals().Bytes
	o := &outages{guest: g, target: target, quota: limit}
	if err := errors.Join(o.away(ctx, away), o.back(ctx)); err != nil {
		return err
	}
	r.Figure("written", "%d MiB while away, spool limit %d MiB", (g.log.Totals().Bytes-before)>>20, limit>>20)
	if err := o.window(ctx, rig.Pass, e.scale(time.Minute)); err != nil {
		return err
	}
	r.Check(g.stop(), "the load of a small quota")
	o.judgeSpool(r)
	r.Check(g.atRest(ctx), "at rest")
	return g.checkAll(ctx, mostPoints)
}
