package image_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/fs/image/vhd"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// smallTable has each state of a block, bits, a place of a sector bitmap, and something of a log.
func smallTable(t testing.TB) *image.Table {
	t.Helper()
	b := image.NewBuilder(image.Shape{Format: image.VHDXDifferencing, VirtualSize: 5*4096 - 512, BlockSize: 4096, Sector: 512, FileSize: 2 << 20,
		Parent: [16]byte{1, 15: 9}, Differencing: true, Fixed: []image.FileRange{{Name: "top", Start: 0, End: 8192}},
		TableOffset: 4096, EntrySize: 8, ChunkRatio: 8})
	b.Zero(1)
	b.Full(2, 16384)
	b.Partial(3, 12288, []byte{0x81})
	b.Partial(4, 20480, []byte{0})
	b.Chunks([]image.FileOffset{1 << 20})
	var log extent.Set[extent.FileBlock]
	log.Add(extent.Range[extent.FileBlock]{Start: 3, End: 4})
	b.Replayed(log)
	table, err := b.Table()
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// The format as it is in files: never change it.
const goldenTable = "766864727461626c0100000006000000004e000000000000001000000000000000020000000000000000200000000000001000000000000008000000" +
	"000000000800000000000000000000000000000001000000000000000000000000000009010000000100000001000000010000000100000000000000" +
	"00000000002000000000000003746f700000000000000000010000000000000002400000000000000330000000000000045000000000000000001000" +
	"0000000003000000000000008103000000000000000400000000000000"

func encode(t testing.TB, table *image.Table) []byte {
	t.Helper()
	b, err := table.AppendBinary(nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestGoldenBytesOfATable(t *testing.T) {
	if got := hex.EncodeToString(encode(t, smallTable(t))); got != goldenTable {
		t.Fatalf("the format has changed:\n%s", got)
	}
	b, err := hex.DecodeString(goldenTable)
	if err != nil {
		t.Fatal(err)
	}
	table, err := image.DecodeTable(b)
	if err != nil || !table.Equal(smallTable(t)) {
		t.Fatalf("%+v, %v", table, err)
	}
}

func TestDamagedTableIsRefused(t *testing.T) {
	good := encode(t, smallTable(t))
	for n := range good {
		if _, err := image.DecodeTable(good[:n]); !errors.Is(err, image.ErrTruncated) && !errors.Is(err, image.ErrInvalid) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
	change := func(at int, to ...byte) []byte { b := bytes.Clone(good); copy(b[at:], to); return b }
	for what, c := range map[string]struct {
		b    []byte
		want error
	}{
		"magic":             {change(0, 'x'), image.ErrMagic},
		"version":           {change(8, 2), image.ErrVersion},
		"format":            {change(12, 99), image.ErrInvalid},
		"more blocks":       {change(16, 0, 0, 0, 0, 1), image.ErrTruncated},
		"no sector":         {change(32, 0, 0), image.ErrInvalid},
		"behind":            {append(bytes.Clone(good), 0), image.ErrInvalid},
		"state":             {change(116+20+16, 9), image.ErrInvalid},
		"over each other":   {change(116+20+16+1, 0x30), image.ErrInvalid}, // block 2 to where block 3 lies
		"bits of no block":  {change(len(good)-16-9, 2), image.ErrInvalid},
		"bits that say all": {change(len(good)-16-1, 0xff), image.ErrInvalid},
	} {
		if _, err := image.DecodeTable(c.b); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
	}
}

// open opens an image by its content.
func open(t testing.TB, b []byte) (*image.Table, *image.Disk) {
	t.Helper()
	if bytes.HasPrefix(b, []byte("vhdxfile")) {
		i, err := vhdx.Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		return i.Table, i.Disk(nil)
	}
	i, err := vhd.Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i.Table, i.Disk(nil)
}

// A layout finds the same disk as the reader, also when the table has been encoded in between; what the file has lost is zeros.
func TestLayoutReadsThroughATable(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 0))
	small, large := imagetest.NewVHDLayer(700<<10, 64<<10, 1, nil, ""), imagetest.NewVHDXLayer(5<<20+512, 512, 1, nil, "")
	for range 40 {
		small.Change(rnd)
		large.Change(rnd)
	}
	for _, c := range []struct{ file, model []byte }{{small.File(), small.Model}, {large.B, large.Model}} {
		table, _ := open(t, c.file)
		again, err := image.DecodeTable(encode(t, table))
		if err != nil || !again.Equal(table) {
			t.Fatalf("not the same table: %v", err)
		}
		l := again.Layout()
		got := make([]byte, l.Disk().Bytes())
		if err := l.ReadDisk(bytes.NewReader(c.file), l.Disk(), got); err != nil || !bytes.Equal(got[:len(c.model)], c.model) || bytes.Count(got[len(c.model):], []byte{0}) != len(got)-len(c.model) {
			t.Fatalf("%s: not the disk, or something behind its end: %v", table.Format, err)
		}
		if err := l.ReadDisk(bytes.NewReader(nil), l.Disk(), got); err != nil || bytes.Count(got, []byte{0}) != len(got) {
			t.Fatalf("%s: an empty file: %v", table.Format, err)
		}
		all := extent.Cover[extent.FileBlock](0, int64(len(c.file)))
		if !l.CutOff(all).Empty() || !l.DiskBlocks(all).Contains(l.DiskBlocks(all).Ranges()[0]) {
			t.Fatalf("%s: %v", table.Format, l.CutOff(all))
		}
	}
}

// FuzzDecodeTable: what is taken is a table that can be encoded again, and no memory is taken that the bytes do not justify.
func FuzzDecodeTable(f *testing.F) {
	good := encode(f, smallTable(f))
	f.Add(good)
	f.Add(good[:130])
	long := bytes.Clone(good)
	binary.LittleEndian.PutUint64(long[16:], 1<<45)
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := image.DecodeTable(b)
		if err != nil {
			return
		}
		again, err := image.DecodeTable(encode(t, table))
		if err != nil || !again.Equal(table) {
			t.Fatalf("%v", err)
		}
	})
}

