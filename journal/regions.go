package journal

import (
	"sync"
	"sync/atomic"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// region is the number of a 4 MiB region of an image file.
type region int64

type regionSpan struct{ first, end region } // half-open

// regionsOf returns the regions that blocks r touch.
func regionsOf(r blockRange) regionSpan {
	if r.Empty() {
		return regionSpan{}
	}
	return regionSpan{region(r.Start / extent.BlocksPerRegion), region((r.End-1)/extent.BlocksPerRegion) + 1}
}

// blocks returns the file blocks of the regions.
func (s regionSpan) blocks() blockRange {
	return blockRange{Start: extent.FileBlock(s.first) * extent.BlocksPerRegion, End: extent.FileBlock(s.end) * extent.BlocksPerRegion}
}

func (r region) blocks() blockRange { return regionSpan{r, r + 1}.blocks() }

// A region's word: state, CLOCK bit and pins in one, so that "nobody is in it"
// and "it leaves" are decided by one compare-and-swap.
const (
	wordActive  = 1 << 0 // its record is on stable storage, or the image is marked
	wordLeaving = 1 << 1 // its record is being deleted
	wordRef     = 1 << 2 // used since it was last cleared: by the CLOCK hand, or before a Datasync
	wordPin     = 1 << 8 // one change between Begin and End
	wordState   = wordActive | wordLeaving
)

const regionPage = 4096 // words of a page: 16 GiB of file in 16 KiB

type regionWords [regionPage]atomic.Uint32

// regionTable holds the words of one disk. Looking up and pinning are
// lock-free; pages are only ever added.
type regionTable struct {
	dir    atomic.Pointer[[]*regionWords]
	active atomic.Int64 // regions whose word is active or leaving

	mu struct { // guards the making of pages; no I/O
		sync.Mutex
	}
}

// word returns the word of r, nil if its page does not exist.
func (t *regionTable) word(r region) *atomic.Uint32 {
	d := t.dir.Load()
	if d == nil || int(r/regionPage) >= len(*d) {
		return nil
	}
	if p := (*d)[r/regionPage]; p != nil {
		return &p[r%regionPage]
	}
	return nil
}

// ensure returns the word of r, making its page.
func (t *regionTable) ensure(r region) *atomic.Uint32 {
	if w := t.word(r); w != nil {
		return w
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	var old []*regionWords
	if d := t.dir.Load(); d != nil {
		old = *d
	}
	dir := make([]*regionWords, max(len(old), int(r/regionPage)+1))
	copy(dir, old)
	if dir[r/regionPage] == nil {
		dir[r/regionPage] = new(regionWords)
	}
	t.dir.Store(&dir)
	return &dir[r/regionPage][r%regionPage]
}

// pin counts a change into r if r is active.
func (t *regionTable) pin(r region) bool {
	w := t.word(r)
	if w == nil {
		return false
	}
	// Adding first and looking at the result is one wait-free operation; a
	// compare-and-swap loop would fight over a hot region. A pin on a region that
	// is not active is taken back: whoever changes the state leaves pins alone.
	v := w.Add(wordPin)
	if v&wordState == wordActive {
		if v&wordRef == 0 {
			w.Or(wordRef)
		}
		return true
	}
	t.unpin(r)
	return false
}

func (t *regionTable) unpin(r region) { t.word(r).Add(^uint32(wordPin - 1)) }

// pinAll pins every region of s or none.
func (t *regionTable) pinAll(s regionSpan) bool {
	for r := s.first; r < s.end; r++ {
		if !t.pin(r) {
			t.unpinAll(regionSpan{s.first, r})
			return false
		}
	}
	return true
}

func (t *regionTable) unpinAll(s regionSpan) {
	for r := s.first; r < s.end; r++ {
		t.unpin(r)
	}
}

// activate makes r active from whatever state. The caller has its record on
// stable storage, or the image's mark.
func (t *regionTable) activate(r region) {
	w := t.ensure(r)
	if w.Or(wordActive|wordRef)&wordState == 0 {
		t.active.Add(1)
	}
	w.And(^uint32(wordLeaving))
}

// rested clears the reference bit of r and says whether r is active, nobody is in
// it, and nobody was since the call before. Every change that begins after this
// sets the bit again; every earlier one has been answered.
//
// Leaving at the first call would cost a region that is written now and then a
// synced commit after every epoch.
func (t *regionTable) rested(r region) bool {
	w := t.word(r)
	return w != nil && w.And(^uint32(wordRef)) == wordActive
}

// depart moves r from active to leaving if nobody is in it or was since its
// reference bit was cleared.
func (t *regionTable) depart(r region) bool {
	w := t.word(r)
	return w != nil && w.CompareAndSwap(wordActive, wordLeaving)
}

// stay moves r from leaving back to active.
func (t *regionTable) stay(r region) {
	w := t.word(r)
	w.Or(wordActive)
	w.And(^uint32(wordLeaving))
}

// gone moves r from leaving to inactive, unless it was activated meanwhile
// under the image's mark.
func (t *regionTable) gone(r region) {
	w := t.word(r)
	for {
		v := w.Load()
		if v&wordState != wordLeaving {
			return
		}
		if w.CompareAndSwap(v, v&^(wordLeaving|wordRef)) {
			t.active.Add(-1)
			return
		}
	}
}

func (t *regionTable) state(r region) uint32 {
	if w := t.word(r); w != nil {
		return w.Load() & wordState
	}
	return 0
}

// end returns one past the highest region that has a word.
func (t *regionTable) end() region {
	if d := t.dir.Load(); d != nil {
		return region(len(*d)) * regionPage
	}
	return 0
}

// list returns the active and leaving regions in order.
func (t *regionTable) list() []region {
	var out []region
	for r := region(0); r < t.end(); r++ {
		if t.word(r) == nil {
			r += regionPage - 1 // end is a multiple of it: the rest of this page
			continue
		}
		if t.state(r) != 0 {
			out = append(out, r)
		}
	}
	return out
}

// pinned says whether any change is between Begin and End.
func (t *regionTable) pinned() bool {
	for _, r := range t.list() {
		if t.word(r).Load() >= wordPin {
			return true
		}
	}
	return false
}
