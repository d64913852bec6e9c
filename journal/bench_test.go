package journal

import (
	"sync/atomic"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

func benchDisk(b *testing.B, store *memory.Store) (*VM, *Disk) {
	j, err := Open(store, Options{Saved: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	vm, err := j.VM("vm")
	if err != nil {
		b.Fatal(err)
	}
	f := newModelFile(1 << 20)
	d, err := vm.AddDisk("a", f, Identity{Ino: 1})
	if err != nil {
		b.Fatal(err)
	}
	for r := range int64(256) {
		c := extent.Change{Off: r * extent.RegionSize, Len: extent.RegionSize}
		p, err := d.Begin(c)
		if err != nil {
			b.Fatal(err)
		}
		d.End(c, p, nil)
	}
	return vm, d
}

// BenchmarkBeginEnd is a 4 KiB write on an active region, steady: the budget
// is 150 ns and no allocation.
func BenchmarkBeginEnd(b *testing.B) {
	_, d := benchDisk(b, &memory.Store{})
	c := extent.Change{Off: 5 << 20, Len: extent.BlockSize}
	b.ReportAllocs()
	for b.Loop() {
		p, _ := d.Begin(c)
		d.End(c, p, nil)
	}
}

func BenchmarkBeginEnd1MiB(b *testing.B) {
	_, d := benchDisk(b, &memory.Store{})
	c := extent.Change{Off: 5 << 20, Len: 1 << 20}
	b.ReportAllocs()
	for b.Loop() {
		p, _ := d.Begin(c)
		d.End(c, p, nil)
	}
}

// BenchmarkBeginEndContended: every CPU writes the same block.
func BenchmarkBeginEndContended(b *testing.B) {
	_, d := benchDisk(b, &memory.Store{})
	c := extent.Change{Off: 5 << 20, Len: extent.BlockSize}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			p, _ := d.Begin(c)
			d.End(c, p, nil)
		}
	})
}

// BenchmarkBeginEndParallel: every CPU writes a region of its own.
func BenchmarkBeginEndParallel(b *testing.B) {
	_, d := benchDisk(b, &memory.Store{})
	var next atomic.Int64
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		c := extent.Change{Off: next.Add(1) * extent.RegionSize, Len: extent.BlockSize}
		for pb.Next() {
			p, _ := d.Begin(c)
			d.End(c, p, nil)
		}
	})
}

// BenchmarkBeginEndSealed: the same while an epoch is outstanding whose list
// does not hold the block.
func BenchmarkBeginEndSealed(b *testing.B) {
	vm, d := benchDisk(b, &memory.Store{})
	s, err := vm.Seal(SealRequest{})
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Wait(b.Context()); err != nil {
		b.Fatal(err)
	}
	c := extent.Change{Off: 5 << 20, Len: extent.BlockSize}
	if err := s.Disks[0].ReadBlocks(c.Blocks(), make([]byte, extent.BlockSize)); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p, _ := d.Begin(c)
		d.End(c, p, nil)
	}
}
