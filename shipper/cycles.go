package shipper

import (
	"context"
	"slices"
	"time"
)

// CycleTime is one cycle of replication: an epoch from its seal to its point.
type CycleTime struct {
	Epoch     uint64
	SealedAt  time.Time
	DurableAt time.Time // zero: it is no point, or none yet
	Open      bool      // it never will be
}

// maxCycles bounds what is remembered: an hour at the shortest interval, twice.
const maxCycles = 1440

// drain waits until every write that was counted in before the seal has been answered.
func (v *VM) drain(ctx context.Context, e Epoch) error {
	begin := time.Now()
	err := e.Wait(ctx)
	if observe := v.opts.Observer.Drain; observe != nil && err == nil {
		observe(time.Since(begin))
	}
	return err
}

// noteSeal remembers the newest seal.
func (v *VM) noteSeal(epoch uint64, at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.lastSeal = at
	if n := len(v.mu.cycles); n >= maxCycles {
		v.mu.cycles = slices.Clone(v.mu.cycles[n-maxCycles/2:])
	}
	v.mu.cycles = append(v.mu.cycles, CycleTime{Epoch: epoch, SealedAt: at})
}

// dropSeal forgets the cycle of an epoch that was merged back before it was spooled.
func (v *VM) dropSeal(epoch uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.cycles = slices.DeleteFunc(v.mu.cycles, func(c CycleTime) bool { return c.Epoch == epoch })
}

// noteOpenLocked says of a cycle that it makes no point.
func (v *VM) noteOpenLocked(epoch uint64) {
	for i := range v.mu.cycles {
		if v.mu.cycles[i].Epoch == epoch {
			v.mu.cycles[i].Open = true
		}
	}
}

// Sent is what the target took of epochs since the start, in bytes as stored.
func (v *VM) Sent() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.sentBytes
}

// noteShipped keeps what the newest cycle was, and when it became durable.
func (v *VM) noteShipped(c Cycle) {
	if observe := v.opts.Observer.Point; observe != nil && c.RecordedAfter > 0 {
		observe(c.RecordedAfter)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.lastCycle = c
	v.mu.sentBytes += c.StoredBytes
	if !c.Closed {
		return
	}
	i := slices.IndexFunc(v.mu.cycles, func(have CycleTime) bool { return have.Epoch == c.Epoch })
	if i >= 0 {
		v.mu.cycles[i].DurableAt = c.SealedAt.Add(c.RecordedAfter)
	}
}
