package fake

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	idA = "aaaaaaaa-0000-4000-8000-000000000001"
	idB = "bbbbbbbb-0000-4000-8000-000000000002"
)

func newBlob(t *testing.T, name string, size int64) *Fake {
	t.Helper()
	f := New(Options{})
	ok(t, f.CreatePages(t.Context(), name, size, 0))
	return f
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(f *Fake, off int64, value byte, g target.Guard) error {
	data := bytes.Repeat([]byte{value}, 512)
	return f.PutPages(context.Background(), "b", off, data, checksum.Of(data), g)
}

func first(t *testing.T, f *Fake, snapshot string) byte {
	t.Helper()
	p := make([]byte, 1)
	ok(t, f.Clone().ReadPages(t.Context(), "b", snapshot, 0, p))
	return p[0]
}

func wantUnknown(t *testing.T, err error) {
	t.Helper()
	if err == nil || target.OutcomeOf(err) != target.Unknown {
		t.Fatalf("got %v, want an unknown outcome", err)
	}
}

// TestLeaseTable is AZURE.md 1.4, cell by cell; want "" is success.
func TestLeaseTable(t *testing.T) {
	const lost, taken = "lease-lost", "lease-taken"
	ids := []string{idA, idB, ""}
	for state, want := range map[LeaseState][3]string{
		Available: {lost, lost, ""},
		Leased:    {"", taken, taken},
		Breaking:  {"", taken, taken},
		Broken:    {lost, lost, ""},
		Expired:   {lost, lost, ""},
	} {
		for i, id := range ids {
			f := newBlob(t, "b", 4096)
			f.SetLease("b", state, idA)
			if got := codeOf(put(f, 0, 1, target.Guard{Lease: id})); got != want[i] {
				t.Errorf("state %d, write with %q: got %q, want %q", state, id, got, want[i])
			}
			_, err := f.Snapshot(t.Context(), "b", id, "", nil)
			if id != "" && codeOf(err) != want[i] || id == "" && err != nil {
				t.Errorf("state %d, snapshot with %q: %v", state, id, err)
			}
		}
	}
}

func TestLeaseTableAcquire(t *testing.T) {
	const taken = "lease-taken"
	for state, want := range map[LeaseState][2]string{
		Available: {"", ""},
		Leased:    {"", taken},
		Breaking:  {taken, taken},
		Broken:    {"", ""},
		Expired:   {"", ""},
	} {
		for i, id := range []string{idA, idB} {
			f := newBlob(t, "b", 4096)
			f.SetLease("b", state, idA)
			if got := codeOf(f.AcquireLease(t.Context(), "b", id)); got != want[i] {
				t.Errorf("state %d, acquire %q: got %q, want %q", state, id, got, want[i])
			}
		}
	}
	if New(Options{}).SetLease("none", Leased, idA) {
		t.Error("leased a blob that does not exist")
	}
}

func codeOf(err error) string {
	var e *target.Error
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// TestFaults: what each kind leaves and what it tells.
func TestFaults(t *testing.T) {
	own := errors.New("own")
	for _, c := range []struct {
		name    string
		fault   Fault
		outcome target.Outcome
		applied byte
		is      error
	}{
		{"refuse", Fault{Kind: Refuse}, target.Known, 0, ErrInjected},
		{"refuse with a cause", Fault{Kind: Refuse, Err: own}, target.Known, 0, own},
		{"refuse with a sentinel", Fault{Kind: Refuse, Err: target.ErrAuth}, target.Known, 0, target.ErrAuth},
		{"applied", Fault{Kind: Applied}, target.Unknown, 1, ErrInjected},
		{"not applied", Fault{Kind: NotApplied}, target.Unknown, 0, ErrInjected},
		{"late", Fault{Kind: Late}, target.Unknown, 0, ErrInjected},
		{"throttle", Fault{Kind: Throttle, RetryAfter: 3 * time.Second}, target.Known, 0, target.ErrThrottled},
		{"corrupt", Fault{Kind: Corrupt}, target.Known, 0, target.ErrChecksum},
	} {
		f := newBlob(t, "b", 4096)
		f.FailAt(1, c.fault)
		err := put(f, 0, 1, target.Unguarded)
		if target.OutcomeOf(err) != c.outcome || !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.name, err)
		}
		var e *target.Error
		if errors.As(err, &e) && e.RetryAfter != c.fault.RetryAfter {
			t.Errorf("%s: retry after %v", c.name, e.RetryAfter)
		}
		if got := first(t, f, ""); got != c.applied {
			t.Errorf("%s: content %d, want %d", c.name, got, c.applied)
		}
		if f.Injected() != 1 {
			t.Errorf("%s: %d faults counted", c.name, f.Injected())
		}
		ok(t, put(f, 0, 2, target.Unguarded)) // only the one operation
	}
}

