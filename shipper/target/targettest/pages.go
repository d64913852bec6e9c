package targettest

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

var pageTests = []test{
	{"PagesCreate", testCreatePages},
	{"PagesCreateOneWinner", testCreateOneWinner},
	{"PagesCreateSizes", testCreateSizes},
	{"PagesPutRead", testPutRead},
	{"PagesPutChecksum", testPutChecksum},
	{"PagesPutLimits", testPutLimits},
	{"PagesPutBeyondEnd", testPutBeyondEnd},
	{"PagesClear", testClear},
	{"PagesClearHuge", testClearHuge},
	{"PagesReadLimits", testReadLimits},
	{"PagesRanges", testRanges},
	{"PagesSum", testSum},
	{"PagesResize", testResize},
	{"PagesParallelPuts", testParallelPuts},
	{"PagesDelete", testDeletePages},
	{"PagesAbsent", testAbsentPages},
}

func testCreatePages(_ *testing.T, e env) {
	e.ok(e.CreatePages(e.ctx, "vm/disk/replica.vhd", 1<<20+512, 7))
	p := e.properties("vm/disk/replica.vhd")
	e.equal("size", p.Size, 1<<20+512)
	e.equal("sequence", p.Sequence, 7)
	e.equal("leased", p.Leased, false)
	if !checksum.IsZero(e.read("vm/disk/replica.vhd", "", 0, 1<<20+512)) {
		e.t.Fatal("a new blob is not all zeros")
	}
	e.ok(e.put("vm/disk/replica.vhd", 0, fill(512, 1), target.Unguarded))
	e.fails(e.CreatePages(e.ctx, "vm/disk/replica.vhd", 512, 0), target.ErrExists)
	e.equal("size afterwards", e.properties("vm/disk/replica.vhd").Size, 1<<20+512)
	e.equal("content afterwards", e.read("vm/disk/replica.vhd", "", 0, 1), []byte{1})
	_, err := e.Create(e.ctx, "vm/disk/replica.vhd", []byte("x"))
	e.fails(err, target.ErrExists)
	e.ok(e.AcquireLease(e.ctx, "vm/disk/replica.vhd", leaseA))
	e.fails(e.CreatePages(e.ctx, "vm/disk/replica.vhd", 512, 0), target.ErrExists)
}

// testCreateOneWinner: of many creators one wins, and the blob has its size and
// number, nobody else's.
func testCreateOneWinner(t *testing.T, e env) {
	const n = 8
	errs := make([]error, n)
	together(n, func(i int) { errs[i] = e.CreatePages(e.ctx, "race", int64(i+1)*512, int64(i+100)) })
	winner := oneWinner(t, e, errs, target.ErrExists)
	p := e.properties("race")
	e.equal("size", p.Size, (winner+1)*512)
	e.equal("sequence", p.Sequence, winner+100)
}

func testCreateSizes(_ *testing.T, e env) {
	e.fails(e.CreatePages(e.ctx, "odd", 513, 0), target.ErrRange)
	e.fails(e.CreatePages(e.ctx, "negative", -512, 0), target.ErrRange)
	e.fails(e.CreatePages(e.ctx, "sequence", 512, -1), target.ErrRange)
	e.fails(e.CreatePages(e.ctx, "large", target.MaxPages+512, 0), target.ErrTooLarge)
	e.equal("left behind", len(e.list("")), 0)
	e.createPages("tib", 1<<40)
	e.equal("size", e.properties("tib").Size, 1<<40)
	e.ok(e.put("tib", 1<<40-512, fill(512, 3), target.Unguarded))
	e.equal("end", e.read("tib", "", 1<<40-1, 1), []byte{3})
}

func testPutRead(t *testing.T, e env) {
	e.createPages("b", 8<<20)
	data := random(target.MaxPut, 1)
	e.ok(e.put("b", 512, data, target.Unguarded))
	e.ok(e.put("b", 1024, fill(1024, 9), target.Unguarded))
	copy(data[512:], fill(1024, 9))
	want := append(fill(512, 0), data...)
	if !bytes.Equal(e.read("b", "", 0, int64(len(want))), want) {
		t.Fatal("read differs from what was put")
	}
	if !bytes.Equal(e.read("b", "", 777, 3333), want[777:777+3333]) {
		t.Fatal("an unaligned read differs")
	}
	e.equal("empty read", len(e.read("b", "", 8<<20, 0)), 0)
}

