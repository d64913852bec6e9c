package retry

import (
	"context"
	"sync"
	"time"
)

// Defaults of a Probe. Two seconds between two questions and no waiting for the
// answer of the one before it: an endpoint that returns is noticed within about
// that, also when questions asked meanwhile hang.
const (
	DefaultProbeInterval = 2 * time.Second
	DefaultProbePatience = 6 * time.Second
)

// Probe asks an endpoint, once for everybody who waits for it, whether it answers
// again. It asks only while somebody waits.
type Probe struct {
	ask   func(context.Context) bool
	every time.Duration
	// patience is how long a question may take. Several can be under way.
	patience time.Duration

	mu struct {
		sync.Mutex // never held over I/O
		waiting    map[chan bool]struct{}
		stop       context.CancelFunc // of the asking, nil while nobody waits
	}
}

// NewProbe makes a probe of what ask asks: something cheap, true if the endpoint
// answered as it should. Zero durations are the defaults.
func NewProbe(ask func(context.Context) bool, every, patience time.Duration) *Probe {
	if every == 0 {
		every = DefaultProbeInterval
	}
	if patience == 0 {
		patience = DefaultProbePatience
	}
	p := &Probe{ask: ask, every: every, patience: patience}
	p.mu.waiting = map[chan bool]struct{}{}
	return p
}

// Await returns true when the endpoint answers after it was away, and false when
// ctx ends first. away says that it is away now; else that has to be seen first, for
// an endpoint that answers probes while it refuses the work has not returned.
func (p *Probe) Await(ctx context.Context, away bool) bool {
	answers := p.join()
	defer p.leave(answers)
	for {
		select {
		case <-ctx.Done():
			return false
		case up := <-answers:
			if up && away {
				return true
			}
			away = away || !up
		}
	}
}

// join begins the asking for the first who waits.
func (p *Probe) join() chan bool {
	answers := make(chan bool, 4)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.waiting[answers] = struct{}{}
	if p.mu.stop == nil {
		ctx, stop := context.WithCancel(context.Background())
		p.mu.stop = stop
		go p.run(ctx)
	}
	return answers
}

// leave ends the asking with the last.
func (p *Probe) leave(answers chan bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mu.waiting, answers)
	if len(p.mu.waiting) == 0 {
		p.mu.stop()
		p.mu.stop = nil
	}
}

func (p *Probe) run(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			go p.question(ctx)
		}
	}
}

func (p *Probe) question(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	up := p.ask(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	for answers := range p.mu.waiting {
		select {
		case answers <- up:
		default: // four answers wait to be read already
		}
	}
}
