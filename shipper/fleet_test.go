package shipper

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// narrow is a line of so many bytes a second that all targets behind it share, one
// put after the other.
type narrow struct {
	rate float64
	turn chan struct{} // holds the one who sends
}

func newNarrow(rate float64) *narrow {
	n := &narrow{rate: rate, turn: make(chan struct{}, 1)}
	n.turn <- struct{}{}
	return n
}

// behind is a target behind a narrow line.
type behind struct {
	target.Target
	line *narrow
}

func (b behind) PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g target.Guard) error {
	select {
	case <-b.line.turn:
	case <-ctx.Done():
		return target.Refused("PutPages", name, ctx.Err())
	}
	defer func() { b.line.turn <- struct{}{} }()
	retry.Sleep(ctx, time.Duration(float64(len(data))/b.line.rate*float64(time.Second)))
	return b.Target.PutPages(ctx, name, off, data, sum, g)
}

// fleet are VMs of one appliance on one line.
type fleet struct {
	t       *testing.T
	buffers *Buffers
	line    *narrow
	wg      sync.WaitGroup
}

// vm makes a VM with one disk. setup runs while the line is wide.
func (f *fleet) vm(size int, setup func(r *rig)) *rig {
	r := newRigOn(f.t, f.buffers, func(t target.Target) target.Target { return behind{t, f.line} }, newImage("disk.raw", size))
	rate := f.line.rate
	f.line.rate = 1 << 60
	setup(r)
	f.line.rate = rate
	return r
}

// settled has had its initial replication.
func settled(r *rig) {
	r.fill("disk.raw", 0, 64*kib, 1)
	r.must(r.cycle())
}

// changed waits for an apply.
func changed(r *rig) {
	settled(r)
	r.fill("disk.raw", 0, 8*mib, 9)
	r.must(r.run(r.vm.captureStep, r.vm.shipStep))
}

// full waits for its initial replication.
func full(r *rig) {
	r.fill("disk.raw", 0, 48*mib, 5)
	r.must(r.connect(context.Background()))
}

// every repeats a turn of a VM until the time is over.
func (f *fleet) every(ctx context.Context, pause time.Duration, turn func(ctx context.Context)) {
	f.wg.Go(func() {
		for ctx.Err() == nil {
			turn(ctx)
			retry.Sleep(ctx, pause)
		}
	})
}

// Twenty VMs on a line that takes a little more than their logs: 16 ship, two
// are in initial replication, two apply. All logs arrive in time, and what yields
// gets on all the while.
func TestTwentyVMsOnANarrowLineStarveNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const (
			interval = 30 * time.Second
			change   = 256 * kib
			length   = 20 * time.Minute
		)
		f := &fleet{t: t, buffers: NewBuffers(12 * target.MaxPut), line: newNarrow(16 * change / interval.Seconds() * 1.3)}
		var shipping, initial, applying []*rig
		for range 16 {
			shipping = append(shipping, f.vm(mib, settled))
		}
		for range 2 {
			applying = append(applying, f.vm(8*mib, changed))
			initial = append(initial, f.vm(48*mib, full))
		}
		f.buffers.line.mu.window = yieldStart // what it learned while the line was wide is not true any more
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		worst := make([]time.Duration, len(shipping))
		for i, r := range shipping {
			begin := time.Now()
			f.every(ctx, interval, func(ctx context.Context) {
				r.fill("disk.raw", 0, change, byte(begin.Second()+1)+byte(time.Since(begin)/interval))
				sealed := time.Now()
				if err := errors.Join(r.vm.captureStep(ctx), r.vm.shipStep(ctx)); err != nil && ctx.Err() == nil {
					t.Error(err)
				}
				if ctx.Err() == nil {
					worst[i] = max(worst[i], time.Since(sealed))
				}
			})
		}
		for i := range initial { // they end with ctx
			f.every(ctx, time.Second, func(ctx context.Context) { _ = initial[i].vm.initialStep(ctx) })
			f.every(ctx, time.Second, func(ctx context.Context) { _ = applying[i].vm.applyStep(ctx) })
		}
		f.wg.Wait()
		f.judge(worst, interval, initial, applying)
	})
}

func (f *fleet) judge(worst []time.Duration, interval time.Duration, initial, applying []*rig) {
	f.t.Helper()
	for i, took := range worst {
		if took == 0 || took > 2*interval {
			f.t.Errorf("VM %d: a point took %v", i, took)
		}
	}
	for i, r := range initial {
		if done := r.vm.Status().Disks[0].InitialDone; done < 4*mib {
			f.t.Errorf("initial replication %d: %d bytes in all the time", i, done)
		}
	}
	for i, r := range applying {
		if st := r.vm.state.get(); st.Applied != st.Recorded {
			f.t.Errorf("apply %d: at %s of %s", i, st.Applied, st.Recorded)
		}
	}
	f.t.Logf("slowest points: %v; initial replication: %d and %d KiB", worst, initial[0].vm.Status().Disks[0].InitialDone>>10, initial[1].vm.Status().Disks[0].InitialDone>>10)
}
