package shipper

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// queue is a line of one buffer whose order of service is watched.
type queue struct {
	t      *testing.T
	line   *line
	wg     sync.WaitGroup
	mu     sync.Mutex // guards served, no I/O
	served []string
}

func newQueue(t *testing.T, limit func() int64) *queue {
	q := &queue{t: t, line: newLine(1)}
	q.line.mu.limit = limit
	return q
}

// claim waits in the background for a put, which takes a moment.
func (q *queue) claim(name string, o order, n int64) {
	q.wg.Go(func() {
		if err := q.line.wait(q.t.Context(), o, n); err != nil {
			q.t.Error(err)
			return
		}
		q.mu.Lock()
		q.served = append(q.served, name)
		q.mu.Unlock()
		q.line.release(o)
	})
	synctest.Wait()
}

func TestLineServesTheMostEndangeredFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, nil)
		now := time.Now()
		if err := q.line.wait(t.Context(), order{}, 1); err != nil { // the one buffer
			t.Fatal(err)
		}
		q.claim("apply", order{class: ClassApply}, 1)
		q.claim("fresh", order{since: now, interval: time.Minute}, 1)
		q.claim("late", order{since: now.Add(-time.Hour), interval: time.Minute}, 1)
		q.claim("later, but it has a day", order{since: now.Add(-2 * time.Hour), interval: 24 * time.Hour}, 1)
		q.claim("initial", order{class: ClassInitial}, 1)
		q.line.release(order{})
		q.wg.Wait()
		if want := []string{"late", "later, but it has a day", "fresh", "apply", "initial"}; !slices.Equal(q.served, want) {
			t.Errorf("%v, want %v", q.served, want)
		}
	})
}

// What yields gets its share of a line that log shipping alone would fill.
func TestLineStarvesNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const put, rate = 4 << 20, 8 << 20
		q := newQueue(t, func() int64 { return rate })
		q.line.mu.free = 64 * target.MaxPut
		var sent [4]int64
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		for _, class := range []Class{ClassShip, ClassShip, ClassRepair, ClassInitial, ClassApply} {
			q.wg.Go(func() {
				for o := (order{class: class, since: time.Now(), interval: time.Minute}); q.line.wait(ctx, o, put) == nil; {
					q.mu.Lock()
					sent[class] += put
					q.mu.Unlock()
					q.line.release(o)
				}
			})
		}
		q.wg.Wait()
		total := float64(rate) * 3600
		for class, n := range sent {
			share := float64(n) / total
			low, high := 0.03, 0.04 // a third of a tenth
			if Class(class) == ClassShip {
				low, high = 0.89, 0.91
			}
			if share < low || share > high {
				t.Errorf("class %d: %.3f of the line", class, share)
			}
		}
	})
}

func TestLineKeepsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit := int64(1 << 20)
		q := newQueue(t, func() int64 { return limit })
		begin := time.Now()
		took := func(n int64) time.Duration {
			q.t.Helper()
			if err := q.line.wait(t.Context(), order{}, n); err != nil {
				t.Fatal(err)
			}
			q.line.release(order{})
			return time.Since(begin)
		}
		if at := took(4 << 20); at != 0 {
			t.Errorf("the first after %v", at)
		}
		if at := took(1 << 20); at.Round(time.Millisecond) != 4*time.Second {
			t.Errorf("the second after %v", at)
		}
		q.line.refund(1 << 20) // it was not sent after all
		if at := took(1 << 20); at.Round(time.Millisecond) != 4*time.Second {
			t.Errorf("the third after %v", at)
		}
		limit = 0 // a rule that ends is noticed by who waits already
		if at := took(1 << 20); at > 5*time.Second+lineLook {
			t.Errorf("without a limit after %v", at)
		}
	})
}

// A put that takes long has fewer at once behind it; a line that is quick again has more.
func TestLineGivesWayOnASlowLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, nil)
		q.line.mu.free = 64 * target.MaxPut
		o := order{class: ClassInitial}
		in := func() (n int) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			for q.line.wait(ctx, o, 1) == nil {
				n++
			}
			for range n {
				q.line.release(o)
			}
			return n
		}
		if n := in(); n != yieldStart {
			t.Errorf("%d at first", n)
		}
		for range 10 {
			q.line.took(o, time.Millisecond)
		}
		if n := in(); n != yieldStart+10 {
			t.Errorf("%d on a quick line", n)
		}
		for range 20 {
			q.line.took(o, 3*yieldTime)
		}
		q.line.took(order{}, time.Millisecond) // a ship says nothing of it
		if n := in(); n != 1 {
			t.Errorf("%d on a slow line", n)
		}
	})
}

func TestLineForgetsWhoLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		q := newQueue(t, nil)
		if err := q.line.wait(t.Context(), order{}, 1); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := q.line.wait(ctx, order{}, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("%v", err)
		}
		if err := q.line.wait(ctx, order{}, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("ended before: %v", err)
		}
		q.line.release(order{})
		if q.line.mu.free != target.MaxPut || len(q.line.mu.waiting) != 0 {
			t.Errorf("%d bytes free, %d waiting", q.line.mu.free, len(q.line.mu.waiting))
		}
	})
}
