package catalog

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// point is a record with disks given as "id" (complete) or "id?" (initial).
func point(epoch uint64, disks ...string) Record {
	r := record(PointID{1, epoch}, PointID{1, epoch - 1})
	r.Time = noon.Add(time.Duration(epoch) * time.Minute)
	for _, d := range disks {
		state := StateComplete
		if d[len(d)-1] == '?' {
			d, state = d[:len(d)-1], StateInitial
		}
		r.Disks = append(r.Disks, RecordDisk{ID: d, Name: d + ".vhd", State: state, VirtualSize: 512, Sum: "0000000000000000"})
	}
	return r
}

func TestLatest(t *testing.T) {
	gone := VMDoc{Disks: []DiskDoc{{ID: "b", Name: "b", Removed: true}}}
	for what, c := range map[string]struct {
		doc     VMDoc
		records []Record
		want    uint64
	}{
		"none":                            {VMDoc{}, nil, 0},
		"never complete":                  {VMDoc{}, []Record{point(1, "a?")}, 0},
		"the newest":                      {VMDoc{}, []Record{point(1, "a"), point(2, "a")}, 2},
		"a new disk does not hold it up":  {VMDoc{}, []Record{point(1, "a"), point(2, "a", "b?")}, 2},
		"complete once, initial again":    {VMDoc{}, []Record{point(1, "a", "b"), point(2, "a", "b?")}, 1},
		"complete once, not listed":       {VMDoc{}, []Record{point(1, "a", "b"), point(2, "a")}, 1},
		"removed":                         {gone, []Record{point(1, "a", "b"), point(2, "a")}, 2},
		"complete only after the replace": {gone, []Record{point(1, "a", "b"), point(2, "a", "c?"), point(3, "a", "c")}, 3},
	} {
		r, ok := Latest(c.doc, c.records)
		if ok != (c.want > 0) || r.Epoch != c.want {
			t.Errorf("%s: %d, %v", what, r.Epoch, ok)
		}
	}
}

func TestFindPoint(t *testing.T) {
	records := []Record{point(1, "a", "b"), point(2, "a", "b"), point(4, "a", "b?")}
	for spec, want := range map[string]uint64{
		"": 2, "latest": 2, "1-1": 1, "1-4": 4, "1-3": 0, "2-1": 0, "yesterday": 0, "01-1": 0,
		"2026-01-05T12:01:00Z":           0, // a fraction too early
		"2026-01-05T12:01:00.123456789Z": 1,
		"2026-01-05T14:03:59+01:00":      4,
		"2026-01-05T13:02:30+01:00":      2,
		"2026-01-05T12:01:59.999Z":       1,
		"2030-01-01T00:00:00Z":           4,
		"2026-01-05 12:02:30":            0,
	} {
		r, err := FindPoint(VMDoc{Name: "vm"}, records, spec)
		if (err == nil) != (want > 0) || r.Epoch != want || err != nil && !errors.Is(err, ErrNoPoint) {
			t.Errorf("%q: %d, %v; want %d", spec, r.Epoch, err, want)
		}
	}
	if _, err := FindPoint(VMDoc{}, nil, "latest"); !errors.Is(err, ErrNoPoint) {
		t.Error(err)
	}
}

// The example of the operator's contract, DESIGN §7.
func TestPointsDocument(t *testing.T) {
	r := Record{Generation: 1, Epoch: 12, Time: noon, Consistency: "crash", Disks: []RecordDisk{
		{ID: "d1", Name: "os.vhd", State: StateComplete, VirtualSize: 1 << 30, ChangedBytes: 524288, StoredBytes: 131072},
		{ID: "d2", Name: "new.vhd", State: StateInitial, VirtualSize: 512}}}
	got, err := json.Marshal(Points(VMDoc{Name: "web01"}, []Record{r}, nil))
	want := `{"vm":"web01","points":[{"id":"1-12","generation":1,"epoch":12,"time":"2026-01-05T12:00:00.123456789Z","consistency":"crash","snapshot":false,` +
		`"disks":[{"name":"os.vhd","virtual_size":1073741824,"changed_bytes":524288,"stored_bytes":131072}]}]}`
	if err != nil || string(got) != want {
		t.Errorf("%s\nwant %s, %v", got, want, err)
	}
	if none, err := json.Marshal(Points(VMDoc{Name: "web01"}, nil, nil)); string(none) != `{"vm":"web01","points":[]}` {
		t.Errorf("%s, %v", none, err)
	}
}

