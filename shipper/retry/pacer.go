package retry

import (
	"context"
	"math"
	"sync"
	"time"
)

// Parameters of a Pacer. The shape is AzCopy's page blob pacer (AZURE.md §5);
// the minimum cost is where the 500 requests/s and the 60 MiB/s of one page blob
// meet (AZURE.md §0.3), so that one rate stands for both limits.
const (
	MinCost         = 128 << 10        // bytes a small request counts as
	BackOff         = 0.65             // factor at a 503
	BackOffInterval = 20 * time.Second // at most one factor in this time
	MinRate         = 1 << 20          // bytes a second; never slower
	MaxPause        = time.Minute      // longest Retry-After that is obeyed literally

	growthGap   = 0.10   // a second, of the gap below the last peak
	growthAbove = 0.015  // a second, beyond the peak
	growthNear  = 0.0015 // a second, within 5 % of the peak
	burst       = 100 * time.Millisecond
	forget      = 10 * time.Minute // without a 503: no limit again
)

// Pacer spreads the requests to one account. It sets no limit until the target
// throttles; then the rate is BackOff times what was really sent, and grows
// slowly, first towards the last peak, then beyond it. Safe for concurrent use.
type Pacer struct {
	// mu guards only arithmetic; nobody sleeps or does I/O under it.
	mu struct {
		sync.Mutex
		rate     float64   // bytes a second; +Inf: no limit
		peak     float64   // the rate at which the target last throttled
		next     time.Time // when the next request may start
		grown    time.Time // until when rate has been grown
		lastCut  time.Time
		refused  int64     // since the start
		sent     float64   // bytes let through since from
		from     time.Time // start of the current window of sent
		previous float64   // bytes a second of the window before
	}
}

// NewPacer returns a pacer without a limit yet.
func NewPacer() *Pacer {
	p := &Pacer{}
	p.mu.rate = math.Inf(1)
	return p
}

// Wait blocks until a request that moves n bytes may start. The error is ctx's.
func (p *Pacer) Wait(ctx context.Context, n int) error {
	wait := p.reserve(time.Now(), float64(max(n, MinCost)))
	if wait <= 0 {
		return ctx.Err()
	}
	if !Sleep(ctx, wait) {
		return ctx.Err()
	}
	return nil
}

// Throttled lowers the rate, at most once in BackOffInterval, and lets nothing
// start for retryAfter (0: not said), at most MaxPause.
func (p *Pacer) Throttled(retryAfter time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.refused++
	now := time.Now()
	if until := now.Add(min(retryAfter, MaxPause)); until.After(p.mu.next) {
		p.mu.next = until
	}
	if !p.mu.lastCut.IsZero() && now.Sub(p.mu.lastCut) < BackOffInterval {
		return
	}
	p.growLocked(now)
	p.mu.peak = min(p.mu.rate, p.observedLocked(now))
	p.mu.rate = max(BackOff*p.mu.peak, MinRate)
	p.mu.lastCut, p.mu.grown = now, now
}

// Rate is the present limit in bytes a second; +Inf when there is none.
func (p *Pacer) Rate() float64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.growLocked(time.Now())
	return p.mu.rate
}

// PacerState is what a pacer does now.
type PacerState struct {
	Rate    float64   // bytes a second; +Inf: no limit
	Refused int64     // how often the target throttled since the start
	LastCut time.Time // when that lowered the rate last; zero: never
}

// State is for the status.
func (p *Pacer) State() PacerState {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.growLocked(time.Now())
	return PacerState{Rate: p.mu.rate, Refused: p.mu.refused, LastCut: p.mu.lastCut}
}

// reserve books a slot for cost bytes and says how long to wait for it. A
// cancelled wait keeps its slot: that errs on the slow side, by one request.
func (p *Pacer) reserve(now time.Time, cost float64) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.growLocked(now)
	p.countLocked(now, cost)
	if earliest := now.Add(-burst); p.mu.next.Before(earliest) {
		p.mu.next = earliest
	}
	start := p.mu.next
	if !math.IsInf(p.mu.rate, 1) {
		p.mu.next = start.Add(time.Duration(cost / p.mu.rate * float64(time.Second)))
	}
	return start.Sub(now)
}

// countLocked keeps two windows of a second each, so that observedLocked knows
// what was sent in the last one to two seconds.
func (p *Pacer) countLocked(now time.Time, cost float64) {
	if age := now.Sub(p.mu.from); age >= time.Second {
		p.mu.previous = p.mu.sent / max(age.Seconds(), 1)
		p.mu.sent, p.mu.from = 0, now
	}
	p.mu.sent += cost
}

func (p *Pacer) observedLocked(now time.Time) float64 {
	current := p.mu.sent / max(now.Sub(p.mu.from).Seconds(), 1)
	return max(current, p.mu.previous, MinRate)
}

// growLocked applies the growth of the time since the last call, in steps of a
// second at most, so that the result hardly depends on how often it is called.
func (p *Pacer) growLocked(now time.Time) {
	if math.IsInf(p.mu.rate, 1) {
		return
	}
	if now.Sub(p.mu.lastCut) >= forget {
		p.mu.rate, p.mu.peak = math.Inf(1), 0
		return
	}
	for p.mu.grown.Before(now) {
		step := min(now.Sub(p.mu.grown), time.Second)
		p.mu.rate += p.growthLocked() * step.Seconds()
		p.mu.grown = p.mu.grown.Add(step)
	}
}

// growthLocked is the growth in bytes a second per second.
func (p *Pacer) growthLocked() float64 {
	rate, peak := p.mu.rate, p.mu.peak
	switch {
	case rate < 0.95*peak:
		return growthGap * (peak - rate)
	case rate < 1.05*peak:
		return growthNear * rate
	}
	return growthAbove * rate
}
