package catalog

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func newFake() *fake.Fake { return fake.New(fake.Options{}) }

// create puts documents at a target without the rules.
func create(t *testing.T, tt target.Target, records ...Record) {
	t.Helper()
	for _, r := range records {
		if err := CreateRecord(t.Context(), tt, r); err != nil {
			t.Fatal(err)
		}
	}
}

// record is a live one without disks.
func record(id, previous PointID) Record {
	return Record{Version: 1, VM: "vm", VMID: uuidA, Generation: id.Generation, Epoch: id.Epoch, EpochUUID: uuidB, Time: noon, Previous: previous}
}

func voided(id, previous PointID) Record {
	r := record(id, previous)
	r.Void = true
	return r
}

func createVM(t *testing.T, tt target.Target, generation uint64, cuts ...Cut) {
	t.Helper()
	doc := VMDoc{Name: "vm", VMID: uuidA, Generation: generation, Cuts: cuts}
	if err := CreateVM(t.Context(), tt, doc); err != nil {
		t.Fatal(err)
	}
}

func TestI5_WhatStandsUnderTheName(t *testing.T) {
	ours := sampleRecord()
	othersUUID, othersSum := sampleRecord(), sampleRecord()
	othersUUID.EpochUUID = uuidA
	othersSum.Segments[0].Sum = "0000000000000000"
	void := Record{VM: ours.VM, VMID: uuidA, Generation: 1, Epoch: 12, EpochUUID: uuidB, Void: true}
	othersVoid := void
	othersVoid.EpochUUID = uuidA
	for what, c := range map[string]struct {
		there, want Record
		err         error
	}{
		"our own":                     {ours, ours, nil},
		"another epoch":               {othersUUID, ours, ErrForeignRecord},
		"our epoch, other segments":   {othersSum, ours, ErrForeignRecord},
		"our epoch was voided":        {void, ours, ErrVoided},
		"another epoch was voided":    {othersVoid, ours, ErrForeignRecord},
		"to void what is void":        {void, void, nil},
		"to void what another voided": {othersVoid, void, nil},
		"to void what is a point":     {ours, void, ErrRecorded},
		"to void another's point":     {othersUUID, void, ErrForeignRecord},
	} {
		f := newFake()
		create(t, f, c.there)
		err := CreateRecord(t.Context(), f, c.want)
		var e *Error
		if !errors.Is(err, c.err) || err != nil && (!errors.As(err, &e) || e.RetryClass() != retry.NonRecoverable || e.ErrorCode() == "" || e.ErrorAction() == "") {
			t.Errorf("%s: %v", what, err)
		}
		if found, err := LoadRecord(t.Context(), f, c.there.VM, c.there.ID()); err != nil || found.EpochUUID != c.there.EpochUUID || found.Void != c.there.Void {
			t.Errorf("%s: the record changed: %+v, %v", what, found, err)
		}
	}
}

func TestI5_CreateOfUnknownOutcome(t *testing.T) {
	for _, kind := range []fake.Kind{fake.Applied, fake.NotApplied, fake.Late, fake.Refuse} {
		f := newFake()
		f.FailAt(1, fake.Fault{Kind: kind})
		err := CreateRecord(t.Context(), f, sampleRecord())
		if (err == nil) != (kind == fake.Applied) {
			t.Errorf("%v: %v", kind, err)
		}
		if kind == fake.Late {
			f.Land()
		}
		if err := CreateRecord(t.Context(), f, sampleRecord()); err != nil {
			t.Errorf("%v, again: %v", kind, err)
		}
		if kind == fake.Refuse && f.Counts()["Get"] != 0 {
			t.Error("a refusal was read back")
		}
	}
}

// A late create of ours lands between the void record and the look at it, and
// the other way round: one of them stands, and both callers learn which.
func TestI5_VoidAgainstALateRecord(t *testing.T) {
	void := Record{VM: "web 01", VMID: uuidA, Generation: 1, Epoch: 12, EpochUUID: uuidB, Void: true}
	f := newFake()
	f.FailAt(1, fake.Fault{Kind: fake.Late})
	if err := CreateRecord(t.Context(), f, sampleRecord()); target.OutcomeOf(err) != target.Unknown {
		t.Fatal(err)
	}
	create(t, f, void)
	if landed := f.Land(); len(landed) != 1 || !errors.Is(landed[0].Err, target.ErrExists) {
		t.Errorf("the late one: %+v", landed)
	}
	if err := CreateRecord(t.Context(), f, sampleRecord()); !errors.Is(err, ErrVoided) {
		t.Error(err)
	}
}

func TestCreateReadBackFails(t *testing.T) {
	f := newFake()
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "Create" {
			return fake.Fault{Kind: fake.Applied}
		}
		return fake.Fault{Kind: fake.Refuse}
	})
	if err := CreateRecord(t.Context(), f, sampleRecord()); !errors.Is(err, fake.ErrInjected) {
		t.Error(err)
	}
}

