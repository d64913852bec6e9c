package stamp

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"
)

// bench is a pair of small disks with a log, and what a guest sees of them.
type bench struct {
	t     *testing.T
	log   *Log
	clock Clock
	disks [][]byte
	seq   uint64
}

const benchBlocks = 16

func newBench(t *testing.T, disks int) *bench {
	b := &bench{t: t}
	for range disks {
		b.disks = append(b.disks, make([]byte, benchBlocks*BlockSize))
	}
	b.log = NewLog(&b.clock, b.images(b.disks))
	return b
}

func (b *bench) images(disks [][]byte) []Image {
	b.t.Helper()
	var out []Image
	for i, d := range disks {
		im, err := ReadImage(bytes.NewReader(d), int64(len(d)), i)
		if err != nil {
			b.t.Fatal(err)
		}
		out = append(out, im)
	}
	return out
}

// copy is the state of the disks now.
func (b *bench) copy() [][]byte {
	var out [][]byte
	for _, d := range b.disks {
		out = append(out, bytes.Clone(d))
	}
	return out
}

// begin sends a write and puts it on the disk.
func (b *bench) begin(disk int, first int64, count int32) uint64 {
	b.t.Helper()
	id, ok := b.log.Begin(1, b.seq, disk, first, count)
	if !ok {
		b.t.Fatalf("write to blocks %d+%d of disk %d is refused", first, count, disk)
	}
	for i := first; i < first+int64(count); i++ {
		Stamp{ID: id, Seq: b.seq, Block: i, First: first, Count: uint32(count), Writer: 1, Disk: uint32(disk)}.Put(b.disks[disk][i*BlockSize:])
	}
	b.seq++
	return id
}

func (b *bench) write(disk int, first int64, count int32) uint64 {
	b.t.Helper()
	id := b.begin(disk, first, count)
	b.log.End(id, time.Millisecond, false)
	return id
}

// good wants no violation, bad one that says want.
func (b *bench) good(disks [][]byte, bounds Bounds) *Cut {
	b.t.Helper()
	c := b.log.Check(b.images(disks), bounds, nil)
	if err := c.Err(); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) bad(disks [][]byte, bounds Bounds, want string) {
	b.t.Helper()
	c := b.log.Check(b.images(disks), bounds, nil)
	if !strings.Contains(strings.Join(c.Violations, "\n"), want) {
		b.t.Fatalf("want %q, got %v", want, c.Err())
	}
}

func block(disk []byte, n int64) []byte { return disk[n*BlockSize : (n+1)*BlockSize] }

func TestEveryMomentIsACut(t *testing.T) {
	b := newBench(t, 2)
	for i := range int64(30) {
		b.good(b.disks, NoBounds)
		b.write(int(i%2), i%(benchBlocks-3), int32(1+i%3))
	}
	c := b.good(b.disks, Bounds{After: b.log.Tick(), Before: math.MaxInt64})
	if c.Included != 30 || c.Excluded != 0 {
		t.Fatalf("%d included, %d excluded", c.Included, c.Excluded)
	}
}

// A write that was answered before a visible one was sent must be there, also on the other disk.
func TestLostWrite(t *testing.T) {
	b := newBench(t, 2)
	before := b.copy()
	b.write(0, 3, 1)
	b.write(1, 5, 1)
	b.bad([][]byte{before[0], b.disks[1]}, NoBounds, "disk 0 block 3: write 1")
	b.good([][]byte{b.disks[0], before[1]}, NoBounds)
	b.bad(before, Bounds{After: b.log.Tick(), Before: math.MaxInt64}, "is absent")
	b.good(before, NoBounds)
}

// Writes that were in flight together may be cut in any way.
func TestConcurrentWrites(t *testing.T) {
	b := newBench(t, 2)
	before := b.copy()
	one := b.begin(0, 0, 1)
	two := b.begin(1, 0, 1)
	b.log.End(two, 0, false)
	b.log.End(one, 0, false)
	b.good([][]byte{before[0], b.disks[1]}, NoBounds)
	b.good([][]byte{b.disks[0], before[1]}, NoBounds)
	if id, ok := b.log.Begin(2, 0, 0, 0, 1); !ok || id != 3 {
		t.Fatal("the blocks are free again")
	}
	if _, ok := b.log.Begin(2, 0, 0, 0, 1); ok {
		t.Fatal("two writes to a block at once")
	}
}