func testPutChecksum(_ *testing.T, e env) {
	e.createPages("b", 4096)
	data := random(1024, 2)
	err := e.PutPages(e.ctx, "b", 0, data, checksum.Of(data)^1, target.Unguarded)
	e.fails(err, target.ErrChecksum)
	if !checksum.IsZero(e.read("b", "", 0, 4096)) {
		e.t.Fatal("a refused put left something")
	}
}

func testPutLimits(_ *testing.T, e env) {
	e.createPages("b", 16<<20)
	e.fails(e.put("b", 0, make([]byte, target.MaxPut+512), target.Unguarded), target.ErrTooLarge)
	e.fails(e.put("b", 1, make([]byte, 512), target.Unguarded), target.ErrRange)
	e.fails(e.put("b", 0, make([]byte, 511), target.Unguarded), target.ErrRange)
	e.fails(e.put("b", 0, nil, target.Unguarded), target.ErrRange)
	e.fails(e.put("b", -512, make([]byte, 512), target.Unguarded), target.ErrRange)
	e.fails(e.ClearPages(e.ctx, "b", 256, 512, target.Unguarded), target.ErrRange)
	e.fails(e.ClearPages(e.ctx, "b", 0, 100, target.Unguarded), target.ErrRange)
	e.fails(e.ClearPages(e.ctx, "b", 0, 0, target.Unguarded), target.ErrRange)
}

func testPutBeyondEnd(_ *testing.T, e env) {
	e.createPages("b", 8192)
	e.fails(e.put("b", 8192, fill(512, 1), target.Unguarded), target.ErrRange)
	e.fails(e.put("b", 8192-512, fill(1024, 1), target.Unguarded), target.ErrRange)
	e.fails(e.ClearPages(e.ctx, "b", 8192-512, 1024, target.Unguarded), target.ErrRange)
	e.fails(e.ClearPages(e.ctx, "b", 1<<40, 512, target.Unguarded), target.ErrRange)
	e.equal("size", e.properties("b").Size, 8192)
	if !checksum.IsZero(e.read("b", "", 0, 8192)) {
		e.t.Fatal("a refused put left something")
	}
}

func testClear(t *testing.T, e env) {
	e.createPages("b", 1<<20)
	data := random(1<<20, 3)
	e.ok(e.put("b", 0, data, target.Unguarded))
	for _, r := range []target.ByteRange{{Off: 512, Len: 512}, {Off: 65536 - 512, Len: 1024}, {Off: 131072, Len: 262144}, {Off: 1<<20 - 512, Len: 512}} {
		e.ok(e.ClearPages(e.ctx, "b", r.Off, r.Len, target.Unguarded))
		clear(data[r.Off:r.End()])
	}
	if !bytes.Equal(e.read("b", "", 0, 1<<20), data) {
		t.Fatal("cleared more, or less, than asked")
	}
}

func testClearHuge(_ *testing.T, e env) {
	e.createPages("b", 1<<40)
	e.ok(e.put("b", 1<<39, fill(4096, 1), target.Unguarded))
	e.ok(e.ClearPages(e.ctx, "b", 0, 1<<40, target.Unguarded))
	if !checksum.IsZero(e.read("b", "", 1<<39, 4096)) {
		e.t.Fatal("not cleared")
	}
}

func testReadLimits(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.fails(e.ReadPages(e.ctx, "b", "", 4096, make([]byte, 1)), target.ErrRange)
	e.fails(e.ReadPages(e.ctx, "b", "", 4000, make([]byte, 97)), target.ErrRange)
	e.fails(e.ReadPages(e.ctx, "b", "", -1, make([]byte, 1)), target.ErrRange)
	_, err := e.Ranges(e.ctx, "b", "", 4096, 512)
	e.fails(err, target.ErrRange)
}

