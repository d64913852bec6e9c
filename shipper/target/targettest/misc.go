package targettest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/url"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

var errorTests = []test{
	{"CancelledBeforehand", testCancelled},
	{"String", testString},
}

// testCancelled: a context that has ended before the call is a refusal, so its
// outcome is known.
func testCancelled(t *testing.T, e env) {
	e.createPages("b", 4096)
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	_, createErr := e.Create(ctx, "new", nil)
	_, getErr := e.Get(ctx, "b")
	var listErr error
	for _, err := range e.List(ctx, "") {
		listErr = err
	}
	put := e.PutPages(ctx, "b", 0, fill(512, 1), 0, target.Unguarded)
	for what, err := range map[string]error{
		"Create": createErr, "Get": getErr, "List": listErr, "PutPages": put,
		"CreatePages":  e.CreatePages(ctx, "new2", 512, 0),
		"ReadPages":    e.ReadPages(ctx, "b", "", 0, make([]byte, 512)),
		"Delete":       e.Delete(ctx, "b"),
		"DeleteIf":     e.DeleteIf(ctx, "b", `"0x1"`),
		"AcquireLease": e.AcquireLease(ctx, "b", leaseA),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("%s: got %v, want %v", what, err, context.Canceled)
		}
		e.fails(err, context.Canceled)
	}
	e.equal("what is there", names(e.list("")), []string{"b"})
}

func testString(t *testing.T, e env) {
	u, err := url.Parse(e.String())
	if err != nil || u.Scheme == "" {
		t.Fatalf("%q is no URL: %v", e.String(), err)
	}
	if u.User != nil || u.RawQuery != "" {
		t.Fatal("the URL may hold a secret")
	}
}

// model is what the target should hold: the base and its snapshots.
type model struct {
	base      []byte
	snapshots map[string][]byte
}

// runRandom compares random page operations with plain memory.
func runRandom(t *testing.T, e env, scale int64) {
	if scale == 0 {
		scale = 1 << 20
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	e.createPages("b", scale)
	m := model{base: make([]byte, scale), snapshots: map[string][]byte{}}
	for range 150 {
		m.step(e, r, scale)
	}
	m.check(t, e)
}

func (m *model) step(e env, r *rand.Rand, scale int64) {
	size := int64(len(m.base))
	off := r.Int64N(size/512) * 512
	n := min(size-off, 512*(1+r.Int64N(200)))
	switch k := r.IntN(20); {
	case k < 10:
		data := random(int(n), r.Uint64())
		e.ok(e.put("b", off, data, target.Unguarded))
		copy(m.base[off:], data)
	case k < 15:
		e.ok(e.ClearPages(e.ctx, "b", off, n, target.Unguarded))
		clear(m.base[off : off+n])
	case k < 17:
		id, err := e.Snapshot(e.ctx, "b", "", "", nil)
		e.ok(err)
		m.snapshots[id] = bytes.Clone(m.base)
	case k < 18:
		m.dropOne(e)
	default:
		m.resize(e, (1+r.Int64N(scale/512))*512)
	}
}

func (m *model) dropOne(e env) {
	for id := range m.snapshots {
		e.ok(e.DeleteSnapshot(e.ctx, "b", id))
		delete(m.snapshots, id)
		return
	}
}

func (m *model) resize(e env, size int64) {
	e.ok(e.Resize(e.ctx, "b", size, target.Unguarded))
	next := make([]byte, size)
	copy(next, m.base)
	m.base = next
}

func (m *model) check(t *testing.T, e env) {
	t.Helper()
	m.same(t, e, "", m.base)
	list, err := e.Snapshots(e.ctx, "b")
	e.ok(err)
	e.equal("snapshots", len(list), len(m.snapshots))
	for id, want := range m.snapshots {
		m.same(t, e, id, want)
	}
}

func (m *model) same(t *testing.T, e env, id string, want []byte) {
	t.Helper()
	if !bytes.Equal(e.read("b", id, 0, int64(len(want))), want) {
		t.Fatalf("content of the base or snapshot %q differs from the model", id)
	}
	list, err := e.Ranges(e.ctx, "b", id, 0, int64(len(want)))
	e.ok(err)
	for off := 0; off < len(want); off += target.PageSize {
		page := target.ByteRange{Off: int64(off), Len: target.PageSize}
		if !bytes.Equal(want[off:off+target.PageSize], make([]byte, target.PageSize)) && uncovered(list, page) > 0 {
			t.Fatalf("page at %d of %q holds data but is in no range", off, id)
		}
	}
}