// Tables that differ in anything that is encoded are not equal.
func TestTablesThatDiffer(t *testing.T) {
	build := func(change func(*image.Builder)) *image.Table {
		b := image.NewBuilder(image.Shape{Format: image.VHDXDynamic, VirtualSize: 4 * 4096, BlockSize: 4096, Sector: 512, FileSize: 4 << 20, TableOffset: 4096, EntrySize: 8})
		b.Full(0, 1<<20)
		b.Partial(1, 2<<20, []byte{0x81})
		change(b)
		table, err := b.Table()
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	same := func(*image.Builder) {}
	shaped := func(change func(*image.Table)) *image.Table { table := build(same); change(table); return table }
	var log extent.Set[extent.FileBlock]
	log.Add(extent.Range[extent.FileBlock]{Start: 3, End: 4})
	for name, other := range map[string]*image.Table{
		"format":       shaped(func(t *image.Table) { t.Format = image.VHDXFixed }),
		"parent":       shaped(func(t *image.Table) { t.Parent[3] ^= 1 }),
		"differencing": shaped(func(t *image.Table) { t.Differencing = true }),
		"file size":    shaped(func(t *image.Table) { t.FileSize++ }),
		"fixed":        shaped(func(t *image.Table) { t.Fixed = []image.FileRange{{Name: "more", Start: 0, End: 1}} }),
		"place":        build(func(b *image.Builder) { b.Full(0, 3<<20) }),
		"state":        build(func(b *image.Builder) { b.Zero(2) }),
		"bits":         build(func(b *image.Builder) { b.Partial(1, 2<<20, []byte{0x83}) }),
		"chunks":       build(func(b *image.Builder) { b.Chunks([]image.FileOffset{3 << 20}) }),
		"replayed":     build(func(b *image.Builder) { b.Replayed(log) }),
	} {
		if other.Equal(build(same)) || build(same).Equal(other) {
			t.Errorf("%s: equal", name)
		}
	}
	if !build(same).Equal(build(same)) {
		t.Error("not equal to itself")
	}
}