// testRanges: the list may be coarser than what was written, never finer.
func testRanges(t *testing.T, e env) {
	const size = 64 << 20
	e.createPages("b", size)
	checkRanges(t, e, "b", 0, size, nil)
	written := []target.ByteRange{{Off: 512, Len: 512}, {Off: 1 << 20, Len: 1 << 20}, {Off: 32<<20 - 512, Len: 1024}, {Off: size - 512, Len: 512}}
	for _, r := range written {
		e.ok(e.put("b", r.Off, fill(int(r.Len), 1), target.Unguarded))
	}
	checkRanges(t, e, "b", 0, size, written)
	checkRanges(t, e, "b", 1<<20+4096, 8192, []target.ByteRange{{Off: 1<<20 + 4096, Len: 8192}})
	checkRanges(t, e, "b", size-4096, 4096, written[3:])
	e.ok(e.ClearPages(e.ctx, "b", 0, 16<<20, target.Unguarded))
	checkRanges(t, e, "b", 0, size, written[2:])
	_, total := ranges(t, e, "b", 0, size)
	if total > 4<<20 {
		t.Fatalf("%d bytes listed for 1.5 KiB written: the holes are not known", total)
	}
}

func ranges(t *testing.T, e env, name string, off, n int64) (list []target.ByteRange, total int64) {
	t.Helper()
	list, err := e.Ranges(e.ctx, name, "", off, n)
	e.ok(err)
	at := off
	for i, r := range list {
		if r.Len <= 0 || r.Off < at || r.End() > off+n {
			t.Fatalf("range %d of %v is empty, unsorted or outside [%d, %d)", i, list, off, off+n)
		}
		at = r.End()
		total += r.Len
	}
	return list, total
}

func checkRanges(t *testing.T, e env, name string, off, n int64, written []target.ByteRange) {
	t.Helper()
	list, _ := ranges(t, e, name, off, n)
	for _, w := range written {
		if missing := uncovered(list, w); missing > 0 {
			t.Fatalf("%d bytes of %v are not in %v", missing, w, list)
		}
	}
}

// uncovered is how many bytes of w the list leaves out.
func uncovered(list []target.ByteRange, w target.ByteRange) int64 {
	left := w.Len
	for _, r := range list {
		left -= max(0, min(r.End(), w.End())-max(r.Off, w.Off))
	}
	return left
}

func testResize(t *testing.T, e env) {
	e.createPages("b", 8192)
	data := random(8192, 4)
	e.ok(e.put("b", 0, data, target.Unguarded))
	e.ok(e.Resize(e.ctx, "b", 4096+512, target.Unguarded))
	e.equal("shrunk", e.properties("b").Size, 4096+512)
	e.fails(e.ReadPages(e.ctx, "b", "", 4096, make([]byte, 1024)), target.ErrRange)
	e.ok(e.Resize(e.ctx, "b", 1<<20, target.Unguarded))
	e.equal("grown", e.properties("b").Size, 1<<20)
	clear(data[4096+512:])
	if !bytes.Equal(e.read("b", "", 0, 8192), data) {
		t.Fatal("what was cut off came back, or more was cut")
	}
	e.ok(e.put("b", 1<<20-512, fill(512, 1), target.Unguarded))
	e.fails(e.Resize(e.ctx, "b", 1000, target.Unguarded), target.ErrRange)
	e.fails(e.Resize(e.ctx, "b", target.MaxPages+512, target.Unguarded), target.ErrTooLarge)
}

func testParallelPuts(t *testing.T, e env) {
	const n, each = 16, 128 << 10
	e.createPages("b", n*each)
	errs := make([]error, n)
	together(n, func(i int) { errs[i] = e.put("b", int64(i)*each, random(each, uint64(100+i)), target.Unguarded) })
	for i, err := range errs {
		e.ok(err)
		if !bytes.Equal(e.read("b", "", int64(i)*each, each), random(each, uint64(100+i))) {
			t.Fatalf("put %d was lost", i)
		}
	}
}

