package targettest

import (
	"bytes"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

var guardTests = []test{
	{"SequenceSet", testSetSequence},
	{"SequenceGuardsWrites", testSequenceGuards},
	{"SequenceUnderETag", testSequenceCondition},
	{"ETagChanges", testETagChanges},
}

var leaseTests = []test{
	{"LeaseGuardsWrites", testLeaseGuards},
	{"LeaseBroken", testLeaseBroken},
	{"LeaseAcquire", testLeaseAcquire},
	{"LeaseDelete", testLeaseDelete},
}

func testSetSequence(_ *testing.T, e env) {
	e.createPages("b", 4096)
	for _, n := range []int64{5, 5, 1 << 40, 2, 0} { // absolute, so also down
		_, err := e.SetSequence(e.ctx, "b", n, "", "")
		e.ok(err)
		e.equal("sequence", e.properties("b").Sequence, n)
	}
	_, err := e.SetSequence(e.ctx, "b", -1, "", "")
	e.fails(err, target.ErrRange)
}

// testSequenceGuards: nothing sent under an old number can change the blob.
func testSequenceGuards(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.ok(e.put("b", 0, fill(4096, 1), target.Guard{Sequence: 0}))
	_, err := e.SetSequence(e.ctx, "b", 10, "", "")
	e.ok(err)
	for _, stale := range []int64{0, 9, 11} {
		g := target.Guard{Sequence: stale}
		e.fails(e.put("b", 0, fill(512, 2), g), target.ErrSequence)
		e.fails(e.ClearPages(e.ctx, "b", 0, 512, g), target.ErrSequence)
		e.fails(e.Resize(e.ctx, "b", 512, g), target.ErrSequence)
	}
	e.equal("content", e.read("b", "", 0, 1), []byte{1})
	e.equal("size", e.properties("b").Size, 4096)
	e.ok(e.put("b", 0, fill(512, 3), target.Guard{Sequence: 10}))
	e.ok(e.ClearPages(e.ctx, "b", 512, 512, target.Guard{Sequence: 10}))
	e.ok(e.Resize(e.ctx, "b", 8192, target.Guard{Sequence: 10}))
	e.ok(e.put("b", 0, fill(512, 4), target.Unguarded))
}

func testSequenceCondition(_ *testing.T, e env) {
	e.createPages("b", 4096)
	first := e.properties("b").ETag
	second, err := e.SetSequence(e.ctx, "b", 1, "", first)
	e.ok(err)
	_, err = e.SetSequence(e.ctx, "b", 2, "", first)
	e.fails(err, target.ErrCondition)
	e.equal("sequence", e.properties("b").Sequence, 1)
	_, err = e.SetSequence(e.ctx, "b", 2, "", second)
	e.ok(err)
}

func testETagChanges(t *testing.T, e env) {
	e.createPages("b", 4096)
	seen := map[string]string{e.properties("b").ETag: "create"}
	changed := func(what string, err error) {
		t.Helper()
		e.ok(err)
		etag := e.properties("b").ETag
		if before, ok := seen[etag]; ok {
			t.Fatalf("etag after %s is the one after %s", what, before)
		}
		seen[etag] = what
	}
	for range 3 { // fast, and with the same content: the clock must not matter
		changed("put", e.put("b", 0, fill(512, 1), target.Unguarded))
	}
	changed("clear", e.ClearPages(e.ctx, "b", 0, 512, target.Unguarded))
	changed("resize", e.Resize(e.ctx, "b", 8192, target.Unguarded))
	etag, err := e.SetSequence(e.ctx, "b", 1, "", "")
	changed("sequence", err)
	e.equal("etag returned", e.properties("b").ETag, etag)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	_, err = e.Snapshot(e.ctx, "b", leaseA, etag, map[string]string{"epoch": "1"})
	e.ok(err)
	e.ok(e.BreakLease(e.ctx, "b"))
	e.ok(e.ReleaseLease(e.ctx, "b", leaseA))
	e.equal("etag after lease and snapshot", e.properties("b").ETag, etag)
}

// writeWith tries every guarded write with a lease and wants each to end so.
func (e env) writeWith(lease string, want error) {
	e.t.Helper()
	_, sequenceErr := e.SetSequence(e.ctx, "b", 0, lease, "")
	g := target.Guard{Lease: lease, Sequence: 0}
	for what, err := range map[string]error{
		"put":      e.put("b", 0, fill(512, 1), g),
		"clear":    e.ClearPages(e.ctx, "b", 512, 512, g),
		"resize":   e.Resize(e.ctx, "b", 4096, g),
		"sequence": sequenceErr,
	} {
		if want == nil && err != nil {
			e.t.Fatalf("%s with lease %q: %v", what, lease, err)
		}
		if want != nil {
			e.fails(err, want)
		}
	}
}

// testLeaseGuards is the column Leased(A) of AZURE.md 1.4, and Available.
func testLeaseGuards(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.writeWith("", nil)
	e.writeWith(leaseA, target.ErrLeaseLost)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	e.equal("leased", e.properties("b").Leased, true)
	e.writeWith(leaseA, nil)
	e.writeWith(leaseB, target.ErrLeased)
	e.writeWith("", target.ErrLeased)
	_, err := e.Snapshot(e.ctx, "b", leaseB, "", nil)
	e.fails(err, target.ErrLeased)
	_, err = e.Snapshot(e.ctx, "b", leaseA, "", nil)
	e.ok(err)
}

// testLeaseBroken is the column Broken(A).
func testLeaseBroken(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.ok(e.BreakLease(e.ctx, "b"))
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	e.ok(e.BreakLease(e.ctx, "b"))
	e.ok(e.BreakLease(e.ctx, "b"))
	e.equal("leased", e.properties("b").Leased, false)
	e.writeWith(leaseA, target.ErrLeaseLost)
	e.writeWith(leaseB, target.ErrLeaseLost)
	e.writeWith("", nil)
	_, err := e.Snapshot(e.ctx, "b", leaseA, "", nil)
	e.fails(err, target.ErrLeaseLost)
	e.ok(e.AcquireLease(e.ctx, "b", leaseB))
	e.writeWith(leaseB, nil)
	e.writeWith(leaseA, target.ErrLeased)
}

func testLeaseAcquire(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	e.ok(e.AcquireLease(e.ctx, "b", leaseA)) // an answer was lost
	e.fails(e.AcquireLease(e.ctx, "b", leaseB), target.ErrLeased)
	e.fails(e.ReleaseLease(e.ctx, "b", leaseB), target.ErrLeased)
	e.writeWith(leaseA, nil)
	e.ok(e.ReleaseLease(e.ctx, "b", leaseA))
	e.ok(e.ReleaseLease(e.ctx, "b", leaseA))
	e.writeWith("", nil)
	e.ok(e.AcquireLease(e.ctx, "b", leaseB))
	e.ok(e.BreakLease(e.ctx, "b"))
	e.ok(e.AcquireLease(e.ctx, "b", leaseB)) // one's own, broken by another
	e.writeWith(leaseB, nil)
}

func testLeaseDelete(_ *testing.T, e env) {
	e.createPages("b", 4096)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	e.fails(e.Delete(e.ctx, "b"), target.ErrLeased)
	e.fails(e.DeletePages(e.ctx, "b", ""), target.ErrLeased)
	e.fails(e.DeletePages(e.ctx, "b", leaseB), target.ErrLeased)
	e.equal("still there", e.properties("b").Size, 4096)
	e.ok(e.DeletePages(e.ctx, "b", leaseA))
	e.createPages("b", 4096) // made anew, it has no lease
	e.writeWith("", nil)
}

var snapshotTests = []test{
	{"SnapshotKeeps", testSnapshotKeeps},
	{"SnapshotConditions", testSnapshotConditions},
	{"SnapshotList", testSnapshotList},
	{"SnapshotDelete", testSnapshotDelete},
	{"SnapshotMetadata", testSnapshotMetadata},
}

// testSnapshotKeeps: no write to the base shows in a snapshot.
func testSnapshotKeeps(t *testing.T, e env) {
	e.ok(e.CreatePages(e.ctx, "b", 1<<20, 3))
	before := random(1<<20, 5)
	e.ok(e.put("b", 0, before, target.Unguarded))
	e.ok(e.ClearPages(e.ctx, "b", 65536, 65536, target.Unguarded))
	clear(before[65536:131072])
	id, err := e.Snapshot(e.ctx, "b", "", "", map[string]string{"epoch": "12"})
	e.ok(err)
	e.ok(e.put("b", 0, fill(4096, 0xAA), target.Unguarded))
	e.ok(e.put("b", 65536, fill(4096, 0xAA), target.Unguarded))
	e.ok(e.ClearPages(e.ctx, "b", 262144, 262144, target.Unguarded))
	_, err = e.SetSequence(e.ctx, "b", 4, "", "")
	e.ok(err)
	e.ok(e.Resize(e.ctx, "b", 512<<10, target.Unguarded))
	if !bytes.Equal(e.read("b", id, 0, 1<<20), before) {
		t.Fatal("the snapshot changed")
	}
	e.fails(e.ReadPages(e.ctx, "b", id, 1<<20, make([]byte, 1)), target.ErrRange)
	p, err := e.Properties(e.ctx, "b", id)
	e.ok(err)
	e.equal("size", p.Size, 1<<20)
	e.equal("sequence", p.Sequence, 3)
	e.equal("leased", p.Leased, false)
	e.equal("metadata", p.Metadata, map[string]string{"epoch": "12"})
	list, err := e.Ranges(e.ctx, "b", id, 0, 1<<20)
	e.ok(err)
	for _, w := range []target.ByteRange{{Off: 0, Len: 65536}, {Off: 131072, Len: 1<<20 - 131072}} {
		e.equal("bytes of the snapshot not listed", uncovered(list, w), 0)
	}
}

func testSnapshotConditions(_ *testing.T, e env) {
	e.createPages("b", 4096)
	etag := e.properties("b").ETag
	e.ok(e.put("b", 0, fill(512, 1), target.Unguarded))
	_, err := e.Snapshot(e.ctx, "b", "", etag, nil)
	e.fails(err, target.ErrCondition)
	_, err = e.Snapshot(e.ctx, "b", leaseA, "", nil)
	e.fails(err, target.ErrLeaseLost)
	list, err := e.Snapshots(e.ctx, "b")
	e.ok(err)
	e.equal("snapshots", len(list), 0)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	_, err = e.Snapshot(e.ctx, "b", leaseA, e.properties("b").ETag, nil)
	e.ok(err)
}

func testSnapshotList(t *testing.T, e env) {
	e.createPages("b", 4096)
	e.createPages("b2", 4096)
	_, err := e.Snapshot(e.ctx, "b2", "", "", nil) // a neighbour whose name begins the same
	e.ok(err)
	var ids []string
	for _, epoch := range []string{"1", "2", "3", "4", "5"} { // within a millisecond or so
		id, err := e.Snapshot(e.ctx, "b", "", "", map[string]string{"epoch": epoch, "kind": "apply"})
		e.ok(err)
		ids = append(ids, id)
	}
	list, err := e.Snapshots(e.ctx, "b")
	e.ok(err)
	e.equal("snapshots", len(list), 5)
	for i, s := range list {
		if s.ID != ids[i] || s.Metadata["epoch"] != string(rune('1'+i)) || s.Metadata["kind"] != "apply" || s.Size != 4096 || s.Time.IsZero() {
			t.Fatalf("snapshot %d: %+v, want id %s", i, s, ids[i])
		}
		if i > 0 && s.ID <= list[i-1].ID {
			t.Fatalf("ids do not sort by age: %s after %s", s.ID, list[i-1].ID)
		}
	}
}

func testSnapshotDelete(t *testing.T, e env) {
	e.createPages("b", 4096)
	e.ok(e.AcquireLease(e.ctx, "b", leaseA))
	e.ok(e.put("b", 0, fill(512, 1), target.Guard{Lease: leaseA, Sequence: 0}))
	first, err := e.Snapshot(e.ctx, "b", leaseA, "", nil)
	e.ok(err)
	second, err := e.Snapshot(e.ctx, "b", leaseA, "", nil)
	e.ok(err)
	e.fails(e.DeletePages(e.ctx, "b", leaseA), target.ErrSnapshots)
	e.ok(e.DeleteSnapshot(e.ctx, "b", first)) // the base's lease does not matter
	e.ok(e.DeleteSnapshot(e.ctx, "b", first))
	e.fails(e.ReadPages(e.ctx, "b", first, 0, make([]byte, 512)), target.ErrNotFound)
	_, err = e.Properties(e.ctx, "b", first)
	e.fails(err, target.ErrNotFound)
	if !bytes.Equal(e.read("b", second, 0, 512), fill(512, 1)) {
		t.Fatal("the other snapshot went with it")
	}
	e.fails(e.DeletePages(e.ctx, "b", leaseA), target.ErrSnapshots)
	e.ok(e.DeleteSnapshot(e.ctx, "b", second))
	e.ok(e.DeletePages(e.ctx, "b", leaseA))
}

func testSnapshotMetadata(_ *testing.T, e env) {
	e.createPages("b", 512)
	want := map[string]string{"generation": "3", "epoch": "18446744073709551615", "kind": "base", "x_1": "a b=c;\"%'"}
	id, err := e.Snapshot(e.ctx, "b", "", "", want)
	e.ok(err)
	p, err := e.Properties(e.ctx, "b", id)
	e.ok(err)
	e.equal("metadata", p.Metadata, want)
	for _, bad := range []map[string]string{{"Upper": "x"}, {"1st": "x"}, {"": "x"}, {"a-b": "x"}, {"k": "ü"}, {"k": "a\nb"}, {"k": " x"}} {
		_, err := e.Snapshot(e.ctx, "b", "", "", bad)
		e.fails(err, target.ErrName)
	}
	_, err = e.Snapshot(e.ctx, "b", "", "", map[string]string{"k": string(bytes.Repeat([]byte{'x'}, target.MaxMetadata))})
	e.fails(err, target.ErrTooLarge)
	if !checksum.IsZero(e.read("b", id, 0, 512)) {
		e.t.Fatal("content")
	}
}
