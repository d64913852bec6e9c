package sim

import (
	"errors"
	"sync"
	"sync/atomic"
)

// errDead is what a process gets from everything once it was killed.
var errDead = errors.New("sim: the process was killed")

// life is that of one process. From the moment it is killed nothing it does has an effect, so that what it leaves can be
// copied; after that its goroutines may run to their ends over the copy that nobody looks at any more.
type life struct {
	state atomic.Int32
	turns *turnstile
	died  chan struct{}
	once  sync.Once
}

const (
	alive = iota
	dead
	buried
)

func newLife(t *turnstile) *life { return &life{turns: t, died: make(chan struct{})} }

func (l *life) kill() {
	l.once.Do(func() {
		l.state.Store(dead)
		close(l.died)
	})
}

func (l *life) bury() {
	l.kill()
	l.state.Store(buried)
}

func (l *life) isAlive() bool { return l.state.Load() == alive }

// check is at the beginning of every effect, under the lock of what it changes.
func (l *life) check() error {
	if l.state.Load() == dead {
		return errDead
	}
	return nil
}

// pause lets others go first, n parts of a turn long.
func (l *life) pause(n int) {
	if n > 0 && l.isAlive() {
		l.turns.pause(n)
	}
}
