package resync

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of Pace.
const (
	DefaultGuestLatency = 5 * time.Millisecond // of a guest's write, that a comparison must not push it above
	DefaultFloor        = 2 << 20              // bytes a second that a comparison always gets, or it would never end

	paceStep  = 100 * time.Millisecond // between two looks at the guests
	paceStart = 64 << 20               // bytes a second that it falls back to when guests first suffer
	paceMost  = 8 << 30                // bytes a second; from there on there is no limit
)

// Pace is how comparisons yield to guests: it sees how long their writes take, and
// lets comparisons read more slowly while that is above a target. Guests that are
// idle, or fast enough, cost a comparison nothing.
type Pace struct {
	latency time.Duration
	floor   float64
	active  atomic.Int32 // comparisons under way

	count, nanos atomic.Int64 // of the guests' writes since the last look

	mu struct {
		sync.Mutex         // never held while waiting
		rate       float64 // bytes a second; 0: no limit
		next       time.Time
		looked     time.Time
	}
}

// NewPace returns one for a disk that guests and comparisons share. Zero values are
// the defaults.
func NewPace(latency time.Duration, floor int64) *Pace {
	p := &Pace{latency: latency, floor: float64(floor)}
	if p.latency == 0 {
		p.latency = DefaultGuestLatency
	}
	if p.floor == 0 {
		p.floor = DefaultFloor
	}
	return p
}

// Begin says that a comparison is under way until the returned function is called;
// otherwise nobody need observe anything.
func (p *Pace) Begin() (end func()) {
	p.active.Add(1)
	return func() { p.active.Add(-1) }
}

// Active tells whether a comparison is under way.
func (p *Pace) Active() bool { return p.active.Load() > 0 }

// Observe says how long a guest's write took.
func (p *Pace) Observe(d time.Duration) {
	p.count.Add(1)
	p.nanos.Add(int64(d))
}

// Rate is what comparisons may read now, in bytes a second; 0: as much as they can.
func (p *Pace) Rate() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return int64(p.mu.rate)
}

// Yield is Options.Yield: it returns when n more bytes may be read.
func (p *Pace) Yield(ctx context.Context, n int) error {
	wait := p.reserve(time.Now(), n)
	if wait <= 0 {
		return nil
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func (p *Pace) reserve(now time.Time, n int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.mu.looked) >= paceStep {
		p.mu.looked = now
		p.mu.rate = p.adjusted(p.mu.rate)
	}
	if p.mu.rate == 0 {
		p.mu.next = now
		return 0
	}
	if p.mu.next.Before(now) {
		p.mu.next = now
	}
	wait := p.mu.next.Sub(now)
	p.mu.next = p.mu.next.Add(time.Duration(float64(n) / p.mu.rate * float64(time.Second)))
	return wait
}

// adjusted is the next rate: down by a third while guests suffer, up by a quarter
// while they do not.
func (p *Pace) adjusted(rate float64) float64 {
	count, nanos := p.count.Swap(0), p.nanos.Swap(0)
	suffering := count > 0 && time.Duration(nanos/count) > p.latency
	switch {
	case suffering && rate == 0:
		return max(p.floor, paceStart)
	case suffering:
		return max(p.floor, rate*2/3)
	case rate == 0, count == 0, rate > paceMost:
		return 0
	}
	return rate * 5 / 4
}