func TestFaultsOfReads(t *testing.T) {
	for _, k := range []Kind{Refuse, Applied, NotApplied, Late, Throttle} {
		f := newBlob(t, "b", 4096)
		f.FailAt(1, Fault{Kind: k})
		_, err := f.Properties(t.Context(), "b", "")
		if err == nil || target.OutcomeOf(err) != target.Known {
			t.Errorf("kind %d: %v, want a failed read of known outcome", k, err)
		}
		if f.Pending() != 0 {
			t.Errorf("kind %d: a read is under way", k)
		}
	}
}

func TestDamagedReads(t *testing.T) {
	f := newBlob(t, "b", 4096)
	_, err := f.Create(t.Context(), "o", []byte("0123456789"))
	ok(t, err)
	f.FailAt(1, Fault{Kind: Corrupt})
	o, err := f.Get(t.Context(), "o")
	ok(t, err)
	if len(o.Data) != 10 || string(o.Data) == "0123456789" {
		t.Errorf("corrupt get: %q", o.Data)
	}
	f.FailAt(1, Fault{Kind: Truncate})
	o, err = f.Get(t.Context(), "o")
	ok(t, err)
	if string(o.Data) != "01234" {
		t.Errorf("truncated get: %q", o.Data)
	}
	p := make([]byte, 4096)
	f.FailAt(1, Fault{Kind: Corrupt})
	ok(t, f.ReadPages(t.Context(), "b", "", 0, p))
	if checksum.IsZero(p) {
		t.Error("corrupt read is not damaged")
	}
	f.FailAt(1, Fault{Kind: Truncate})
	if err := f.ReadPages(t.Context(), "b", "", 0, p); err == nil {
		t.Error("truncated read succeeded")
	}
	f.FailAt(1, Fault{Kind: Truncate})
	items, failed := 0, false
	for _, err := range f.List(t.Context(), "") {
		failed = err != nil
		items++
	}
	if !failed || items != 2 {
		t.Errorf("truncated list: %d entries, failed %v", items, failed)
	}
}

func TestHangEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newBlob(t, "b", 4096)
		f.SetHook(func(op Op) Fault { return Fault{Kind: Hang} })
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		begin := time.Now()
		data := make([]byte, 512)
		err := f.PutPages(ctx, "b", 0, data, checksum.Of(data), target.Unguarded)
		wantUnknown(t, err)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestI7_LateLandings: a request of unknown outcome that lands late is judged by
