package main

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"
)

// acks is what the guest said it has committed: the numbers 1, 2, 3, …, each when it was heard. It is kept outside the guest and
// outside the host that is lost.
type acks struct {
	mu struct {
		sync.Mutex // held for memory only
		at         []time.Time
		strange    []string
		changed    chan struct{} // closed at the next line
	}
}

func newAcks() *acks {
	a := &acks{}
	a.mu.changed = make(chan struct{})
	return a
}

// hear takes a line of the guest.
func (a *acks) hear(line string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n, err := strconv.Atoi(line); err == nil && n == len(a.mu.at)+1 {
		a.mu.at = append(a.mu.at, time.Now())
	} else {
		a.mu.strange = append(a.mu.strange, line)
	}
	close(a.mu.changed)
	a.mu.changed = make(chan struct{})
}

// last is the newest number that was heard.
func (a *acks) last() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.mu.at)
}

// until is the newest number that was heard before t.
func (a *acks) until(t time.Time) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n < len(a.mu.at) && a.mu.at[n].Before(t) {
		n++
	}
	return n
}

// await waits until n was heard. Another line than the next number is an error.
func (a *acks) await(ctx context.Context, n int) error {
	for {
		a.mu.Lock()
		have, strange, changed := len(a.mu.at), a.mu.strange, a.mu.changed
		a.mu.Unlock()
		switch {
		case len(strange) > 0:
			return fmt.Errorf("after %d the guest says %q", have, strange)
		case have >= n:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the guest has said %d, not yet %d: %w", have, n, context.Cause(ctx))
		case <-changed:
		}
	}
}
