package chain

import (
	"iter"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// pair is one run of the disk and where it lies in two chains.
type pair struct{ now, was Extent }

// pairs cuts two sequences of extents over the same range so that each run is one in both.
func pairs(now, was iter.Seq[Extent]) iter.Seq[pair] {
	return func(yield func(pair) bool) {
		next, stop := iter.Pull(was)
		defer stop()
		b, ok := next()
		for a := range now {
			for a.Len > 0 && ok {
				n := min(a.Len, b.Len)
				if !yield(pair{a.head(n), b.head(n)}) {
					return
				}
				a, b = a.tail(n), b.tail(n)
				if b.Len == 0 {
					b, ok = next()
				}
			}
		}
	}
}

func (e Extent) head(n int64) Extent { e.Len = n; return e }

func (e Extent) tail(n int64) Extent {
	e.Disk += image.DiskOffset(n)
	e.Len -= n
	if e.From == image.FromFile {
		e.File += image.FileOffset(n)
	}
	return e
}
