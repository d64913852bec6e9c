package sim

import (
	"container/heap"
	"runtime"
	"sync"
)

// turnstile lets one goroutine go on at a time, of those that pause: the one whose turn comes first, and only when no other has
// anything left to do. So it depends on the seed alone who meets whom, and not on the scheduler or on how busy the machine is.
//
// It cannot wait with synctest.Wait, which waits for ever while somebody stands at a mutex that a pausing goroutine holds.
type turnstile struct {
	mu struct { // guards all below; no I/O under it
		sync.Mutex
		now     int // parts of a turn
		arrived int
		waiting waiters
		turning bool
	}
}

// settleTurns is how often the turnstile lets everybody else run before it lets the next one in: whoever was woken is behind it
// in a queue of the scheduler, and may wake others, or be preempted there.
const settleTurns = 20

// turn is how much one is in what pauses are counted in: so few are over at the same moment.
const turn = 1 << 10

// pause returns when n, in parts of a turn, are over.
func (t *turnstile) pause(n int) {
	t.mu.Lock()
	t.mu.arrived++
	in := waiter{due: t.mu.now + n, arrived: t.mu.arrived, enter: make(chan struct{})}
	heap.Push(&t.mu.waiting, in)
	if !t.mu.turning {
		t.mu.turning = true
		go t.serve()
	}
	t.mu.Unlock()
	<-in.enter
}

// serve runs as long as somebody waits.
func (t *turnstile) serve() {
	for {
		for range settleTurns {
			runtime.Gosched()
		}
		if !t.next() {
			return
		}
	}
}

func (t *turnstile) next() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.mu.waiting) == 0 {
		t.mu.turning = false
		return false
	}
	first := heap.Pop(&t.mu.waiting).(waiter)
	t.mu.now = first.due
	close(first.enter)
	return true
}

// waiter is a goroutine that pauses.
type waiter struct {
	due, arrived int
	enter        chan struct{}
}

// waiters are a heap, whoever is due first, and arrived first, at its top.
type waiters []waiter

func (w waiters) Len() int { return len(w) }

func (w waiters) Less(i, k int) bool {
	return w[i].due < w[k].due || w[i].due == w[k].due && w[i].arrived < w[k].arrived
}

func (w waiters) Swap(i, k int) { w[i], w[k] = w[k], w[i] }

func (w *waiters) Push(x any) { *w = append(*w, x.(waiter)) }

func (w *waiters) Pop() any {
	last := (*w)[len(*w)-1]
	*w = (*w)[:len(*w)-1]
	return last
}
