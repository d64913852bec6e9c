package fs

import (
	"sync"
	"sync/atomic"
	"testing"
)

// nextLedger is what the next process finds in a ledger.
func nextLedger(t *testing.T, l *ledger) *ledger {
	t.Helper()
	if err := l.write(facts{Mount: "/m"}); err != nil {
		t.Fatal(err)
	}
	next, _, err := openLedger(l.file)
	if err != nil {
		t.Fatal(err)
	}
	return next
}

func emptyLedger(t *testing.T) *ledger {
	t.Helper()
	l, err := newLedger()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.file.Close() })
	return l
}

// Requests that come again at the same time find their notes, each its own.
func TestNotesAreFoundByAllThatComeAgain(t *testing.T) {
	l := emptyLedger(t)
	const first, last = 2, maxActs
	for u := uint64(first); u <= last; u++ {
		i, again := l.begin(u, [2]uint64{u})
		if i < 0 || again {
			t.Fatalf("request %d: note %d, again %v", u, i, again)
		}
		if u%2 == 0 {
			l.acts[i].end(nil)
		}
	}
	next := nextLedger(t, l)
	var lost atomic.Int64
	var all sync.WaitGroup
	start := make(chan struct{})
	for u := uint64(first); u <= last; u++ {
		all.Go(func() {
			<-start
			i, again := next.begin(u|resent, [2]uint64{1 << 40})
			done := again && i >= 0 && atomic.LoadUint32(&next.acts[i].state) == actDone
			if !again || next.acts[i].before[0] != u || done != (u%2 == 0) {
				lost.Add(1)
			}
		})
	}
	close(start)
	all.Wait()
	if n := lost.Load(); n != 0 {
		t.Errorf("%d of %d requests that came again were taken for new ones", n, last-first+1)
	}
}

// What is new in the next process takes no note away from what is still to come again.
func TestNotesOutliveNewRequests(t *testing.T) {
	l := emptyLedger(t)
	const request = 7
	i, _ := l.begin(request, [2]uint64{42})
	l.acts[i].end(nil)
	next := nextLedger(t, l)
	for u := uint64(1000); u < 1000+2*maxActs; u++ {
		i, _ := next.begin(u, [2]uint64{})
		next.acts[i].end(nil)
		next.busy[i].Store(false)
	}
	i, again := next.begin(request|resent, [2]uint64{})
	if !again || next.acts[i].before[0] != 42 || next.acts[i].state != actDone {
		t.Fatalf("note %d, again %v: the note of request %d is lost", i, again, request)
	}
	// It is there for the process after that one too.
	if i, again := nextLedger(t, next).begin(request|resent, [2]uint64{}); i < 0 || !again {
		t.Errorf("the process after the next has lost the note of request %d", request)
	}
}