// the conditions of that moment, so a raised number or a broken lease shuts it out.
func TestI7_LateLandings(t *testing.T) {
	for _, c := range []struct {
		name   string
		before func(f *Fake) error
		want   byte
		code   string
	}{
		{"nothing happened", func(*Fake) error { return nil }, 1, ""},
		{"overwritten", func(f *Fake) error { return put(f, 0, 2, target.Guard{Lease: idA}) }, 1, ""},
		{"number raised", func(f *Fake) error {
			_, err := f.SetSequence(context.Background(), "b", 1, idA, "")
			return err
		}, 0, "sequence-changed"},
		{"lease broken", func(f *Fake) error { return f.BreakLease(context.Background(), "b") }, 0, "lease-lost"},
		{"taken over", func(f *Fake) error {
			return errors.Join(f.BreakLease(context.Background(), "b"), f.AcquireLease(context.Background(), "b", idB))
		}, 0, "lease-taken"},
		{"gone", func(f *Fake) error { return f.DeletePages(context.Background(), "b", idA) }, 0, "target-not-found"},
	} {
		f := newBlob(t, "b", 4096)
		ok(t, f.AcquireLease(t.Context(), "b", idA))
		f.FailAt(1, Fault{Kind: Late})
		wantUnknown(t, put(f, 0, 1, target.Guard{Lease: idA}))
		ok(t, c.before(f))
		if f.Pending() != 1 {
			t.Fatalf("%s: %d under way", c.name, f.Pending())
		}
		landed := f.Land()
		if len(landed) != 1 || codeOf(landed[0].Err) != c.code || f.Pending() != 0 {
			t.Errorf("%s: landed as %+v", c.name, landed)
		}
		if c.name == "gone" {
			continue
		}
		if got := first(t, f, ""); got != c.want {
			t.Errorf("%s: content %d, want %d", c.name, got, c.want)
		}
	}
}

// TestLateAfter: it lands right after the given number of further operations.
func TestLateAfter(t *testing.T) {
	f := newBlob(t, "b", 4096)
	f.FailAt(1, Fault{Kind: Late, After: 2})
	data := bytes.Repeat([]byte{1}, 512)
	wantUnknown(t, f.PutPages(t.Context(), "b", 0, data, checksum.Of(data), target.Unguarded))
	clear(data) // the caller goes on with its buffer
	ok(t, put(f, 512, 9, target.Unguarded))
	if got := first(t, f, ""); got != 0 {
		t.Fatal("landed too early")
	}
	ok(t, put(f, 0, 2, target.Unguarded))
	if got := first(t, f, ""); got != 1 {
		t.Fatalf("content %d: not landed over the newer put", got)
	}
	if l := f.Landings(); len(l) != 1 || l[0].Err != nil || l[0].Op.Method != "PutPages" {
		t.Fatalf("landings %+v", l)
	}
}

// TestLateCreate: the second attempt wins, the first finds the name taken.
func TestLateCreate(t *testing.T) {
	f := New(Options{})
	f.FailAt(1, Fault{Kind: Late})
	_, err := f.Create(t.Context(), "points/1-1.json", []byte("first"))
	wantUnknown(t, err)
	_, err = f.Create(t.Context(), "points/1-1.json", []byte("second"))
	ok(t, err)
	if l := f.Land(); codeOf(l[0].Err) != "target-exists" {
		t.Fatalf("landed as %+v", l)
	}
}

func TestCloneIsIndependent(t *testing.T) {
	f := newBlob(t, "b", 4096)
	ok(t, put(f, 0, 1, target.Unguarded))
	id, err := f.Snapshot(t.Context(), "b", "", "", map[string]string{"epoch": "1"})
	ok(t, err)
	f.FailAt(1, Fault{Kind: Late})
	wantUnknown(t, put(f, 0, 7, target.Unguarded))
	f.SetHook(func(Op) Fault { return Fault{Kind: Refuse} })
	c := f.Clone()
	ok(t, put(c, 0, 2, target.Unguarded)) // neither hook nor plan came along
	ok(t, c.DeleteSnapshot(t.Context(), "b", id))
	if first(t, f, "") != 1 || first(t, f, id) != 1 || first(t, c, "") != 2 {
		t.Fatal("the copies share content")
	}
	if len(c.Land()) != 1 || first(t, c, "") != 7 || first(t, f, "") != 1 || f.Pending() != 1 {
		t.Fatal("what was under way must land in each copy by itself")
	}
}

func TestSnapshotIDsAreUnique(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the clock stands still
		f := newBlob(t, "b", 4096)
		last := ""
		for range 100 {
			id, err := f.Snapshot(t.Context(), "b", "", "", nil)
			ok(t, err)
			if id <= last {
				t.Fatalf("%s after %s", id, last)
			}
			last = id
		}
	})
}

