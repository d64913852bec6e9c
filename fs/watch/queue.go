package watch

import (
	"sync"

	"golang.org/x/sys/unix"
)

// mostWaiting bounds what waits to be told: some 50 MiB.
const mostWaiting = 1 << 18

// queue is what the kernel said and nobody was told of yet. It leaves out what this process did itself to files: by far the
// most, and nobody's business.
type queue struct {
	self, most int
	mu         struct {
		sync.Mutex // never held over I/O
		waiting    []rawEvent
		ended      bool
	}
	ready *sync.Cond // something waits, or nothing will any more
}

func newQueue(self, most int) *queue {
	q := &queue{self: self, most: most}
	q.ready = sync.NewCond(&q.mu)
	return q
}

// put adds an event. When too many wait they are one overflow, as the kernel has it.
func (q *queue) put(e rawEvent) {
	if e.pid == q.self && e.mask&(unix.FAN_ONDIR|unix.FAN_Q_OVERFLOW) == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.mu.waiting) >= q.most {
		q.mu.waiting = []rawEvent{{mask: unix.FAN_Q_OVERFLOW}}
	}
	q.mu.waiting = append(q.mu.waiting, e)
	q.ready.Signal()
}

// end says that nothing more will be put.
func (q *queue) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.mu.ended = true
	q.ready.Broadcast()
}

// next waits for the next event; false at the end, when nothing waits any more: what others did before a stop must not
// pass for ours.
func (q *queue) next() (rawEvent, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.mu.waiting) == 0 && !q.mu.ended {
		q.ready.Wait()
	}
	if len(q.mu.waiting) == 0 {
		return rawEvent{}, false
	}
	e := q.mu.waiting[0]
	q.mu.waiting = q.mu.waiting[1:]
	return e, true
}