func TestTornWrite(t *testing.T) {
	b := newBench(t, 1)
	before := b.copy()
	b.write(0, 4, 3)
	torn := b.copy()
	copy(block(torn[0], 5), block(before[0], 5))
	b.bad(torn, NoBounds, "is torn")
	failed := b.begin(0, 8, 3)
	b.log.End(failed, 0, true)
	half := b.copy()
	copy(block(half[0], 9), block(before[0], 9))
	b.good(half, NoBounds)
}

// What is overwritten counts as included, on every block of its own.
func TestOverwritten(t *testing.T) {
	b := newBench(t, 1)
	b.write(0, 0, 4)
	b.write(0, 1, 2)
	between := b.copy()
	b.write(0, 2, 1)
	b.good(b.disks, NoBounds)
	stale := b.copy()
	copy(block(stale[0], 1), make([]byte, BlockSize))
	b.bad(stale, NoBounds, "block 1")
	old := newBench(t, 1)
	old.write(0, 0, 4)
	first := old.copy()
	old.write(0, 0, 1)
	old.write(0, 3, 1)
	mixed := old.copy()
	copy(block(mixed[0], 0), block(first[0], 0))
	old.bad(mixed, NoBounds, "block 0: write 2")
	b.good(between, NoBounds)
}

func TestFutureWrite(t *testing.T) {
	b := newBench(t, 1)
	b.write(0, 0, 1)
	answered := b.log.Tick()
	b.good(b.disks, Bounds{Before: answered})
	b.write(0, 1, 1)
	b.bad(b.disks, Bounds{Before: answered}, "sent after the seal was answered")
}

func TestWrongContent(t *testing.T) {
	for name, spoil := range map[string]func(disk []byte){
		"wrong checksum":        func(d []byte) { d[2*BlockSize+100] ^= 1 },
		"no stamp":              func(d []byte) { d[2*BlockSize] ^= 1 },
		"elsewhere":             func(d []byte) { copy(block(d, 7), block(d, 2)) },
		"not sent there":        func(d []byte) { Stamp{ID: 1, Block: 9}.Put(block(d, 9)) },
		"neither what was":      func(d []byte) { Stamp{ID: 99, Block: 9}.Put(block(d, 9)) },
		"this history has 1 to": func(d []byte) { Stamp{ID: 99, Block: 2}.Put(block(d, 2)) },
	} {
		b := newBench(t, 1)
		b.write(0, 2, 1)
		spoiled := b.copy()
		spoil(spoiled[0])
		b.bad(spoiled, NoBounds, name)
	}
}

func TestMonotone(t *testing.T) {
	b := newBench(t, 1)
	before := b.copy()
	b.write(0, 2, 1)
	later := b.good(b.disks, NoBounds)
	earlier := b.good(before, NoBounds)
	if c := b.log.Check(b.images(b.disks), NoBounds, earlier); !c.OK() {
		t.Fatal(c.Err())
	}
	if c := b.log.Check(b.images(before), NoBounds, later); c.OK() {
		t.Fatal("a later point shows an older version")
	}
}

// A crash starts a new history with what is there; nothing older than that may come back.
func TestNextHistory(t *testing.T) {
	b := newBench(t, 1)
	b.write(0, 0, 2)
	old := b.copy()
	b.log.End(b.begin(0, 0, 2), 0, true)
	copy(block(b.disks[0], 1), block(old[0], 1)) // torn by the crash
	b.log = b.log.Next(b.images(b.disks))
	b.good(b.disks, NoBounds)
	b.bad(old, NoBounds, "neither what was there in the beginning")
	if id := b.write(0, 5, 1); id != 3 {
		t.Fatalf("id %d is used twice", id)
	}
	b.good(b.disks, Bounds{After: b.log.Now(), Before: math.MaxInt64})
}

// After a power cut only what was synced must be there.
func TestDurable(t *testing.T) {
	b := newBench(t, 1)
	empty := b.copy()
	b.write(0, 0, 2)
	if c := b.log.CheckDurable(b.images(empty)); !c.OK() {
		t.Fatal(c.Err())
	}
	sent := b.log.Tick()
	late := b.write(0, 4, 1)
	b.log.Synced(0, sent)
	if c := b.log.CheckDurable(b.images(empty)); len(c.Violations) != 2 {
		t.Fatal(c.Violations)
	}
	kept := b.copy()
	copy(block(kept[0], 4), block(empty[0], 4))
	if c := b.log.CheckDurable(b.images(kept)); !c.OK() {
		t.Fatal(c.Err())
	}
	b.log.Durable(late)
	if c := b.log.CheckDurable(b.images(kept)); len(c.Violations) != 1 {
		t.Fatal(c.Violations)
	}
	b.log.Cut()
	gone := b.write(0, 6, 1)
	sent = b.log.Tick()
	b.log.Durable(gone)
	b.log.Synced(0, sent)
	if c := b.log.CheckDurable(b.images(kept)); len(c.Violations) != 1 {
		t.Fatal("answered after the cut: ", c.Violations)
	}
	kept[0][0] ^= 1
	if c := b.log.CheckDurable(b.images(kept)); c.OK() {
		t.Fatal("garbage is a version")
	}
}

