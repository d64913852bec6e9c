package extent

import (
	"iter"
	"math/bits"
	"sync"
	"sync/atomic"
)

const (
	pageBlocks = 1 << 15 // bits of a page: 128 MiB of disk in 4 KiB of memory
	pageWords  = pageBlocks / 64
)

// page is the leaf level of a Bitmap.
type page [pageWords]atomic.Uint64

// directory is the upper level: page i holds the blocks from i*pageBlocks on.
type directory []atomic.Pointer[page]

// Bitmap is a set of blocks for concurrent use: the change set of a disk, the
// capture list, the unknown entries of a table. The zero value is empty and
// ready; it must not be copied. Block numbers must not be negative; there is no
// upper bound, memory is 4 KiB for each 128 MiB of disk with a bit ever set.
//
// Every method may be called at any time. Test, Any and a Set that finds its
// bits set only load: no lock, no store, no allocation, so that a guest
// rewriting the same blocks on many CPUs shares its cache lines. Operations on
// ranges are atomic word by word, not as a whole.
type Bitmap[B Block] struct {
	dir atomic.Pointer[directory]
	_   [56]byte // the counter changes with each new bit: keep its cache line off dir's
	n   atomic.Int64
	_   [56]byte

	// mu guards every change of *which* pages there are: dir and the pointers in
	// it. A page pointer stored into a directory that is being copied would be
	// lost. No I/O under it.
	mu struct {
		sync.Mutex
		pages int64
	}
}

// page returns the page that holds block b, nil if there is none.
func (m *Bitmap[B]) page(b B) *page {
	d := m.dir.Load()
	if d == nil || int64(b)/pageBlocks >= int64(len(*d)) {
		return nil
	}
	return (*d)[int64(b)/pageBlocks].Load()
}

// grow returns the page that holds block b, made if there is none.
func (m *Bitmap[B]) grow(b B) *page {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := int(int64(b) / pageBlocks)
	var old directory
	if d := m.dir.Load(); d != nil {
		old = *d
	}
	if i >= len(old) {
		wider := make(directory, max(i+1, 2*len(old)))
		for k := range old {
			wider[k].Store(old[k].Load())
		}
		m.dir.Store(&wider)
		old = wider
	}
	p := old[i].Load()
	if p == nil {
		p = new(page)
		old[i].Store(p)
		m.mu.pages++
	}
	return p
}

// limit cuts r to the blocks that have a place in the directory.
func (m *Bitmap[B]) limit(r Range[B]) Range[B] {
	d := m.dir.Load()
	if d == nil {
		return Range[B]{}
	}
	return r.Intersect(Range[B]{0, B(len(*d)) * pageBlocks})
}

// cut returns the part of r in the page of its first block, as bit numbers of
// that page.
func cut[B Block](r Range[B]) (lo, hi int) {
	lo = int(int64(r.Start) % pageBlocks)
	return lo, int(min(pageBlocks, int64(lo)+r.Len()))
}

// mask returns the bits [lo, hi) that lie in lo's word, and their number.
func mask(lo, hi int) (m uint64, n int) {
	n = min(64-lo%64, hi-lo)
	return ^uint64(0) >> (64 - n) << (lo % 64), n
}

// Set puts the blocks of r into the set.
func (m *Bitmap[B]) Set(r Range[B]) { m.SetIfClear(r) }

// SetIfClear puts the blocks of r into the set and returns how many of them
// this call added: of concurrent calls for one block exactly one counts it.
func (m *Bitmap[B]) SetIfClear(r Range[B]) (added int64) {
	for !r.Empty() {
		p := m.page(r.Start)
		if p == nil {
			p = m.grow(r.Start)
		}
		lo, hi := cut(r)
		added += p.set(lo, hi)
		r.Start += B(hi - lo)
	}
	if added != 0 {
		m.n.Add(added)
	}
	return added
}

func (p *page) set(lo, hi int) (added int64) {
	for lo < hi {
		w, n := mask(lo, hi)
		if word := &p[lo/64]; word.Load()&w != w {
			added += int64(bits.OnesCount64(w &^ word.Or(w)))
		}
		lo += n
	}
	return added
}

// Clear takes the blocks of r out of the set. Memory stays; see Reset.
func (m *Bitmap[B]) Clear(r Range[B]) {
	var gone int64
	for r = m.limit(r); !r.Empty(); {
		lo, hi := cut(r)
		if p := m.page(r.Start); p != nil {
			gone += p.clear(lo, hi)
		}
		r.Start += B(hi - lo)
	}
	if gone != 0 {
		m.n.Add(-gone)
	}
}

func (p *page) clear(lo, hi int) (gone int64) {
	for lo < hi {
		w, n := mask(lo, hi)
		if word := &p[lo/64]; word.Load()&w != 0 {
			gone += int64(bits.OnesCount64(w & word.And(^w)))
		}
		lo += n
	}
	return gone
}

// ClearOne takes block b out of the set. It returns true if this call did it:
// of concurrent calls exactly one does.
func (m *Bitmap[B]) ClearOne(b B) bool {
	p := m.page(b)
	if p == nil {
		return false
	}
	at := int(int64(b) % pageBlocks)
	if p.clear(at, at+1) == 0 {
		return false
	}
	m.n.Add(-1)
	return true
}

// Test says whether block b is in the set.
func (m *Bitmap[B]) Test(b B) bool {
	p := m.page(b)
	if p == nil {
		return false
	}
	at := int64(b) % pageBlocks
	return p[at/64].Load()>>(at%64)&1 != 0
}

