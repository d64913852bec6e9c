package fake

import (
	"maps"
	"slices"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	chunkSize  = 64 << 10
	chunkPages = chunkSize / target.PageSize
)

// owner is the identity a content has between two copies: a chunk with another
// owner is shared and is copied before it changes.
type owner struct{ _ byte }

// chunk is 64 KiB of a blob and which of its pages were written.
type chunk struct {
	owner   *owner
	written [chunkPages]bool
	data    [chunkSize]byte
}

// content is the sparse bytes of a page blob or a snapshot, copied by reference.
type content struct {
	size   int64
	owner  *owner
	chunks map[int64]*chunk
}

func newContent(size int64) content {
	return content{size: size, owner: new(owner), chunks: map[int64]*chunk{}}
}

// share returns a copy; both copy chunks before they change them from now on.
func (c *content) share() content {
	c.owner = new(owner)
	return content{size: c.size, owner: new(owner), chunks: maps.Clone(c.chunks)}
}

func (c *content) writable(i int64) *chunk {
	k := c.chunks[i]
	switch {
	case k == nil:
		k = &chunk{owner: c.owner}
	case k.owner != c.owner:
		copied := *k
		copied.owner = c.owner
		k = &copied
	default:
		return k
	}
	c.chunks[i] = k
	return k
}

// pieces cuts [off, off+n) at chunk borders: f gets the chunk's number, the
// offset within it, and which part of the range it is.
func pieces(off, n int64, f func(i, at, from, to int64)) {
	for done := int64(0); done < n; {
		i, at := (off+done)/chunkSize, (off+done)%chunkSize
		step := min(chunkSize-at, n-done)
		f(i, at, done, done+step)
		done += step
	}
}

func (c *content) write(off int64, p []byte) {
	pieces(off, int64(len(p)), func(i, at, from, to int64) {
		k := c.writable(i)
		copy(k.data[at:], p[from:to])
		k.mark(at, to-from, true)
	})
}

func (c *content) clear(off, n int64) {
	for _, i := range c.numbers() {
		start, end := max(i*chunkSize, off), min((i+1)*chunkSize, off+n)
		switch {
		case start >= end:
		case end-start == chunkSize:
			delete(c.chunks, i)
		default:
			k := c.writable(i)
			at := start - i*chunkSize
			clear(k.data[at : at+end-start])
			k.mark(at, end-start, false)
		}
	}
}

func (k *chunk) mark(at, n int64, written bool) {
	for p := at / target.PageSize; p < (at+n)/target.PageSize; p++ {
		k.written[p] = written
	}
}

func (c *content) read(off int64, p []byte) {
	pieces(off, int64(len(p)), func(i, at, from, to int64) {
		if k := c.chunks[i]; k != nil {
			copy(p[from:to], k.data[at:])
			return
		}
		clear(p[from:to])
	})
}

func (c *content) resize(size int64) {
	if size < c.size {
		c.clear(size, c.size-size)
	}
	c.size = size
}

func (c *content) numbers() []int64 { return slices.Sorted(maps.Keys(c.chunks)) }

// ranges are the written pages within [off, off+n), neighbours merged.
func (c *content) ranges(off, n int64) []target.ByteRange {
	var out []target.ByteRange
	for _, i := range c.numbers() {
		for p, written := range c.chunks[i].written {
			at := i*chunkSize + int64(p)*target.PageSize
			start, end := max(at, off), min(at+target.PageSize, off+n)
			if !written || start >= end {
				continue
			}
			if last := len(out) - 1; last >= 0 && out[last].End() == start {
				out[last].Len += end - start
				continue
			}
			out = append(out, target.ByteRange{Off: start, Len: end - start})
		}
	}
	return out
}