func TestDisksOfAPoint(t *testing.T) {
	b := newBench(t, 2)
	b.write(0, 0, 1)
	b.write(1, 0, 1)
	images := b.images(b.disks)
	if c := b.log.Check([]Image{{}, images[1]}, NoBounds, nil); !c.OK() {
		t.Fatal(c.Err())
	}
	if c := b.log.Check(images[:1], NoBounds, nil); c.OK() {
		t.Fatal("a disk too few")
	}
	short := b.images([][]byte{b.disks[0][:BlockSize], b.disks[1]})
	if c := b.log.Check(short, NoBounds, nil); c.OK() {
		t.Fatal("a disk too short")
	}
}

func TestViolationsAreCounted(t *testing.T) {
	b := newBench(t, 1)
	empty := b.copy()
	for i := range int64(benchBlocks) {
		b.write(0, i, 1)
	}
	c := b.log.Check(b.images(empty), Bounds{After: math.MaxInt64, Before: math.MaxInt64}, nil)
	if len(c.Violations) != mostViolations || len(c.Violations)+c.More != benchBlocks {
		t.Fatalf("%d listed, %d more", len(c.Violations), c.More)
	}
}

func TestAround(t *testing.T) {
	b := newBench(t, 1)
	b.write(0, 0, 1)
	first := b.log.Now()
	if got := b.log.Around(time.Now().Add(-time.Hour), time.Now().Add(time.Hour)); got != NoBounds {
		t.Fatalf("%+v, want no bounds", got)
	}
	got := b.log.Around(time.Now().Add(time.Hour), time.Now().Add(-time.Hour))
	if got.After != first+1 || got.Before != 0 {
		t.Fatalf("%+v", got)
	}
	if n := got.And(Bounds{After: 1, Before: 7}); n.After != first+1 || n.Before != 0 {
		t.Fatalf("%+v", n)
	}
}

func TestTotals(t *testing.T) {
	b := newBench(t, 1)
	b.write(0, 0, 2)
	b.begin(0, 4, 1)
	b.log.End(b.begin(0, 6, 1), 0, true)
	want := Totals{Writes: 1, Failed: 1, InFlight: 1, Bytes: 2 * BlockSize}
	if got := b.log.Totals(); got != want {
		t.Fatalf("%+v, want %+v", got, want)
	}
	if took := b.log.Took(time.Now().Add(-time.Hour), time.Now()); len(took) != 1 || took[0] != time.Millisecond {
		t.Fatal(took)
	}
}

func TestReadImage(t *testing.T) {
	if _, err := ReadImage(bytes.NewReader(make([]byte, 100)), 100, 0); err == nil {
		t.Fatal("not whole blocks")
	}
	if _, err := ReadImage(bytes.NewReader(make([]byte, BlockSize)), 2*BlockSize, 0); err == nil {
		t.Fatal("too short")
	}
	a, b := newBench(t, 1), newBench(t, 1)
	b.write(0, 1, 2)
	if n := a.images(a.disks)[0].Differences(a.images(b.disks)[0]); n != 2 {
		t.Fatalf("%d differences", n)
	}
	if n := (Image{}).Differences(a.images(a.disks)[0]); n != -1 {
		t.Fatalf("%d differences of sizes", n)
	}
}

func TestStampRoundTrip(t *testing.T) {
	want := Stamp{ID: 1 << 40, Seq: 3, Block: 1 << 33, First: 1<<33 - 2, Count: 9, Writer: 4, Disk: 5}
	p := make([]byte, BlockSize)
	want.Put(p)
	got, err := Parse(p)
	if err != nil || got != want {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range p {
		p[i] ^= 0x10
		if _, err := Parse(p); err == nil {
			t.Fatalf("byte %d is not covered", i)
		}
		p[i] ^= 0x10
	}
	if _, err := Parse(p[:100]); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	if _, err := Parse(make([]byte, BlockSize)); !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
}
