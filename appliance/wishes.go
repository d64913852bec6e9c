package appliance

import (
	"hash/fnv"
	"maps"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// How an operator holds the comparisons of a VM.
const (
	heldPaused    = "paused"    // the position is kept; resume goes on
	heldCancelled = "cancelled" // until somebody asks for a comparison again
)

// wishList is what is wanted of a VM's comparisons, durably.
type wishList struct {
	// Now: not only in the window; until nothing is left to compare.
	Now  bool   `json:"now,omitempty"`
	Held string `json:"held,omitempty"`
	// Deep are the disks, by name, whose replica is to be compared.
	Deep map[string]deepWish `json:"deep,omitempty"`
	// Left is how far those came that were cancelled: what they found is known nowhere else.
	Left map[string]deepWish `json:"left,omitempty"`
	// Scrubbed is when a disk's replica was last compared, or as if it was.
	Scrubbed map[string]time.Time `json:"scrubbed,omitempty"`
}

// want has a replica compared, from where an earlier comparison was cancelled.
func (l *wishList) want(disk, reason string) {
	w := l.Left[disk]
	w.Reason = reason
	l.Deep[disk] = w
	delete(l.Left, disk)
}

// deepWish is why, and how far it is.
type deepWish struct {
	Reason   string           `json:"reason"`
	Snapshot string           `json:"snapshot,omitempty"` // of the replica, that is compared
	At       extent.DiskBlock `json:"at,omitempty"`       // everything before was compared
	Found    int64            `json:"found,omitempty"`    // blocks
}

// cursorEvery is how many blocks a deep comparison passes before its cursor is made
// durable again: 256 MiB.
const cursorEvery = 256 << 20 / extent.BlockSize

// wishes keeps a wishList.
type wishes struct {
	docs shipper.Documents
	key  string
	mu   struct {
		sync.Mutex // held over the synced write: it is rare
		list       wishList
		durable    extent.DiskBlock // of the deep comparison under way
	}
}

func openWishes(docs shipper.Documents, vmID string) (*wishes, error) {
	w := &wishes{docs: docs, key: "appliance/resync/" + vmID}
	_, err := docs.Load(w.key, &w.mu.list)
	return w, err
}

// get is a copy that nobody changes.
func (w *wishes) get() wishList {
	w.mu.Lock()
	defer w.mu.Unlock()
	l := w.mu.list
	l.Deep, l.Left, l.Scrubbed = maps.Clone(l.Deep), maps.Clone(l.Left), maps.Clone(l.Scrubbed)
	return l
}

// update changes the list durably; on error the old one stays.
func (w *wishes) update(change func(*wishList)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.mu.list
	next.Deep, next.Left, next.Scrubbed = maps.Clone(next.Deep), maps.Clone(next.Left), maps.Clone(next.Scrubbed)
	if next.Deep == nil {
		next.Deep = map[string]deepWish{}
	}
	if next.Left == nil {
		next.Left = map[string]deepWish{}
	}
	if next.Scrubbed == nil {
		next.Scrubbed = map[string]time.Time{}
	}
	change(&next)
	if err := w.docs.Save(w.key, next); err != nil {
		return err
	}
	w.mu.list = next
	return nil
}

// passed notes how far a deep comparison is, now and then durably.
func (w *wishes) passed(disk string, d deepWish) error {
	w.mu.Lock()
	due := d.At < w.mu.durable || d.At-w.mu.durable >= cursorEvery
	w.mu.Unlock()
	if !due && d.Snapshot == w.get().Deep[disk].Snapshot {
		return nil
	}
	return w.keep(disk, d)
}

func (w *wishes) keep(disk string, d deepWish) error {
	err := w.update(func(l *wishList) {
		if _, wanted := l.Deep[disk]; wanted {
			l.Deep[disk] = d
		} else { // it was cancelled meanwhile
			l.Left[disk] = d
		}
	})
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.durable = d.At
	return err
}

// cancel withdraws everything that is wanted.
func (w *wishes) cancel() error {
	return w.update(func(l *wishList) {
		maps.Copy(l.Left, l.Deep)
		l.Now, l.Held, l.Deep = false, heldCancelled, nil
	})
}

// compared ends a deep wish.
func (w *wishes) compared(disk string, now time.Time) error {
	return w.update(func(l *wishList) {
		delete(l.Deep, disk)
		delete(l.Left, disk)
		l.Scrubbed[disk] = now.UTC()
	})
}

// done notes that nothing is left to compare.
func (w *wishes) done() error {
	if l := w.get(); !l.Now && l.Held == "" {
		return nil
	}
	return w.update(func(l *wishList) { l.Now, l.Held = false, "" })
}

// gather adds what the pipeline and the schedule want compared: replicas that were
// changed by others, and those whose scrub is due.
func (w *wishes) gather(r *resyncer) error {
	due := map[string]string{}
	list, every, now := w.get(), r.m.app.config().Resync.Scrub, r.m.app.now()
	first := map[string]time.Time{}
	for _, d := range r.m.pipeline.Status().Disks {
		if _, wanted := list.Deep[d.Name]; wanted || d.Stage != shipper.StageComplete || d.Matching {
			continue
		}
		last, seen := list.Scrubbed[d.Name]
		switch {
		case d.Touched != "" && !d.Repairing:
			due[d.Name] = d.Touched
		case every > 0 && !seen:
			first[d.Name] = firstScrub(d.ID, every, now)
		case every > 0 && now.Sub(last) >= every:
			due[d.Name] = "scheduled scrub"
		}
	}
	if len(due) == 0 && len(first) == 0 {
		return nil
	}
	return w.update(func(l *wishList) {
		for name, reason := range due {
			l.want(name, reason)
		}
		maps.Copy(l.Scrubbed, first)
	})
}

// firstScrub takes a disk for one that was compared at some time within the last
// period, by its id, so that the scrubs of all disks spread evenly.
func firstScrub(id string, every time.Duration, now time.Time) time.Time {
	h := fnv.New32a()
	_, _ = h.Write([]byte(id)) // never fails
	return now.Add(-time.Duration(float64(every) * float64(h.Sum32()) / (1 << 32))).UTC()
}
