package stamp

import (
	"fmt"
	"math"
)

// Bounds say what is known of the moment of a seal, in logical time.
type Bounds struct {
	After  int64 // every write answered before it is included
	Before int64 // no write sent after it is
}

// NoBounds knows nothing.
var NoBounds = Bounds{After: 0, Before: math.MaxInt64}

// And returns the narrower of two.
func (b Bounds) And(o Bounds) Bounds {
	return Bounds{After: max(b.After, o.After), Before: min(b.Before, o.Before)}
}

// mostViolations are reported of one image; more of them say nothing new.
const mostViolations = 12

// Cut is what a check found. A point is admissible if Violations is empty.
type Cut struct {
	Violations []string
	More       int   // violations beyond those listed
	Newest     int64 // when the newest visible write was sent; 0: none of this history is visible
	Included   int   // writes
	Excluded   int
	Lost       int       // CheckDurable: blocks that hold less than was written there
	at         [][]int32 // per disk and block, how many versions of its history are included
}

// OK says whether the images are an admissible cut.
func (c *Cut) OK() bool { return len(c.Violations) == 0 }

// Err is nil for an admissible cut, else an error with every violation.
func (c *Cut) Err() error {
	if c.OK() {
		return nil
	}
	text := ""
	for _, v := range c.Violations {
		text += "\n  " + v
	}
	return fmt.Errorf("no admissible cut, %d violations:%s", len(c.Violations)+c.More, text)
}

func (c *Cut) violate(format string, args ...any) {
	if len(c.Violations) == mostViolations {
		c.More++
		return
	}
	c.Violations = append(c.Violations, fmt.Sprintf(format, args...))
}

// Check judges the images of a point, one a disk; the zero Image stands for a disk the point does not have. previous, which may be nil, is the cut of an earlier point of this log.
func (l *Log) Check(images []Image, bounds Bounds, previous *Cut) *Cut {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Cut{}
	if len(images) != len(l.base) {
		c.violate("%d disks, want %d", len(images), len(l.base))
		return c
	}
	for disk, im := range images {
		l.placeLocked(c, disk, im, bounds)
	}
	if !c.OK() {
		return c // positions of blocks that are no version mean nothing
	}
	l.closedLocked(c, bounds)
	l.wholeLocked(c)
	if previous != nil {
		l.monotone(c, previous)
	}
	return c
}

// placeLocked finds for every block of a disk the place of its version in the block's history.
func (l *Log) placeLocked(c *Cut, disk int, im Image, bounds Bounds) {
	c.at = append(c.at, make([]int32, len(im.blocks)))
	if im.blocks == nil {
		return
	}
	if len(im.blocks) != len(l.base[disk]) {
		c.violate("disk %d has %d blocks, want %d", disk, len(im.blocks), len(l.base[disk]))
		return
	}
	for b, v := range im.blocks {
		if v.id < l.first || v.id >= l.first+uint64(len(l.mu.writes)) {
			if v.hash != l.base[disk][b] {
				c.violate("disk %d block %d: neither what was there in the beginning nor a write of this history: %s", disk, b, l.explainLocked(v))
			}
			continue
		}
		place := l.placeOfLocked(disk, b, int32(v.id-l.first))
		if place < 0 {
			c.violate("disk %d block %d: holds write %d, which was not sent there", disk, b, v.id)
			continue
		}
		c.at[disk][b] = int32(place + 1)
		w := l.mu.writes[v.id-l.first]
		c.Newest = max(c.Newest, w.Sent)
		if w.Sent > bounds.Before {
			c.violate("disk %d block %d: %s was sent after the seal was answered (%d)", disk, b, w.describe(v.id), bounds.Before)
		}
	}
}

func (l *Log) explainLocked(v version) string {
	switch {
	case v.wrong != "":
		return v.wrong
	case v.id == 0:
		return "no stamp"
	default:
		return fmt.Sprintf("write %d; this history has %d to %d", v.id, l.first, l.first+uint64(len(l.mu.writes))-1)
	}
}

func (l *Log) placeOfLocked(disk, block int, index int32) int {
	h := l.mu.history[disk][block]
	for i := len(h) - 1; i >= 0; i-- {
		if h[i] == index {
			return i
		}
	}
	return -1
}

// closedLocked looks for a write that is absent though it was answered before something visible was sent, or before the
// seal was asked for. The first absent version of a block that was answered is the one that was answered first.
func (l *Log) closedLocked(c *Cut, bounds Bounds) {
	limit := max(c.Newest, bounds.After)
	for disk := range c.at {
		for b, included := range c.at[disk] {
			for _, index := range l.mu.history[disk][b][included:] {
				w := l.mu.writes[index]
				if w.Answered == 0 {
					continue
				}
				if w.Answered < limit {
					c.violate("disk %d block %d: %s is absent; the newest visible write was sent at %d, the seal asked for after %d",
						disk, b, w.describe(l.first+uint64(index)), c.Newest, bounds.After)
				}
				break
			}
		}
	}
}

// wholeLocked looks for a write of which some blocks are included and some not. A failed one may be torn.
func (l *Log) wholeLocked(c *Cut) {
	count := make([]int32, len(l.mu.writes))
	for disk := range c.at {
		for b, included := range c.at[disk] {
			for _, index := range l.mu.history[disk][b][:included] {
				count[index]++
			}
		}
	}
	for index, w := range l.mu.writes {
		if count[index] == 0 {
			c.Excluded++
			continue
		}
		c.Included++
		if count[index] != w.Count && !w.Failed { // never of an absent disk: its counts are 0
			c.violate("%s is torn: %d of its blocks are included", w.describe(l.first+uint64(index)), count[index])
		}
	}
}

// CheckDurable judges what a store holds after a power cut: every block is one of its versions, not older than the newest
// that the guest was told is on stable storage. Order and wholeness are not promised to a guest that does not sync.
func (l *Log) CheckDurable(images []Image) *Cut {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := &Cut{}
	for disk, im := range images {
		l.placeLocked(c, disk, im, NoBounds)
	}
	if !c.OK() {
		return c
	}
	for disk := range c.at {
		for b, included := range c.at[disk] {
			h := l.mu.history[disk][b]
			if int(included) < len(h) {
				c.Lost++
			}
			for i := len(h) - 1; i >= int(included); i-- {
				if w := l.mu.writes[h[i]]; w.Durable {
					c.violate("disk %d block %d: %s was durable and is lost", disk, b, w.describe(l.first+uint64(h[i])))
					break
				}
			}
		}
	}
	return c
}

func (l *Log) monotone(c, previous *Cut) {
	for disk := range c.at {
		if disk >= len(previous.at) || len(previous.at[disk]) != len(c.at[disk]) {
			continue
		}
		for b := range c.at[disk] {
			if c.at[disk][b] < previous.at[disk][b] {
				c.violate("disk %d block %d: an earlier point shows its version %d, this one %d", disk, b, previous.at[disk][b], c.at[disk][b])
			}
		}
	}
}