func testDeletePages(_ *testing.T, e env) {
	e.ok(e.DeletePages(e.ctx, "none", ""))
	e.createPages("vm/log/1-1", 4096)
	e.ok(e.put("vm/log/1-1", 0, fill(512, 1), target.Unguarded))
	e.ok(e.Delete(e.ctx, "vm/log/1-1"))
	_, err := e.Properties(e.ctx, "vm/log/1-1", "")
	e.fails(err, target.ErrNotFound)
	e.equal("listed", len(e.list("")), 0)
	e.createPages("vm/log/1-1", 4096)
	if !checksum.IsZero(e.read("vm/log/1-1", "", 0, 4096)) {
		e.t.Fatal("a blob made anew has old content")
	}
	e.ok(e.DeletePages(e.ctx, "vm/log/1-1", ""))
	e.ok(e.DeletePages(e.ctx, "vm/log/1-1", ""))
}

func testAbsentPages(_ *testing.T, e env) {
	const name = "no/blob"
	_, err := e.Properties(e.ctx, name, "")
	e.fails(err, target.ErrNotFound)
	e.fails(e.put(name, 0, fill(512, 1), target.Unguarded), target.ErrNotFound)
	e.fails(e.ClearPages(e.ctx, name, 0, 512, target.Unguarded), target.ErrNotFound)
	e.fails(e.ReadPages(e.ctx, name, "", 0, make([]byte, 512)), target.ErrNotFound)
	_, err = e.Ranges(e.ctx, name, "", 0, 512)
	e.fails(err, target.ErrNotFound)
	e.fails(e.Resize(e.ctx, name, 512, target.Unguarded), target.ErrNotFound)
	_, err = e.SetSequence(e.ctx, name, 1, "", "")
	e.fails(err, target.ErrNotFound)
	_, err = e.Snapshot(e.ctx, name, "", "", nil)
	e.fails(err, target.ErrNotFound)
	list, err := e.Snapshots(e.ctx, name)
	e.ok(err)
	e.equal("snapshots", len(list), 0)
	e.ok(e.DeleteSnapshot(e.ctx, name, "2020-01-01T00:00:00.0000000Z"))
	e.fails(e.AcquireLease(e.ctx, name, leaseA), target.ErrNotFound)
	e.equal("left behind", len(e.list("")), 0)
}

// testSum: of the base and of a snapshot, over data, holes and odd borders, and nothing is left to see.
func testSum(_ *testing.T, e env) {
	const name, size = "vm/disk/replica.vhd", 9<<20 + 512
	e.createPages(name, size)
	data := random(4<<20, 11)
	e.ok(e.put(name, 1<<20, data, target.Unguarded))
	id, err := e.Snapshot(e.ctx, name, "", "", map[string]string{"epoch": "1"})
	e.ok(err)
	before := e.read(name, "", 0, size)
	e.ok(e.put(name, 0, fill(4096, 3), target.Unguarded))
	after, props := e.read(name, "", 0, size), e.properties(name)
	for _, r := range []target.ByteRange{{Off: 0, Len: 4 << 20}, {Off: 4 << 20, Len: 4 << 20}, {Off: 1 << 20, Len: 4096}, {Off: 1000, Len: 3},
		{Off: size - 512, Len: 512}, {Off: 0, Len: size}, {Off: 4096, Len: 0}} {
		got, err := e.Sum(e.ctx, name, "", r.Off, r.Len)
		e.ok(err)
		e.equal(fmt.Sprint("sum of the base ", r), got, checksum.Of(after[r.Off:r.End()]))
		got, err = e.Sum(e.ctx, name, id, r.Off, r.Len)
		e.ok(err)
		e.equal(fmt.Sprint("sum of the snapshot ", r), got, checksum.Of(before[r.Off:r.End()]))
	}
	e.equal("the base", e.properties(name), props)
	e.equal("what is listed", len(e.list("")), 1)
	_, err = e.Sum(e.ctx, name, "", 0, target.MaxSum+1)
	e.fails(err, target.ErrTooLarge)
	_, err = e.Sum(e.ctx, name+"x", "", 0, 512)
	e.fails(err, target.ErrNotFound)
	_, err = e.Sum(e.ctx, name, "2020-01-02T03:04:05.0000000Z", 0, 512)
	e.fails(err, target.ErrNotFound)
}