// replica makes a page blob with snapshots.
func replica(t *testing.T, f target.Target, disk string, metadata ...map[string]string) {
	t.Helper()
	name := ReplicaName("vm", disk)
	if err := f.CreatePages(t.Context(), name, 1024, 0); err != nil {
		t.Fatal(err)
	}
	for _, m := range metadata {
		if _, err := f.Snapshot(t.Context(), name, "", "", m); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSnapshots(t *testing.T) {
	f := newFake()
	createVM(t, f, 2, Cut{1, 2})
	create(t, f, point(1, "a", "b"), point(2, "a", "b"))
	replica(t, f, "a", SnapshotMetadata(PointID{1, 2}, KindApply), SnapshotMetadata(PointID{1, 0}, KindBase), map[string]string{"mine": "1"},
		SnapshotMetadata(PointID{1, 2}, KindApply), map[string]string{"generation": "1", "epoch": "x", "kind": "apply"},
		SnapshotMetadata(PointID{1, 3}, "other"), SnapshotMetadata(PointID{1, 9}, KindApply))
	replica(t, f, "b", SnapshotMetadata(PointID{1, 1}, KindApply), SnapshotMetadata(PointID{1, 2}, KindBase))
	list, err := Snapshots(t.Context(), f, "vm", "a")
	if err != nil || len(list) != 4 || list[0].Kind != KindBase || list[1].Point != (PointID{1, 2}) || list[1].ID >= list[2].ID || list[3].Point.Epoch != 9 || list[0].Size != 1024 {
		t.Errorf("%+v, %v", list, err)
	}
	doc, records, err := Load(t.Context(), f, "vm")
	if err != nil {
		t.Fatal(err)
	}
	if s, ok := doc.Newest(list, PointID{2, 5}); !ok || s.ID != list[2].ID {
		t.Errorf("newest inside the cuts: %+v", s)
	}
	if s, ok := doc.Newest(list, PointID{1, 1}); !ok || s.Kind != KindBase {
		t.Errorf("newest before 1-1: %+v", s)
	}
	if _, ok := doc.Newest(list[1:], PointID{1, 1}); ok {
		t.Error("a snapshot from the future")
	}
	byDisk, err := AllSnapshots(t.Context(), f, "vm", records)
	if err != nil || len(byDisk) != 2 {
		t.Fatal(byDisk, err)
	}
	for i, want := range []bool{false, false} { // a lacks 1-1, b's of 1-2 is a base
		if HasSnapshot(records[i], byDisk) != want {
			t.Errorf("point %s", records[i].ID())
		}
	}
	if HasSnapshot(point(1, "a?"), byDisk) {
		t.Error("a point without a complete disk has snapshots")
	}
	if !HasSnapshot(point(2, "a", "b?"), byDisk) {
		t.Error("a disk in initial replication is no part of the point")
	}
}

func TestLoadPoints(t *testing.T) {
	f := newFake()
	createVM(t, f, 1)
	create(t, f, point(1, "a"), point(2, "a"))
	replica(t, f, "a", SnapshotMetadata(PointID{1, 2}, KindApply))
	doc, err := LoadPoints(t.Context(), f, "vm")
	if err != nil || len(doc.Points) != 2 || doc.Points[0].Snapshot || !doc.Points[1].Snapshot {
		t.Errorf("%+v, %v", doc, err)
	}
	for k := 1; ; k++ {
		f.FailAt(k, fake.Fault{Kind: fake.Refuse})
		before := f.Injected()
		got, err := LoadPoints(t.Context(), f, "vm")
		if f.Injected() == before {
			break
		}
		if !errors.Is(err, fake.ErrInjected) || !reflect.DeepEqual(got, PointsDoc{}) {
			t.Fatalf("operation %d: %+v, %v", k, got, err)
		}
	}
	f.FailAt(0, fake.Fault{})
	create(t, f, record(PointID{1, 3}, PointID{1, 1}))
	if doc, err := LoadPoints(t.Context(), f, "vm"); !errors.Is(err, ErrChain) || len(doc.Points) != 3 {
		t.Errorf("broken chain: %+v, %v", doc, err)
	}
}

func TestPins(t *testing.T) {
	f := newFake()
	pin := samplePin()
	pin.VM = "vm"
	etag, err := CreatePin(t.Context(), f, pin)
	if err != nil {
		t.Fatal(err)
	}
	pin.Until = pin.Until.Add(time.Hour)
	old := etag
	if etag, err = ReplacePin(t.Context(), f, pin, etag); err != nil {
		t.Fatal(err)
	}
	if again, err := ReplacePin(t.Context(), f, pin, old); err != nil || again != etag {
		t.Errorf("the same again, answer lost: %v", err)
	}
	pins, err := Pins(t.Context(), f, "vm")
	if err != nil || len(pins) != 1 || !reflect.DeepEqual(pins[0], pin) {
		t.Errorf("%+v, %v", pins, err)
	}
	if pin.Expired(pin.Until) || !pin.Expired(pin.Until.Add(1)) {
		t.Error("expiry")
	}
	if err := errors.Join(DeletePin(t.Context(), f, "vm", pin.ID), DeletePin(t.Context(), f, "vm", pin.ID)); err != nil {
		t.Error(err)
	}
	if _, err := ReplacePin(t.Context(), f, pin, etag); !errors.Is(err, ErrPinGone) {
		t.Error(err)
	}
	if _, err := CreatePin(t.Context(), f, Pin{}); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
	if _, err := ReplacePin(t.Context(), f, Pin{}, ""); !errors.Is(err, ErrMalformed) {
		t.Error(err)
	}
}

func TestPinsOfANewerVersionStopThePruner(t *testing.T) {
	f := newFake()
	if _, err := f.Create(t.Context(), PinName("vm", "x"), []byte(`{"version": 2}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := Pins(t.Context(), f, "vm"); !errors.Is(err, ErrVersion) {
		t.Error(err)
	}
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Method == "Get" {
			return fake.Fault{Kind: fake.Refuse, Err: target.ErrNotFound}
		}
		return fake.Fault{}
	})
	if pins, err := Pins(t.Context(), f, "vm"); err != nil || len(pins) != 0 {
		t.Errorf("a reader that is done: %v, %v", pins, err)
	}
	f.FailAt(1, fake.Fault{Kind: fake.Truncate})
	if _, err := Pins(t.Context(), f, "vm"); err == nil {
		t.Error("half a list")
	}
}
