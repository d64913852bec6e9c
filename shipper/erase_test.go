package shipper

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// erasable is a VM with points, snapshots, log segments and a pin, and the erasure of it.
func erasable(t *testing.T) (*rig, Erasure) {
	r := replicated(t)
	for i := range 3 {
		r.fill("a.raw", int64(i)*100*kib, 90*kib, byte(40+i))
		r.must(r.cycle())
	}
	_, err := r.target.Create(t.Context(), catalog.PinName("vm", "reader"), []byte("{}"))
	r.must(err)
	_, err = r.target.Create(t.Context(), catalog.VMDocName("vm2"), []byte("{}"))
	r.must(err)
	return r, Erasure{Target: r.target, VM: "vm", ID: r.log.ID(), Generation: r.vm.Status().Generation, Lease: newLease()}
}

func names(t *testing.T, f *fake.Fake) (all []string) {
	t.Helper()
	for item, err := range f.List(context.Background(), "") {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, item.Name)
	}
	return all
}

// Records go first, the newest first; then the rest; vm.json last. Nothing is left,
// and nothing else is touched.
func TestEraseInOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := erasable(t)
		var deleted []string
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "Delete" || op.Method == "DeleteIf" || op.Method == "DeletePages" {
				deleted = append(deleted, op.Name)
			}
			return fake.Fault{}
		})
		r.must(e.Run(t.Context()))
		r.target.SetHook(nil)
		if left := names(t, r.target); !slices.Equal(left, []string{catalog.VMDocName("vm2")}) {
			t.Errorf("left: %q", left)
		}
		isRecord := func(name string) bool { return strings.HasPrefix(name, catalog.RecordsPrefix("vm")) }
		first := slices.IndexFunc(deleted, func(name string) bool { return !isRecord(name) })
		if first < 3 || slices.ContainsFunc(deleted[first:], isRecord) || deleted[len(deleted)-1] != catalog.VMDocName("vm") {
			t.Errorf("deleted in the order %q", deleted)
		}
		if newest, _ := catalog.ParseRecord("vm", deleted[0]); newest.Epoch < 3 {
			t.Errorf("%s first", deleted[0])
		}
		r.must(e.Run(t.Context())) // nothing is there any more
	})
}

// It fails at every fourth operation, another one with every kind of fault, and the
// next run goes on from there.
func TestEraseResumesAfterFaults(t *testing.T) {
	for i, kind := range []fake.Kind{fake.Refuse, fake.Applied, fake.NotApplied, fake.Hang} {
		for k := 1 + i; ; k += 4 {
			ended := false
			bubble(t, func(t *testing.T) {
				r, e := erasable(t)
				base := r.target.Operations()
				r.target.SetHook(func(op fake.Op) fake.Fault {
					if op.N == base+k {
						return fake.Fault{Kind: kind, Err: target.ErrAuth} // not repeated by itself
					}
					return fake.Fault{}
				})
				ctx, cancel := context.WithTimeout(t.Context(), 1e9)
				_ = e.Run(ctx)
				cancel()
				ended = r.target.Operations() < base+k
				r.target.SetHook(nil)
				r.must(e.Run(t.Context()))
				if left := names(t, r.target); len(left) != 1 {
					t.Errorf("kind %d at operation %d: left %q", kind, k, left)
				}
			})
			if ended || t.Failed() {
				break
			}
		}
	}
}

// TestI7_NothingOfAnotherWriterIsErased: whoever took the VM over keeps it.
func TestI7_NothingOfAnotherWriterIsErased(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := erasable(t)
		before := names(t, r.target)
		for name, wrong := range map[string]Erasure{
			"another generation": {Target: r.target, VM: "vm", ID: e.ID, Generation: e.Generation + 1, Lease: e.Lease},
			"another life":       {Target: r.target, VM: "vm", ID: "somebody", Generation: e.Generation, Lease: e.Lease},
		} {
			var p *Problem
			if err := wrong.Run(t.Context()); !errors.As(err, &p) || p.Action == "" || !errors.Is(err, ErrFenced) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if after := names(t, r.target); !slices.Equal(after, before) {
			t.Errorf("%q, before %q", after, before)
		}
	})
}

// A delete of vm.json whose answer was lost lands after the VM was protected again: the new life stays.
func TestI7_LateDeleteSparesTheNextLife(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, e := erasable(t)
		lost := false
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Name == catalog.VMDocName("vm") && strings.HasPrefix(op.Method, "Delete") && !lost {
				lost = true
				return fake.Fault{Kind: fake.Late}
			}
			return fake.Fault{}
		})
		r.must(e.Run(t.Context()))
		if !lost {
			t.Fatal("nothing was late")
		}
		r.must(catalog.CreateVM(t.Context(), r.target, catalog.VMDoc{Version: catalog.FormatVersion, Name: "vm", VMID: e.ID, Generation: e.Generation + 1}))
		r.target.Land()
		if doc, _, err := catalog.LoadVM(t.Context(), r.target, "vm"); err != nil || doc.Generation != e.Generation+1 {
			t.Errorf("%+v, %v", doc, err)
		}
	})
}