func TestMalformedRecordIsABug(t *testing.T) {
	r := sampleRecord()
	r.Segments[0].Epoch = 99
	var e *Error
	if err := CreateRecord(t.Context(), newFake(), r); !errors.As(err, &e) || e.Class != retry.Bug {
		t.Error(err)
	}
}

func ids(records []Record) (list []PointID) {
	for _, r := range records {
		list = append(list, r.ID())
	}
	return list
}

func TestI5_RecordsOfAVM(t *testing.T) {
	f := newFake()
	createVM(t, f, 3, Cut{1, 10})
	create(t, f,
		record(PointID{1, 2}, PointID{}), record(PointID{1, 10}, PointID{1, 2}), record(PointID{1, 9}, PointID{1, 2}),
		record(PointID{1, 11}, PointID{1, 10}), // beyond the cut
		voided(PointID{2, 11}, PointID{1, 10}),
		record(PointID{2, 12}, PointID{1, 10}), // no cut yet: the takeover of 2 is not finished
		record(PointID{3, 13}, PointID{2, 12}),
		record(PointID{4, 14}, PointID{3, 13}), // of a generation nobody was given
	)
	records, err := Records(t.Context(), f, "vm")
	want := []PointID{{1, 2}, {1, 9}, {1, 10}, {2, 12}, {3, 13}}
	if !slices.Equal(ids(records), want) {
		t.Errorf("%v, want %v", ids(records), want)
	}
	var chain *ChainError
	if !errors.As(err, &chain) || *chain != (ChainError{At: PointID{1, 10}, Previous: PointID{1, 2}, Before: PointID{1, 9}}) {
		t.Errorf("the chain steps over 1-9: %v", err)
	}
	all, err := AllRecords(t.Context(), f, "vm")
	if err != nil || len(all) != 8 {
		t.Errorf("%v, %v", ids(all), err)
	}
}

func TestCheckChain(t *testing.T) {
	a, b, c := record(PointID{1, 1}, PointID{}), record(PointID{1, 2}, PointID{1, 1}), record(PointID{1, 4}, PointID{1, 3})
	for what, list := range map[string][]Record{"none": nil, "one": {b}, "all": {a, b}, "gap": {a, c}} {
		if err := CheckChain(list); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := CheckChain([]Record{a, b, record(PointID{1, 5}, PointID{1, 1})}); !errors.Is(err, ErrChain) {
		t.Error(err)
	}
}

// A takeover that writes its cut after the records were listed is seen: vm.json
// is read last.
func TestI5_CutWrittenMeanwhileCounts(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	create(t, f, record(PointID{1, 1}, PointID{}), record(PointID{1, 2}, PointID{1, 1}))
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "Get" && op.Name == RecordName("vm", PointID{1, 2}) {
			f.SetHook(nil)
			if _, err := UpdateVM(context.Background(), f, "vm", func(d *VMDoc) error {
				d.Generation, d.Cuts = 2, []Cut{{1, 1}}
				return nil
			}); err != nil {
				t.Error(err)
			}
		}
		return fake.Fault{}
	})
	records, err := Records(t.Context(), f, "vm")
	if err != nil || !slices.Equal(ids(records), []PointID{{1, 1}}) {
		t.Errorf("%v, %v", ids(records), err)
	}
}

func TestRecordPrunedWhileListed(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	create(t, f, record(PointID{1, 1}, PointID{}), record(PointID{1, 2}, PointID{1, 1}))
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "Get" && op.Name == RecordName("vm", PointID{1, 1}) {
			return fake.Fault{Kind: fake.Refuse, Err: target.ErrNotFound}
		}
		return fake.Fault{}
	})
	records, err := Records(t.Context(), f, "vm")
	if err != nil || !slices.Equal(ids(records), []PointID{{1, 2}}) {
		t.Errorf("%v, %v", ids(records), err)
	}
}

func TestRecordsRefuseWhatTheyCannotRead(t *testing.T) {
	for name, data := range map[string]string{
		"vm/points/1-1.json":  `{"version": 2}`,
		"vm/points/1-2.json":  `{`,
		"vm/points/notes.txt": ``,
		"vm/points/1-3.json":  string(mustEncode(record(PointID{1, 4}, PointID{}))),
	} {
		f := newFake()
		createVM(t, f, 1)
		if _, err := f.Create(t.Context(), name, []byte(data)); err != nil {
			t.Fatal(err)
		}
		_, err := Records(t.Context(), f, "vm")
		if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func mustEncode(r Record) []byte {
	data, err := encode(&r)
	if err != nil {
		panic(err)
	}
	return data
}

// Whichever read fails, nobody gets a part of the list.
func TestRecordsReportEveryFailure(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	create(t, f, record(PointID{1, 1}, PointID{}), record(PointID{1, 2}, PointID{1, 1}))
	for k := 1; ; k++ {
		f.FailAt(k, fake.Fault{Kind: fake.Refuse})
		before := f.Injected()
		records, err := Records(t.Context(), f, "vm")
		if f.Injected() == before {
			return
		}
		if !errors.Is(err, fake.ErrInjected) || records != nil {
			t.Fatalf("operation %d: %v, %v", k, records, err)
		}
	}
}
