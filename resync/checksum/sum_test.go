package checksum

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// oracle is the naive table: unknownEntry or the checksum.
type oracle []Sum

func (o oracle) sum() (Sum, bool) {
	return CombineBlocks(o), !slices.Contains(o, unknownEntry)
}

// after returns the oracle of a commit.
func (o oracle) after(blocks int, cs []Change) oracle {
	n := slices.Clone(o[:min(blocks, len(o))])
	for len(n) < blocks {
		n = append(n, ZeroBlock)
	}
	for _, c := range cs {
		for b := c.Range.Start; b < min(c.Range.End, extent.DiskBlock(blocks)); b++ {
			n[b] = (&values{sums: c.Sums, fill: ZeroBlock}).at(int(b - c.Range.Start))
		}
	}
	return n
}

// randomEpoch makes changes in order for a disk of that many blocks. Few
// different checksums, 0 among them, so that every transition occurs.
func randomEpoch(r *rand.Rand, blocks int) (cs []Change) {
	for at := r.IntN(blocks/4 + 1); at < blocks; at += 1 + r.IntN(blocks/4+1) {
		n := min(1+r.IntN(1+blocks/4), blocks-at)
		c := Change{Range: dr(extent.DiskBlock(at), extent.DiskBlock(at+n))}
		if r.IntN(3) > 0 {
			for range n {
				c.Sums = append(c.Sums, Sum(r.IntN(4)))
			}
		} else if at+n == blocks {
			c.Range.End += 10 // the zero extent of a shrink
		}
		cs = append(cs, c)
		at += n
	}
	return cs
}

// size is near the borders of pages, where mistakes live.
func size(r *rand.Rand) int {
	return []int{1, 9, pageEntries - 1, pageEntries, pageEntries + 1, 2*pageEntries + 40, 20, 700}[r.IntN(8)]
}

func TestTableEqualsOracle(t *testing.T) {
	const seed = 31
	r := rand.New(rand.NewPCG(seed, 0))
	table, path := create(t, 9)
	o := slices.Repeat(oracle{unknownEntry}, 9)
	for epoch := uint64(1); epoch < 400; epoch++ {
		n := size(r)
		cs := randomEpoch(r, n)
		expected := o.after(n, cs)
		s, known, err := table.SumAfter(extent.DiskBlock(n), list(cs...))
		must(t, err)
		wantSum, wantKnown := expected.sum()
		if known != wantKnown || known && s != wantSum {
			t.Fatalf("seed %d, epoch %d: sum after is %x %v, expected %x %v", seed, epoch, s, known, wantSum, wantKnown)
		}
		must(t, table.Commit(epoch, extent.DiskBlock(n), list(cs...)))
		o = expected
		if s, known := table.DiskSum(); known != wantKnown || known && s != wantSum {
			t.Fatalf("seed %d, epoch %d: sum is %x %v, expected %x %v", seed, epoch, s, known, wantSum, wantKnown)
		}
		switch r.IntN(6) {
		case 0:
			b := extent.DiskBlock(r.IntN(n))
			must(t, table.Forget(dr(b, b+3)))
			for i := range o[b:min(n, int(b)+3)] {
				o[int(b)+i] = unknownEntry
			}
		case 1:
			b := extent.DiskBlock(r.IntN(n))
			must(t, table.Learn(single(b), []Sum{0}))
			o[b] = 0
		case 2:
			table = reopen(t, table, path)
		}
		want(t, table, o...)
		must(t, table.Check())
	}
}

// The checksum of the table is the checksum of the bytes it stands for.
func TestDiskSumIsTheSumOfTheBytes(t *testing.T) {
	r := rand.New(rand.NewPCG(32, 0))
	disk := randomBytes(r, 40*extent.BlockSize)
	clear(disk[9*extent.BlockSize : 20*extent.BlockSize])
	table, _ := create(t, 40)
	must(t, table.Commit(1, 40, list(sums(0, Blocks(nil, disk)...))))
	for epoch := uint64(2); epoch < 20; epoch++ {
		block := r.IntN(40)
		p := disk[block*extent.BlockSize:][:extent.BlockSize]
		binary.LittleEndian.PutUint64(p[r.IntN(500)*8:], r.Uint64())
		must(t, table.Commit(epoch, 40, list(sums(extent.DiskBlock(block), Of(p)))))
		if s, ok := table.DiskSum(); s != Of(disk) || !ok {
			t.Fatalf("epoch %d: %x %v, expected %x", epoch, s, ok, Of(disk))
		}
	}
}

func bigTable(b *testing.B, blocks extent.DiskBlock) *Table {
	table, err := CreateTable(b.TempDir()+"/table", blocks)
	if err == nil {
		err = table.Commit(1, blocks, list(Change{Range: dr(0, blocks)}))
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { table.Close() })
	return table
}

// 64 GiB of disk.
const bigBlocks = 1 << 24

func BenchmarkRecombine64GiB(b *testing.B) {
	table := bigTable(b, bigBlocks)
	for b.Loop() {
		table.update.summed = false
		table.DiskSum()
	}
}

func BenchmarkOpen64GiB(b *testing.B) {
	table := bigTable(b, bigBlocks)
	for b.Loop() {
		again, err := OpenTable(table.path)
		if err != nil {
			b.Fatal(err)
		}
		again.Close()
	}
}

// An epoch of 10,000 random blocks of 64 GiB: its sum, then the commit.
func BenchmarkEpochOf10000RandomBlocks(b *testing.B) {
	table := bigTable(b, bigBlocks)
	table.DiskSum()
	r := rand.New(rand.NewPCG(33, 0))
	for epoch := uint64(2); b.Loop(); epoch++ {
		var set extent.Bitmap[extent.DiskBlock]
		for range 10000 {
			set.Set(single(extent.DiskBlock(r.IntN(bigBlocks))))
		}
		var cs []Change
		for run := range set.Ranges(dr(0, bigBlocks), 1) {
			cs = append(cs, Change{run, []Sum{Sum(r.Uint64())}})
		}
		if _, _, err := table.SumAfter(bigBlocks, list(cs...)); err != nil {
			b.Fatal(err)
		}
		if err := table.Commit(epoch, bigBlocks, list(cs...)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEntriesOfAChunk(b *testing.B) {
	table := bigTable(b, 1<<20)
	var dst []Entry
	b.ReportAllocs()
	for i := extent.DiskBlock(0); b.Loop(); i = (i + 256) % (1 << 20) {
		dst, _ = table.Entries(dr(i, i+256), dst[:0])
	}
}
