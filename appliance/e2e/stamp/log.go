package stamp

import (
	"fmt"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Clock is the logical clock that every sent and every answered is a tick of. It outlives histories.
type Clock struct{ now atomic.Int64 }

// Now is the time of the last tick.
func (c *Clock) Now() int64 { return c.now.Load() }

// Tick advances the clock and returns the new time.
func (c *Clock) Tick() int64 { return c.now.Add(1) }

// Write is one write of the log.
type Write struct {
	Writer, Disk uint32
	Seq          uint64
	First        int64
	Count        int32
	Durable      bool          // the guest was told that it is on stable storage
	Failed       bool          // the outcome is unknown: any of its blocks may be there
	Sent         int64         // logical time
	Answered     int64         // logical time, 0 while in flight and if it failed
	At           time.Time     // when it was sent
	Took         time.Duration // from sent to answered
}

// Log is the history of the disks of one VM from one beginning. It is safe for concurrent use.
type Log struct {
	clock *Clock
	first uint64     // id of the first write
	base  [][]uint64 // per disk and block, the hash of what was there in the beginning

	// mu is held for memory only, never over I/O.
	mu struct {
		sync.Mutex
		writes  []Write
		history [][][]int32 // per disk and block, indices of writes in the order they were sent
		busy    []map[int64]bool
		loose   [][]int32 // per disk, answered writes nobody has synced
		cut     bool      // nothing answered from now on counts as durable
	}
}

// NewLog starts a history with what the images hold; every image is a whole number of blocks.
func NewLog(clock *Clock, images []Image) *Log { return newLog(clock, 1, images) }

func newLog(clock *Clock, first uint64, images []Image) *Log {
	l := &Log{clock: clock, first: first}
	for _, im := range images {
		base := make([]uint64, len(im.blocks))
		for i, v := range im.blocks {
			base[i] = v.hash
		}
		l.base = append(l.base, base)
		l.mu.history = append(l.mu.history, make([][]int32, len(base)))
		l.mu.busy = append(l.mu.busy, make(map[int64]bool))
		l.mu.loose = append(l.mu.loose, nil)
	}
	return l
}

// Next ends this history, in which nothing may be in flight any more, and starts the next with what the images hold.
func (l *Log) Next(images []Image) *Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	return newLog(l.clock, l.first+uint64(len(l.mu.writes)), images)
}

// Blocks is the size of a disk in blocks.
func (l *Log) Blocks(disk int) int64 { return int64(len(l.base[disk])) }

// Disks is the number of disks.
func (l *Log) Disks() int { return len(l.base) }

// Now is the logical time.
func (l *Log) Now() int64 { return l.clock.Now() }

// Tick is a new logical time; use it around asking for a seal.
func (l *Log) Tick() int64 { return l.clock.Tick() }

// Begin records that a write is being sent. It is refused, false, if a write in flight overlaps it.
func (l *Log) Begin(writer uint32, seq uint64, disk int, first int64, count int32) (id uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	busy := l.mu.busy[disk]
	for b := first; b < first+int64(count); b++ {
		if busy[b] {
			return 0, false
		}
	}
	index := int32(len(l.mu.writes))
	l.mu.writes = append(l.mu.writes, Write{
		Writer: writer, Disk: uint32(disk), Seq: seq, First: first, Count: count, Sent: l.clock.Tick(), At: time.Now(),
	})
	for b := first; b < first+int64(count); b++ {
		busy[b] = true
		l.mu.history[disk][b] = append(l.mu.history[disk][b], index)
	}
	return l.first + uint64(index), true
}

// End records that a write was answered after took; failed means its outcome is unknown.
func (l *Log) End(id uint64, took time.Duration, failed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w := &l.mu.writes[id-l.first]
	w.Took = took
	w.Failed = failed
	if !failed {
		w.Answered = l.clock.Tick()
		l.mu.loose[w.Disk] = append(l.mu.loose[w.Disk], int32(id-l.first))
	}
	for b := w.First; b < w.First+int64(w.Count); b++ {
		delete(l.mu.busy[w.Disk], b)
	}
}

// Durable records that a write was answered as being on stable storage.
func (l *Log) Durable(id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.writes[id-l.first].Durable = !l.mu.cut
}

// Cut is called before the power is cut by a shutdown of the file system. Nobody hears an answer after a real cut; here some
// do, and ext4 may give a wrong one then: an fsync that began before the shutdown and waits for a transaction that the shutdown
// aborted finds none left to wait for, and succeeds.
func (l *Log) Cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.cut = true
}

// Synced records that an fsync of a disk, sent at a logical time, was answered: what was answered before is durable.
func (l *Log) Synced(disk int, sent int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.cut {
		return
	}
	kept := l.mu.loose[disk][:0]
	for _, index := range l.mu.loose[disk] {
		if l.mu.writes[index].Answered < sent {
			l.mu.writes[index].Durable = true
		} else {
			kept = append(kept, index)
		}
	}
	l.mu.loose[disk] = kept
}

// Totals are the sums of a log. Bytes counts answered writes only.
type Totals struct {
	Writes, Failed, InFlight int
	Bytes                    int64
}

// Totals returns the sums so far.
func (l *Log) Totals() Totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	var t Totals
	for _, w := range l.mu.writes {
		switch {
		case w.Failed:
			t.Failed++
		case w.Answered == 0:
			t.InFlight++
		default:
			t.Writes++
			t.Bytes += int64(w.Count) * BlockSize
		}
	}
	return t
}

// Around returns the logical times of the last answer before from and of the first sending after to: what a seal at a
// time between the two must and must not include. A seal's wall clock is taken beside it, so leave some room.
func (l *Log) Around(from, to time.Time) Bounds {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := NoBounds
	for _, w := range l.mu.writes {
		if w.Answered != 0 && w.At.Add(w.Took).Before(from) {
			b.After = max(b.After, w.Answered+1)
		}
	}
	i := sort.Search(len(l.mu.writes), func(i int) bool { return l.mu.writes[i].At.After(to) })
	if i < len(l.mu.writes) {
		b.Before = l.mu.writes[i].Sent - 1
	}
	return b
}

// Took returns how long the answered writes took that were sent in [from, to).
func (l *Log) Took(from, to time.Time) []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []time.Duration
	for _, w := range l.mu.writes {
		if w.Answered != 0 && !w.At.Before(from) && w.At.Before(to) {
			out = append(out, w.Took)
		}
	}
	return out
}

func (w Write) describe(id uint64) string {
	return fmt.Sprintf("write %d (writer %d, its %dth, disk %d, blocks %d+%d, sent %d, answered %d)",
		id, w.Writer, w.Seq, w.Disk, w.First, w.Count, w.Sent, w.Answered)
}
