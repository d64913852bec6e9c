package resync

import (
	"context"
	"iter"
	"sync"
)

// gate holds a comparison: while it is paused, and while guests need the disk.
type gate struct {
	// yield, if set, is called before each read with its length in bytes.
	yield func(ctx context.Context, n int) error

	// mu guards the gate that a paused run waits at; no I/O under it.
	mu struct {
		sync.Mutex
		shut chan struct{} // closed by Resume; nil while not paused
	}
}

// Pause holds the comparison after the reads under way, until Resume.
func (g *gate) Pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.shut == nil {
		g.mu.shut = make(chan struct{})
	}
}

// Resume lets a paused comparison go on.
func (g *gate) Resume() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.mu.shut != nil {
		close(g.mu.shut)
		g.mu.shut = nil
	}
}

// Paused says whether the comparison is held.
func (g *gate) Paused() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.shut != nil
}

// wait returns when the comparison may read n more bytes.
func (g *gate) wait(ctx context.Context, n int64) error {
	for {
		g.mu.Lock()
		shut := g.mu.shut
		g.mu.Unlock()
		if shut == nil {
			break
		}
		select {
		case <-shut:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if g.yield != nil {
		return g.yield(ctx, int(n))
	}
	return nil
}

// job is one stride on its way: T has its input and its result.
type job[T any] struct {
	item T
	err  error
	done chan struct{} // closed when item's result and err are final
}

// line does the strides of a comparison side by side and hands their results
// over in order.
type line[T any] struct {
	gate    *gate
	workers int
	depth   int                                   // strides on their way
	bytes   func(T) int64                         // what a stride reads
	ahead   func(T)                               // if set, told of a stride when its turn to wait for a worker begins
	worker  func() func(context.Context, T) error // makes one worker with its memory
	finish  func(T) error                         // in order, one at a time
}

// run returns with the first error, or with ctx's when that is done; what was not
// finished by then is not. No goroutine outlives it.
func (l *line[T]) run(ctx context.Context, items iter.Seq[T]) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	jobs := make(chan *job[T], l.depth)
	var wg sync.WaitGroup
	for range l.workers {
		do := l.worker()
		wg.Go(func() {
			for j := range jobs {
				j.err = do(inner, j.item)
				close(j.done)
			}
		})
	}
	defer wg.Wait()
	defer cancel() // before the wait: reads of a network end
	defer close(jobs)

	next, stop := iter.Pull(items)
	defer stop()
	var queue []*job[T]
	for more := true; ; {
		// A paused run first hands over what it has read.
		for more && len(queue) < l.depth && !(l.gate.Paused() && len(queue) > 0) {
			var item T
			if item, more = next(); !more {
				break
			}
			if err := l.gate.wait(ctx, l.bytes(item)); err != nil {
				return err
			}
			j := &job[T]{item: item, done: make(chan struct{})}
			queue = append(queue, j)
			if l.ahead != nil {
				l.ahead(item)
			}
			jobs <- j
		}
		if len(queue) == 0 {
			return nil
		}
		<-queue[0].done
		if err := queue[0].err; err != nil {
			return err
		}
		if err := l.finish(queue[0].item); err != nil {
			return err
		}
		queue = queue[1:]
	}
}
