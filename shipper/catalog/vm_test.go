package catalog

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func raise(d *VMDoc) error {
	d.Generation++
	return nil
}

func TestI7_UpdateSurvivesAnotherWriter(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	others := 3
	doc, err := UpdateVM(t.Context(), f, "vm", func(d *VMDoc) error {
		if others > 0 {
			others--
			if _, err := UpdateVM(context.Background(), f, "vm", raise); err != nil {
				t.Error(err)
			}
		}
		return raise(d)
	})
	if err != nil || doc.Generation != 5 {
		t.Errorf("generation %d, %v", doc.Generation, err)
	}
	if there, _, err := LoadVM(t.Context(), f, "vm"); err != nil || there.Generation != 5 {
		t.Errorf("there: %d, %v", there.Generation, err)
	}
}

func TestUpdateIsBounded(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	calls := 0
	_, err := UpdateVM(t.Context(), f, "vm", func(d *VMDoc) error {
		calls++
		if _, err := UpdateVM(context.Background(), f, "vm", raise); err != nil {
			t.Error(err)
		}
		d.Owner.Host = "never"
		return nil
	})
	if !errors.Is(err, ErrContended) || calls != DefaultUpdateTries {
		t.Errorf("%d calls, %v", calls, err)
	}
}

func TestUpdateOfUnknownOutcome(t *testing.T) {
	for _, kind := range []fake.Kind{fake.Applied, fake.NotApplied, fake.Late, fake.Refuse} {
		f := newFake()
		createVM(t, f, 1)
		f.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "Replace" {
				f.SetHook(nil)
				return fake.Fault{Kind: kind}
			}
			return fake.Fault{}
		})
		setHost := func(d *VMDoc) error { d.Owner.Host = "h2"; return nil }
		if _, err := UpdateVM(t.Context(), f, "vm", setHost); (err == nil) != (kind == fake.Applied) {
			t.Errorf("%v: %v", kind, err)
		}
		if doc, err := UpdateVM(t.Context(), f, "vm", setHost); err != nil || doc.Owner.Host != "h2" {
			t.Errorf("%v, again: %v", kind, err)
		}
		f.Land() // a late one meets another ETag
		if doc, _, err := LoadVM(t.Context(), f, "vm"); err != nil || doc.Owner.Host != "h2" {
			t.Errorf("%v, at last: %+v, %v", kind, doc, err)
		}
	}
}

func TestUpdateEndsWithTheCallersError(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	want := errors.New("not mine")
	if _, err := UpdateVM(t.Context(), f, "vm", func(d *VMDoc) error { d.Generation = 9; return want }); err != want {
		t.Error(err)
	}
	if _, err := UpdateVM(t.Context(), f, "vm", func(d *VMDoc) error { d.Name = "other"; return nil }); err == nil {
		t.Error("the name was changed")
	}
	if _, err := UpdateVM(t.Context(), f, "vm", func(d *VMDoc) error { d.Generation = 0; return nil }); !errors.Is(err, ErrMalformed) {
		t.Errorf("generation 0: %v", err)
	}
	before := f.Counts()["Replace"]
	if _, err := UpdateVM(t.Context(), f, "vm", func(*VMDoc) error { return nil }); err != nil || f.Counts()["Replace"] != before {
		t.Errorf("nothing was written: %v", err)
	}
	if _, err := UpdateVM(t.Context(), f, "other", raise); !errors.Is(err, ErrNoVM) || !errors.Is(err, target.ErrNotFound) {
		t.Errorf("no such VM: %v", err)
	}
}

func TestCreateVM(t *testing.T) {
	ours := sampleVM()
	others := sampleVM()
	others.Owner.Host = "host9"
	for _, kind := range []fake.Kind{fake.Applied, fake.NotApplied, fake.Late} {
		f := newFake()
		f.FailAt(1, fake.Fault{Kind: kind})
		if err := CreateVM(t.Context(), f, ours); (err == nil) != (kind == fake.Applied) {
			t.Errorf("%v: %v", kind, err)
		}
		f.Land()
		if err := CreateVM(t.Context(), f, ours); err != nil {
			t.Errorf("%v, again: %v", kind, err)
		}
		if err := CreateVM(t.Context(), f, others); !errors.Is(err, target.ErrExists) {
			t.Errorf("another's: %v", err)
		}
		f.FailAt(1, fake.Fault{Kind: fake.NotApplied})
		if err := CreateVM(t.Context(), f, others); !errors.Is(err, target.ErrExists) {
			t.Errorf("another's, answer lost: %v", err)
		}
	}
	bad := sampleVM()
	bad.VMID = ""
	if err := CreateVM(t.Context(), newFake(), bad); !errors.Is(err, ErrMalformed) {
		t.Errorf("malformed: %v", err)
	}
}

func TestListVMs(t *testing.T) {
	f := newFake()
	names := []string{"a b", "web01", "points", "x/y"}
	for _, name := range names {
		doc := sampleVM()
		doc.Name = name
		if err := CreateVM(t.Context(), f, doc); err != nil {
			t.Fatal(err)
		}
	}
	for _, stranger := range []string{"vm.json", "README", "a%20b/vm.json", "deep/er/vm.json"} {
		if _, err := f.Create(t.Context(), stranger, nil); err != nil {
			t.Fatal(err)
		}
	}
	got, err := ListVMs(t.Context(), f)
	slices.Sort(got)
	slices.Sort(names)
	if err != nil || !slices.Equal(got, names) {
		t.Errorf("%q, %v", got, err)
	}
	f.FailAt(1, fake.Fault{Kind: fake.Truncate})
	if got, err := ListVMs(t.Context(), f); err == nil || got != nil {
		t.Errorf("half a list: %q", got)
	}
}

func TestLoadVMChecksWhoseItIs(t *testing.T) {
	f := newFake()
	doc := sampleVM()
	data, err := encodeVM(doc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Create(t.Context(), VMDocName("other"), data); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadVM(t.Context(), f, "other"); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	f.FailAt(1, fake.Fault{Kind: fake.Throttle})
	if _, _, err := LoadVM(t.Context(), f, "other"); !errors.Is(err, target.ErrThrottled) {
		t.Error(err)
	}
}
