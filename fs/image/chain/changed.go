package chain

import (
	"fmt"
	"slices"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Mark is what identifies a member in a later chain. It can be stored as JSON.
type Mark struct {
	Name   string       `json:"name"`
	Format image.Format `json:"format"`
	ID     string       `json:"id"` // as Member.IDText
	Stat   Stat         `json:"stat"`
}

// Identity is what a chain was at one moment, the leaf first.
type Identity []Mark

// Identity of the chain.
func (c *Chain) Identity() Identity {
	all := make(Identity, len(c.Members))
	for i, m := range c.Members {
		all[i] = Mark{m.Name, m.Info.Format, m.IDText(), m.Stat}
	}
	return all
}

// hasLink says whether the child lay over this parent then.
func (id Identity) hasLink(child, parent Member) bool {
	for i := 1; i < len(id); i++ {
		if id[i-1].Stat.SameFile(child.Stat) && id[i].Stat.SameFile(parent.Stat) && id[i].ID == parent.IDText() {
			return true
		}
	}
	return false
}

// Change is what became of a chain between two moments.
type Change string

// The changes of a chain. What they do to the disk, Chain.Changed says.
const (
	Same    Change = "same"     // the same files, none below the leaf written
	Renamed Change = "renamed"  // as Same, under other names
	Written Change = "written"  // the same files, one below the leaf was written
	NewLeaf Change = "new leaf" // a snapshot: the former leaf is a parent now
	Merged  Change = "merged"   // images are gone out of the middle, or the leaf into its parent
	Other   Change = "other"    // another chain
)

// Compare says what became of the chain that was prev.
func (id Identity) Compare(prev Identity) Change {
	same := func(a, b Mark) bool { return a.Stat.SameFile(b.Stat) }
	switch n, p := len(id), len(prev); {
	case n == 0 || p == 0:
		return Other
	case n == p && slices.EqualFunc(id, prev, same):
		return id.inPlace(prev)
	case n > p && slices.EqualFunc(id[n-p:], prev, same):
		return NewLeaf
	case n < p && same(id[n-1], prev[p-1]) && id.within(prev):
		return Merged
	}
	return Other
}

func (id Identity) inPlace(prev Identity) Change {
	renamed := id[0].Name != prev[0].Name
	for i := 1; i < len(id); i++ {
		a, b := id[i], prev[i]
		if a.Stat.Size != b.Stat.Size || !a.Stat.Modified.Equal(b.Stat.Modified) || a.ID != b.ID {
			return Written
		}
		renamed = renamed || a.Name != b.Name
	}
	if renamed {
		return Renamed
	}
	return Same
}

// within says whether all of id are in prev, in that order.
func (id Identity) within(prev Identity) bool {
	for _, m := range id {
		k := slices.IndexFunc(prev, func(p Mark) bool { return p.Stat.SameFile(m.Stat) })
		if k < 0 {
			return false
		}
		prev = prev[k+1:]
	}
	return true
}

// String tells the chain in one line: "leaf.vhd over base.vhd".
func (id Identity) String() (text string) {
	for i, m := range id {
		if i > 0 {
			text += " over "
		}
		text += m.Name
	}
	return text
}

// Disk is the whole virtual disk in blocks.
func (c *Chain) Disk() extent.Range[extent.DiskBlock] {
	return extent.Cover[extent.DiskBlock](0, c.Size())
}

// Changed returns the disk blocks that may read differently from what they read when the chain was prev, rounded outward.
// written tells of each member that prev had as well which of its file blocks were written since; whole if that is not
// known. It never misses a block if written misses none, and names one only if a byte of it comes from another place than
// before or from a file block that was written. So a new leaf changes nothing by itself, a merge what was moved, a
// parent that became another all that is read from it. Only Members of prev need be there, it may be closed.
func (c *Chain) Changed(prev *Chain, written func(Member) extent.Set[extent.FileBlock]) extent.Set[extent.DiskBlock] {
	changed, seen := c.moved(prev)
	for i, m := range c.Members {
		k := prev.index(m)
		if k < 0 || seen[i].Empty() {
			continue
		}
		files := written(m).Union(m.Table.Replayed()).Union(prev.Members[k].Table.Replayed())
		changed = changed.Union(m.Table.DiskBlocks(files).Intersect(seen[i]))
	}
	return changed
}

// index is which member the file of m is, -1 for none.
func (c *Chain) index(m Member) int {
	return slices.IndexFunc(c.Members, func(o Member) bool { return o.Stat.SameFile(m.Stat) })
}

// moved returns the disk blocks that come from elsewhere, and of each member those that still come from where they were.
func (c *Chain) moved(prev *Chain) (changed extent.Set[extent.DiskBlock], seen []extent.Set[extent.DiskBlock]) {
	seen = make([]extent.Set[extent.DiskBlock], len(c.Members))
	now, was, size := c.Members[0].Table.VirtualSize, prev.Members[0].Table.VirtualSize, int64(0)
	if size = min(now, was); now != was {
		changed.Add(extent.Cover[extent.DiskBlock](max(size-1, 0), max(now, was)-size+1).Intersect(c.Disk()))
	}
	same := make([]int, len(c.Members)) // in prev
	for i, m := range c.Members {
		same[i] = prev.index(m)
	}
	for p := range pairs(c.from(0, 0, size), prev.from(0, 0, size)) {
		r := extent.Cover[extent.DiskBlock](int64(p.now.Disk), p.now.Len)
		switch {
		case p.now.From == image.FromZeros && p.was.From == image.FromZeros:
		case p.now.From == p.was.From && same[p.now.Member] == p.was.Member && p.now.File == p.was.File:
			seen[p.now.Member].Add(r)
		default:
			changed.Add(r)
		}
	}
	return changed, seen
}

// Describe tells what a chain became, for a log.
func (id Identity) Describe(prev Identity) string {
	return fmt.Sprintf("%s: %v, was %v", id.Compare(prev), id, prev)
}
