package chain

import (
	"iter"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// Size is the size of the virtual disk in bytes: the leaf's.
func (c *Chain) Size() int64 { return c.disk.Size() }

// ReadAt reads the virtual disk, as io.ReaderAt says.
func (c *Chain) ReadAt(p []byte, off int64) (int, error) { return c.disk.ReadAt(p, off) }

var _ image.Parent = (*Chain)(nil)

// Extent is a half-open run of bytes of the virtual disk and where they lie. From is image.FromZeros or image.FromFile;
// Member, of Chain.Members, and File are set with the latter.
type Extent struct {
	Disk   image.DiskOffset
	Len    int64
	From   image.Source
	Member int
	File   image.FileOffset
}

func (e Extent) joins(n Extent) bool {
	return e.From == n.From && (e.From != image.FromFile || e.Member == n.Member && e.File+image.FileOffset(e.Len) == n.File)
}

// Extents yields the bytes [off, off+n) of the virtual disk in order, clipped to it, neighbours from one place merged.
func (c *Chain) Extents(off image.DiskOffset, n int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		var run Extent
		for e := range c.from(0, off, n) {
			if run.Len > 0 && run.joins(e) {
				run.Len += e.Len
				continue
			}
			if run.Len > 0 && !yield(run) {
				return
			}
			run = e
		}
		if run.Len > 0 {
			yield(run)
		}
	}
}

// from yields what a member and those below it have of a range. What lies past the end of a member that is shorter than its
// child is zeros.
func (c *Chain) from(member int, off image.DiskOffset, n int64) iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		end := off
		for e := range c.Members[member].Table.Extents(off, n) {
			end = e.Disk + image.DiskOffset(e.Len)
			if e.From != image.FromParent {
				if !yield(Extent{e.Disk, e.Len, e.From, member, e.File}) {
					return
				}
				continue
			}
			for below := range c.from(member+1, e.Disk, e.Len) {
				if !yield(below) {
					return
				}
			}
		}
		if rest := int64(off) + n - int64(end); rest > 0 && member > 0 {
			yield(Extent{Disk: end, Len: rest})
		}
	}
}
