package journal

import (
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
)

// cursorStep is how many compared regions pass before the cursor is made
// durable again: 64 MiB, so that a kill in the middle repeats little.
const cursorStep = 16

// ReasonUnclean is the reason of a suspicion that a crash left: the regions that
// were active, and no others.
const ReasonUnclean = "unclean stop"

func oneRegion(r region) extent.Range[region] { return extent.Range[region]{Start: r, End: r + 1} }

// suspicion is what of a disk is still to be compared with the checksum table.
type suspicion struct {
	bits      extent.Bitmap[region]
	differing atomic.Int64 // bytes

	mu struct { // guards the rest; no I/O but the load at the start
		sync.Mutex
		rec     suspectRecord // Ranges are not kept up to date: see record
		durable bool          // the store has a record
		parts   extent.Set[extent.FileBlock]
		since   int   // regions compared since the cursor was durable
		over    bool  // the comparison has ended; rec tells of it until the next begins
		lost    error // a Mark that left no trace on stable storage
		anew    bool  // it grew since Suspect was last asked: what is being compared may have been read before
	}
}

func (d *Disk) suspects(r region) bool { return d.sus.bits.Test(r) }

// distrust begins a suspicion of total bytes, or adds its reason to one that is running.
func (s *suspicion) distrust(reason string, total int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.mu.rec.Reason == "" || s.mu.over:
		s.mu.over = false
		s.mu.rec = suspectRecord{Reason: reason, Since: time.Now().UTC()}
		s.differing.Store(0)
	case s.mu.rec.Reason != reason:
		s.mu.rec.Reason += "; " + reason
	}
	s.mu.rec.Total = max(s.mu.rec.Total, total+s.mu.rec.Compared)
	s.mu.anew = true
	s.mu.parts = extent.Set[extent.FileBlock]{}
}

// setWhole makes every region of d suspect, in memory.
func (s *suspicion) setWhole(d *Disk, reason string) {
	end := region((d.size.Load() + extent.RegionSize - 1) / extent.RegionSize)
	s.bits.Set(extent.Range[region]{End: end})
	s.distrust(reason, s.bits.Count()*extent.RegionSize)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.durable = true
}

// load reads the stored suspicion.
func (s *suspicion) load(d *Disk) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	found, err := getJSON(d.vm.j.store, preSuspect+d.id, &s.mu.rec)
	s.mu.durable = found
	for _, r := range s.mu.rec.Ranges {
		s.bits.Set(extent.Range[region]{Start: r[0], End: r[1]})
	}
	return err
}

// record returns the suspicion as the store keeps it.
func (s *suspicion) record() suspectRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := s.mu.rec
	rec.Ranges = nil
	for r := range s.bits.Ranges(extent.Range[region]{End: s.bits.End()}, 0) {
		rec.Ranges = append(rec.Ranges, [2]region{r.Start, r.End})
	}
	return rec
}

// note remembers that a Mark was not recorded, or that they are again.
func (s *suspicion) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.lost = err
}

// Suspect returns the file blocks still to be compared, in order; none when the
// comparison is done. The last range may reach past the end of the file. A
// comparison begins with it: Compared counts only what was read since.
func (d *Disk) Suspect() []extent.Range[extent.FileBlock] {
	d.sus.mu.Lock()
	d.sus.mu.anew = false // before the bits are read
	d.sus.mu.Unlock()
	var out []extent.Range[extent.FileBlock]
	for r := range d.sus.bits.Ranges(extent.Range[region]{End: d.sus.bits.End()}, 0) {
		out = append(out, regionSpan{r.Start, r.End}.blocks())
	}
	return out
}

// Suspected tells whether anything is to be compared. Unlike Suspect it begins no
// comparison: whoever only looks must not make what is being read count.
func (d *Disk) Suspected() bool { return d.sus.bits.Count() > 0 }

// SetSuspect makes the whole disk suspect; durable when it returns nil. If the
// store does not take it, the image's mark does.
func (d *Disk) SetSuspect(reason string) error {
	d.sus.setWhole(d, reason)
	var b kv.Batch
	err := putJSON(&b, preSuspect+d.id, d.sus.record())
	if err == nil {
		err = d.saveSuspicion(&b)
	}
	if err == nil {
		return nil
	}
	d.vm.j.fail(err)
	d.mark.Lock()
	defer d.mark.Unlock()
	return d.setMarkLocked()
}

// Compared says that the comparison has passed r: its blocks equal the table,
// or are marked, or their entries are unknown. A region is suspect until all of
// it has been passed, up to the end of the file. Now and then this makes the
// cursor durable. An error means that r may count as not compared. What was
// perhaps read before more became suspect counts for nothing: the next
// comparison reads it again.
func (d *Disk) Compared(r extent.Range[extent.FileBlock]) error {
	keep, err := d.pass(r)
	if err != nil || !keep {
		return err
	}
	// What was compared was read from the page cache. A cursor that survives a
	// power cut must not be ahead of the image.
	if err := d.syncImage(); err != nil {
		return err
	}
	return d.keepCursor()
}

// pass takes what r completes out of the suspicion; true: the cursor is due.
func (d *Disk) pass(r extent.Range[extent.FileBlock]) (bool, error) {
	s := &d.sus
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.lost != nil {
		return false, fmt.Errorf("a differing block could not be recorded: %w", s.mu.lost)
	}
	if s.mu.anew {
		return false, nil
	}
	s.mu.parts.Add(r)
	end := extent.Cover[extent.FileBlock](0, d.size.Load()).End
	for g := regionsOf(r); g.first < g.end; g.first++ {
		want := g.first.blocks()
		want.End = min(want.End, end)
		if !want.Empty() && !s.mu.parts.Contains(want) {
			continue
		}
		s.mu.parts.Remove(g.first.blocks())
		if s.bits.ClearOne(g.first) {
			s.mu.rec.Compared += extent.RegionSize
			s.mu.since++
		}
	}
	// Past the end of the file there is nothing to compare.
	last := regionsOf(blockRange{End: end}).end
	s.bits.Clear(extent.Range[region]{Start: last, End: max(last, s.bits.End())})
	s.mu.over = s.bits.Count() == 0
	return s.mu.durable && (s.mu.over || s.mu.since >= cursorStep), nil
}

// keepCursor makes the suspicion's present state durable.
func (d *Disk) keepCursor() error {
	s := &d.sus
	rec := s.record()
	var b kv.Batch
	if len(rec.Ranges) == 0 {
		b.Delete([]byte(preSuspect + d.id))
	} else if err := putJSON(&b, preSuspect+d.id, rec); err != nil {
		return err
	}
	if err := d.saveSuspicion(&b); err != nil {
		return fmt.Errorf("write cursor: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.since, s.mu.durable = 0, len(rec.Ranges) > 0
	return nil
}

// Recovery returns how far the comparison is. After the last one has ended it
// tells of that.
func (d *Disk) Recovery() Recovery {
	s := &d.sus
	s.mu.Lock()
	defer s.mu.Unlock()
	return Recovery{SuspectBytes: s.mu.rec.Total, ComparedBytes: s.mu.rec.Compared, DifferingBytes: s.differing.Load(), Reason: s.mu.rec.Reason}
}

func decodeJSON(key string, raw []byte, v any) error {
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %s: %w", ErrFormat, key, err)
	}
	return nil
}
