package shipper

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Class says what a put is for. Log shipping goes first: it is the durable RPO; the others yield to it.
type Class uint8

// The classes of puts.
const (
	ClassShip    Class = iota // the log of a closed epoch: it ends in a point
	ClassRepair               // the log of an open epoch: what a comparison or a catch-up found
	ClassInitial              // initial replication
	ClassApply                // folding the log into a replica
)

const (
	// yieldShare: of so many bytes, one goes to the classes that yield while log shipping waits too, so that
	// none of them starves on a line that is always full.
	yieldShare = 10
	// lineBurst is how much may go at once after a rest, as time at the limit.
	lineBurst = 100 * time.Millisecond
	// yieldStart, in puts, is what the yielding classes have in flight at first, and yieldTime how long a put of
	// theirs may take: if one takes longer, fewer go at once, for a log that comes after them waits behind them.
	yieldStart = 2
	yieldMost  = 64
	yieldTime  = 2 * time.Second
	// lineLook is how often a line that waits looks at its limit again: a rule may have begun or ended.
	lineLook = time.Second
)

// order is what a put is for, and how urgent that is.
type order struct {
	class    Class
	since    time.Time     // ships: since when no point holds what was written
	interval time.Duration // ships: how often the VM is to have one
}

// danger is how many intervals ago the newest point was sealed: the VM with the largest is served first. It
// grows while a VM waits, so none waits for ever; on a line that is too narrow all fall behind alike.
func (o order) danger(now time.Time) float64 {
	return now.Sub(o.since).Seconds() / max(o.interval.Seconds(), 1)
}

// claim is one put that waits for its turn.
type claim struct {
	order
	bytes   int64
	granted chan struct{}
}

// line is the one queue of everything the appliance sends: a claim is granted when there is a buffer for it and
// the limit lets its bytes go. Without a limit the buffers alone decide who is next, which is what matters on a
// line that is narrow by itself.
type line struct {
	mu struct {
		sync.Mutex              // never held over I/O or while waiting
		limit      func() int64 // bytes a second now, 0: none; nil: none
		free       int64        // bytes of buffers
		waiting    []*claim     // in the order they came
		credit     int64        // bytes that yielding claims may take before a ship
		shipping   int          // puts of logs in flight
		yielding   int          // puts of the yielding classes in flight
		window     float64      // how many of those there may be, at least 1
		balance    float64      // bytes that may go now; negative: how much went ahead of its time
		filled     time.Time    // until when balance has grown
		look       *time.Timer  // the next look, nil for none
	}
}

func newLine(bytes int64) *line {
	l := &line{}
	l.mu.free, l.mu.window = max(bytes, target.MaxPut), yieldStart
	return l
}

// wait returns when a put of n bytes may go, with room for a buffer. What is not sent is given back with refund.
func (l *line) wait(ctx context.Context, o order, n int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c := &claim{order: o, bytes: n, granted: make(chan struct{})}
	l.mu.Lock()
	l.mu.waiting = append(l.mu.waiting, c)
	l.grantLocked()
	l.mu.Unlock()
	select {
	case <-c.granted:
		return nil
	case <-ctx.Done():
	}
	if !l.withdraw(c) {
		l.refund(n)
		l.release(o)
	}
	return ctx.Err()
}

// withdraw takes a claim out; false if it was granted meanwhile.
func (l *line) withdraw(c *claim) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, have := range l.mu.waiting {
		if have == c {
			l.mu.waiting = append(l.mu.waiting[:i], l.mu.waiting[i+1:]...)
			return true
		}
	}
	return false
}

// release gives the room of one buffer back.
func (l *line) release(o order) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.free += target.MaxPut
	*l.flightLocked(o.class)--
	l.grantLocked()
}

// refund gives bytes back that were granted and not sent.
func (l *line) refund(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.balance += float64(n)
	l.grantLocked()
}

// took says how long the target needed for a put.
func (l *line) took(o order, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case o.class == ClassShip:
	case d > yieldTime:
		l.mu.window = max(1, l.mu.window*0.7)
	case d < yieldTime/2:
		l.mu.window = min(l.mu.window+1, yieldMost)
	}
}

// grantLocked lets go whatever may go now.
func (l *line) grantLocked() {
	for len(l.mu.waiting) > 0 && l.mu.free >= target.MaxPut {
		now := time.Now()
		if pause := l.pauseLocked(now); pause > 0 {
			l.lookLocked(pause)
			return
		}
		i := l.nextLocked(now)
		if i < 0 {
			return // what waits yields to nobody, but has enough in flight
		}
		c := l.mu.waiting[i]
		l.mu.waiting = append(l.mu.waiting[:i], l.mu.waiting[i+1:]...)
		l.mu.free -= target.MaxPut
		*l.flightLocked(c.class)++
		l.mu.balance -= float64(c.bytes)
		close(c.granted)
	}
}

// pauseLocked is how long nothing may go; 0: at once.
func (l *line) pauseLocked(now time.Time) time.Duration {
	var limit float64
	if l.mu.limit != nil {
		limit = float64(l.mu.limit())
	}
	if limit <= 0 {
		l.mu.balance, l.mu.filled = 0, now
		return 0
	}
	if !l.mu.filled.IsZero() {
		l.mu.balance = min(l.mu.balance+limit*now.Sub(l.mu.filled).Seconds(), limit*lineBurst.Seconds())
	}
	l.mu.filled = now
	if l.mu.balance >= 0 {
		return 0
	}
	return time.Duration(math.Ceil(-l.mu.balance / limit * float64(time.Second)))
}

// lookLocked has the queue looked at again after a pause, or before: the limit may have changed by then.
func (l *line) lookLocked(pause time.Duration) {
	if l.mu.look != nil {
		return
	}
	l.mu.look = time.AfterFunc(min(pause, lineLook), func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.mu.look = nil
		l.grantLocked()
	})
}

// flightLocked counts the puts in flight of those that a class is among.
func (l *line) flightLocked(c Class) *int {
	if c == ClassShip {
		return &l.mu.shipping
	}
	return &l.mu.yielding
}

// nextLocked is the index of the claim whose turn it is, -1 for none. On a line that is slow, which the puts that
// yield have found out, they go while logs are under way only as far as their share allows.
func (l *line) nextLocked(now time.Time) int {
	ship, yielding := l.firstLocked(now)
	if yielding >= 0 {
		slow := l.mu.window <= 1
		if ship < 0 && (l.mu.shipping == 0 || !slow) {
			return yielding
		}
		if need := l.mu.waiting[yielding].bytes; l.mu.credit >= need {
			l.mu.credit -= need
			return yielding
		}
	}
	if ship >= 0 && yielding >= 0 {
		l.mu.credit += l.mu.waiting[ship].bytes / (yieldShare - 1)
	}
	return ship
}

// firstLocked finds the log whose VM is most in danger, and the first of those that yield and have not enough in
// flight; -1 for none.
func (l *line) firstLocked(now time.Time) (ship, yielding int) {
	ship, yielding = -1, -1
	for i, c := range l.mu.waiting {
		switch {
		case c.class != ClassShip:
			if yielding < 0 && l.mu.yielding < int(l.mu.window) {
				yielding = i
			}
		case ship < 0 || c.danger(now) > l.mu.waiting[ship].danger(now):
			ship = i
		}
	}
	return ship, yielding
}