// Any says whether any block of r is in the set.
func (m *Bitmap[B]) Any(r Range[B]) bool {
	for r = m.limit(r); !r.Empty(); {
		lo, hi := cut(r)
		if p := m.page(r.Start); p != nil && p.next(lo, hi) < hi {
			return true
		}
		r.Start += B(hi - lo)
	}
	return false
}

// next returns the first set bit in [lo, hi), hi if there is none.
func (p *page) next(lo, hi int) int {
	for lo < hi {
		w, n := mask(lo, hi)
		if w &= p[lo/64].Load(); w != 0 {
			return lo&^63 + bits.TrailingZeros64(w)
		}
		lo += n
	}
	return hi
}

// end returns the first clear bit in [lo, hi), hi if there is none.
func (p *page) end(lo, hi int) int {
	for lo < hi {
		w, n := mask(lo, hi)
		if w &^= p[lo/64].Load(); w != 0 {
			return lo&^63 + bits.TrailingZeros64(w)
		}
		lo += n
	}
	return hi
}

// Count returns the number of blocks in the set. It is maintained, so it costs
// one load; while others change the set it may lag behind their bits.
func (m *Bitmap[B]) Count() int64 { return m.n.Load() }

// CountIn returns the number of blocks of r in the set, counted bit by bit.
func (m *Bitmap[B]) CountIn(r Range[B]) int64 {
	var n int64
	for run := range m.Ranges(r, 0) {
		n += run.Len()
	}
	return n
}

// Ranges returns the maximal runs of blocks inside within, in order, each cut
// every maxRun blocks from its start if maxRun > 0. It is weakly consistent: a
// block that is in the set, or not in it, throughout the iteration is reported
// so; one that changes meanwhile may be reported either way, but never twice.
func (m *Bitmap[B]) Ranges(within Range[B], maxRun int64) iter.Seq[Range[B]] {
	return func(yield func(Range[B]) bool) {
		for rest := m.limit(within); ; {
			run := m.run(rest)
			if run.Empty() {
				return
			}
			rest.Start = run.End
			for maxRun > 0 && run.Len() > maxRun {
				if !yield(Range[B]{run.Start, run.Start + B(maxRun)}) {
					return
				}
				run.Start += B(maxRun)
			}
			if !yield(run) {
				return
			}
		}
	}
}

// run returns the first maximal run inside r, an empty range if there is none.
func (m *Bitmap[B]) run(r Range[B]) Range[B] {
	for !r.Empty() {
		lo, hi := cut(r)
		at := hi
		if p := m.page(r.Start); p != nil {
			at = p.next(lo, hi)
		}
		r.Start += B(at - lo)
		if at < hi {
			return Range[B]{r.Start, m.runEnd(r)}
		}
	}
	return Range[B]{}
}

// runEnd returns the first block of r that is not in the set, r.End if all are.
func (m *Bitmap[B]) runEnd(r Range[B]) B {
	for first := true; !r.Empty(); first = false {
		p := m.page(r.Start)
		if p == nil {
			break
		}
		lo, hi := cut(r)
		if first {
			lo++ // found set a moment ago; it belongs to the run even if it is clear by now
			r.Start++
		}
		at := p.end(lo, hi)
		r.Start += B(at - lo)
		if at < hi {
			break
		}
	}
	return r.Start
}

// Or puts every block of o into the set.
func (m *Bitmap[B]) Or(o *Bitmap[B]) {
	d := o.dir.Load()
	if d == nil {
		return
	}
	var added int64
	for i := range *d {
		if from := (*d)[i].Load(); from != nil {
			added += m.orPage(B(i)*pageBlocks, from)
		}
	}
	m.n.Add(added)
}

func (m *Bitmap[B]) orPage(start B, from *page) (added int64) {
	var to *page
	for i := range from {
		w := from[i].Load()
		if w == 0 {
			continue
		}
		if to == nil { // an empty page of o must not cost one here
			if to = m.page(start); to == nil {
				to = m.grow(start)
			}
		}
		if to[i].Load()&w != w {
			added += int64(bits.OnesCount64(w &^ to[i].Or(w)))
		}
	}
	return added
}

// Clone returns a copy; weakly consistent like Ranges.
func (m *Bitmap[B]) Clone() *Bitmap[B] {
	c := new(Bitmap[B])
	c.Or(m)
	return c
}

// Reset empties the set and gives its memory back. Unlike the others it must
// not run beside a change: that change could be lost and leave Count wrong.
func (m *Bitmap[B]) Reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dir.Store(nil)
	m.n.Store(0)
	m.mu.pages = 0
}

// Memory returns the bytes of heap the set holds.
func (m *Bitmap[B]) Memory() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	var dir int64
	if d := m.dir.Load(); d != nil {
		dir = int64(len(*d)) * 8
	}
	return m.mu.pages*pageWords*8 + dir
}

// End returns one past the highest block in the set, 0 if it is empty.
func (m *Bitmap[B]) End() B {
	d := m.dir.Load()
	if d == nil {
		return 0
	}
	for i := len(*d) - 1; i >= 0; i-- {
		p := (*d)[i].Load()
		for w := pageWords - 1; p != nil && w >= 0; w-- {
			if bit := bits.Len64(p[w].Load()); bit != 0 {
				return B(i)*pageBlocks + B(w*64+bit)
			}
		}
	}
	return 0
}
