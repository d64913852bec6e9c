package appliance

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/time/rate"

	"github.com/vhdrelay/vhdrelay/appliance/config"
)

// reloads reads the config again at every SIGHUP, until ctx ends.
func (a *Appliance) reloads(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			a.reload()
		}
	}
}

// reload puts what can change live in force and names what cannot. A file that
// does not read leaves everything as it is.
func (a *Appliance) reload() {
	old := a.config()
	next, err := config.Load(old.Path)
	if err != nil {
		a.log.Error("config not reloaded; the old one stays in force", "path", old.Path, "code", "config-invalid", "cause", err, "action", "mend it, then: systemctl reload vhdrelay")
		return
	}
	inForce, restart := old.Reload(next)
	a.conf.Store(inForce)
	a.log.Info("config reloaded", "path", old.Path, "after_restart", restart)
}

// bandwidth keeps the rules of the config for everything the appliance sends.
type bandwidth struct {
	rule func() int64 // bytes a second now, 0: no limit

	mu struct {
		sync.Mutex // never held while waiting
		limiter    *rate.Limiter
		limit      int64
	}
}

// wait returns when n more bytes may be sent.
func (b *bandwidth) wait(ctx context.Context, n int) error {
	limiter := b.current(n)
	if limiter == nil {
		return nil
	}
	return limiter.WaitN(ctx, n)
}

// current is the limiter of the rule in force, nil for no limit. Its burst is
// never smaller than one request.
func (b *bandwidth) current(n int) *rate.Limiter {
	limit := b.rule()
	b.mu.Lock()
	defer b.mu.Unlock()
	if limit == 0 {
		b.mu.limiter, b.mu.limit = nil, 0
		return nil
	}
	if b.mu.limiter == nil || b.mu.limit != limit {
		b.mu.limiter, b.mu.limit = rate.NewLimiter(rate.Limit(limit), n), limit
	}
	if b.mu.limiter.Burst() < n {
		b.mu.limiter.SetBurst(n)
	}
	return b.mu.limiter
}
