package sim

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
)

// errDead is what a process gets from everything once it was killed.
var errDead = errors.New("sim: the process was killed")

// life is that of one process. From the moment it is killed nothing it does has an effect, so that what it leaves can be
// copied; after that its goroutines may run to their ends over the copy that nobody looks at any more.
type life struct {
	state atomic.Int32
	died  chan struct{}
	once  sync.Once
}

const (
	alive = iota
	dead
	buried
)

func newLife() *life { return &life{died: make(chan struct{})} }

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

func yield() { runtime.Gosched() }

// pause lets others go first, n times over.
func (l *life) pause(n int) {
	for i := 0; i < n && l.isAlive(); i++ {
		runtime.Gosched()
	}
}
