package checksum

import (
	"encoding/binary"
	"iter"
	"math/bits"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

const (
	pageEntries   = 4096 / entrySize
	windowEntries = 64 * pageEntries // one bit of a word for each page
)

type diskRange = extent.Range[extent.DiskBlock]

func single(b extent.DiskBlock) diskRange { return diskRange{Start: b, End: b + 1} }

// window holds the pages of one stretch of the table's file while an update
// works there, so that neighbouring changes cost one read and one write, and a
// page in which nothing changes costs none. Outside an update no page is dirty.
type window struct {
	start         extent.DiskBlock
	raw           []byte
	loaded, dirty uint64             // bit i: page i
	zeros         []extent.DiskBlock // blocks of checksum 0 not yet in the side list
}

// at returns the raw entry of block b.
func (w *window) at(b extent.DiskBlock) []byte {
	return w.raw[int64(b-w.start)*entrySize:][:entrySize]
}

// pages returns the bits of the pages of r.
func (w *window) pages(r diskRange) uint64 {
	lo := int64(r.Start-w.start) / pageEntries
	hi := (int64(r.End-w.start)-1)/pageEntries + 1
	return ^uint64(0) >> (64 - (hi - lo)) << lo
}

// runs yields the runs of set bits as pages [lo, hi).
func runs(set uint64) iter.Seq2[int, int] {
	return func(yield func(lo, hi int) bool) {
		for set != 0 {
			lo := bits.TrailingZeros64(set)
			hi := lo + bits.TrailingZeros64(^(set >> lo))
			if !yield(lo, hi) || hi == 64 {
				return
			}
			set = set >> hi << hi
		}
	}
}

// moveLocked makes the window hold the pages of r, which lies in one window.
func (t *Table) moveLocked(r diskRange) error {
	w := &t.update.window
	if w.raw == nil {
		w.raw = make([]byte, windowEntries*entrySize)
	}
	if start := r.Start / windowEntries * windowEntries; start != w.start {
		if err := t.flushLocked(); err != nil {
			return err
		}
		w.start, w.loaded = start, 0
	}
	for lo, hi := range runs(w.pages(r) &^ w.loaded) {
		at := w.start + extent.DiskBlock(lo*pageEntries)
		if err := t.readRaw(at, w.raw[lo*4096:hi*4096]); err != nil {
			return err
		}
	}
	w.loaded |= w.pages(r)
	return nil
}

// flushLocked writes the dirty pages. What must be durable before an entry
// reads as a checksum of 0, the side list, is made so first.
func (t *Table) flushLocked() error {
	w := &t.update.window
	if err := t.listZerosLocked(); err != nil {
		return err
	}
	for lo, hi := range runs(w.dirty) {
		start := w.start + extent.DiskBlock(lo*pageEntries)
		raw := w.raw[lo*4096 : hi*4096]
		if err := t.writeRaw(start, raw); err != nil {
			return err
		}
		t.settleLocked(start, raw)
	}
	w.dirty = 0
	return nil
}

func (t *Table) writeRaw(start extent.DiskBlock, raw []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, err := t.f.WriteAt(raw, entriesStart+int64(start)*entrySize)
	return err
}

// settleLocked brings unknown in line with entries just written. The entries
// of a page past the end of the table mean nothing and get no bit.
func (t *Table) settleLocked(start extent.DiskBlock, raw []byte) {
	r := diskRange{Start: start, End: start + extent.DiskBlock(len(raw)/entrySize)}
	r = r.Intersect(diskRange{End: t.update.header.blocks})
	known := r.Start
	for run := range zeroRuns(start, raw[:r.Len()*entrySize]) {
		t.unknown.Clear(diskRange{Start: known, End: run.Start})
		known = run.End
		for b := run.Start; b < run.End; b++ {
			if !t.mu.side.Test(b) {
				t.unknown.Set(single(b))
			}
		}
	}
	t.unknown.Clear(diskRange{Start: known, End: r.End})
}

// zeroRuns yields the runs of entries that are 0, as blocks.
func zeroRuns(start extent.DiskBlock, raw []byte) iter.Seq[diskRange] {
	return func(yield func(diskRange) bool) {
		for i := 0; i < len(raw); i += entrySize {
			if binary.LittleEndian.Uint64(raw[i:]) != 0 {
				continue
			}
			run := diskRange{Start: start + extent.DiskBlock(i/entrySize)}
			for i += entrySize; i < len(raw) && binary.LittleEndian.Uint64(raw[i:]) == 0; {
				i += entrySize
			}
			run.End = start + extent.DiskBlock(i/entrySize)
			if !yield(run) {
				return
			}
		}
	}
}

// values are the new entries of a range: sums, or every block fill.
type values struct {
	sums   []Sum
	fill   Sum
	forget bool // a 0 means unknown, not a checksum of 0
	fresh  bool // the entries in the file are none yet: past the end of the table
}

func (v *values) at(i int) Sum {
	if v.sums == nil {
		return v.fill
	}
	return v.sums[i]
}

// putLocked puts new entries into the windows of r, and their effect into sum.
// Writing the last window is up to the caller.
func (t *Table) putLocked(r diskRange, v values) error {
	for piece := range r.Split(windowEntries) {
		if err := t.moveLocked(piece); err != nil {
			return err
		}
		delta := t.update.window.put(piece, v)
		if v.sums != nil {
			v.sums = v.sums[piece.Len():]
		}
		if t.update.summed && delta != 0 {
			t.update.sum ^= shift(delta, int64(t.update.header.blocks-piece.End)*extent.BlockSize)
		}
	}
	return nil
}

// put writes the entries of r, which the window holds, and returns the checksum
// of old xor new.
func (w *window) put(r diskRange, v values) (delta Sum) {
	for i := range int(r.Len()) {
		b := r.Start + extent.DiskBlock(i)
		raw, s := w.at(b), v.at(i)
		old := Sum(binary.LittleEndian.Uint64(raw))
		if old != s {
			binary.LittleEndian.PutUint64(raw, uint64(s))
			w.dirty |= 1 << (int64(b-w.start) / pageEntries)
		}
		if s == 0 && !v.forget {
			w.zeros = append(w.zeros, b)
		}
		if v.fresh {
			old = 0
		}
		delta = next(delta) ^ old ^ s
	}
	return delta
}