// TestSnapshotETag: AZURE.md 1.3.
func TestSnapshotETag(t *testing.T) {
	f := newBlob(t, "b", 4096)
	base, err := f.Properties(t.Context(), "b", "")
	ok(t, err)
	for _, m := range []map[string]string{nil, {"epoch": "1"}} {
		id, err := f.Snapshot(t.Context(), "b", "", base.ETag, m)
		ok(t, err)
		sn, err := f.Properties(t.Context(), "b", id)
		ok(t, err)
		if (sn.ETag == base.ETag) != (m == nil) {
			t.Errorf("metadata %v: etag %s, base %s", m, sn.ETag, base.ETag)
		}
	}
}

func TestRot(t *testing.T) {
	f := newBlob(t, "b", 4096)
	id, err := f.Snapshot(t.Context(), "b", "", "", nil)
	ok(t, err)
	before, err := f.Properties(t.Context(), "b", "")
	ok(t, err)
	if !f.Rot("b", id, 0) || first(t, f, id) != 1 || first(t, f, "") != 0 {
		t.Fatal("the snapshot is not damaged, or the base is")
	}
	if !f.Rot("b", "", 0) || first(t, f, "") != 1 {
		t.Fatal("the base is not damaged")
	}
	after, err := f.Properties(t.Context(), "b", "")
	ok(t, err)
	if before.ETag != after.ETag {
		t.Fatal("damage showed in the etag")
	}
	if f.Rot("b", "", 4096) || f.Rot("none", "", 0) || f.Rot("b", "none", 0) {
		t.Fatal("damaged what is not there")
	}
	_, err = f.Create(t.Context(), "o", []byte("a"))
	ok(t, err)
	if o, _ := f.Get(t.Context(), "o"); !f.Rot("o", "", 0) || string(o.Data) != "a" {
		t.Fatal("the object is not damaged, or what was read before is")
	}
}

func TestCountsAndTraffic(t *testing.T) {
	f := newBlob(t, "b", 4096)
	ok(t, put(f, 0, 1, target.Unguarded))
	ok(t, put(f, 0, 1, target.Unguarded))
	ok(t, f.ReadPages(t.Context(), "b", "", 0, make([]byte, 100)))
	if got := f.Counts(); f.Operations() != 4 || got["PutPages"] != 2 || got["CreatePages"] != 1 || got["ReadPages"] != 1 {
		t.Errorf("%d operations, %v", f.Operations(), got)
	}
	if in, out := f.Traffic(); in != 1024 || out != 100 {
		t.Errorf("traffic %d in, %d out", in, out)
	}
}

// TestHookSeesOperations: in order, numbered, before they take effect, and the
// hook may use the fake.
func TestHookSeesOperations(t *testing.T) {
	f := newBlob(t, "b", 4096)
	var seen []Op
	f.SetHook(func(op Op) Fault {
		seen = append(seen, op)
		f.Land()
		return Fault{}
	})
	ok(t, put(f, 512, 1, target.Guard{Sequence: 0}))
	_, err := f.Properties(t.Context(), "b", "")
	ok(t, err)
	want := Op{N: 2, Method: "PutPages", Name: "b", Off: 512, Len: 512, Write: true}
	if len(seen) != 2 || seen[0] != want || seen[1].N != 3 || seen[1].Write {
		t.Fatalf("seen %+v", seen)
	}
}

func TestConcurrentUse(t *testing.T) {
	f := newBlob(t, "b", 64<<10)
	f.SetHook(func(op Op) Fault {
		if op.N%3 == 0 {
			return Fault{Kind: Late, After: op.N % 7}
		}
		return Fault{}
	})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				_ = put(f, int64(i)*512, byte(i), target.Unguarded) // its outcome is the hook's
				_, _ = f.Snapshot(context.Background(), "b", "", "", nil)
				f.Clone()
			}
		})
	}
	wg.Wait()
	f.Land()
	if f.Operations() != 1+8*100 || f.Pending() != 0 {
		t.Fatalf("%d operations, %d pending", f.Operations(), f.Pending())
	}
}
