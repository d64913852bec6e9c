package catalog

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

var update = flag.Bool("update", false, "write the golden documents of this version anew")

const (
	uuidA = "11111111-2222-4333-8444-555555555555"
	uuidB = "66666666-7777-4888-9999-aaaaaaaaaaaa"
)

var noon = time.Date(2026, 1, 5, 12, 0, 0, 123456789, time.UTC)

func sampleVM() VMDoc {
	return VMDoc{Version: 1, Name: "web 01", VMID: uuidA, Owner: Owner{Host: "host1", MachineID: "m1", StoreID: "s1"}, Generation: 3,
		Cuts: []Cut{{1, 12}, {2, 0}}, UnchangedUntil: noon, Updated: noon.Add(time.Minute),
		Disks: []DiskDoc{{ID: "d1", Name: "os.vhd", Format: "vhd-fixed", VirtualSize: 1 << 30}, {ID: "d2", Name: "old.img", Format: "raw", VirtualSize: 512, Removed: true}}}
}

func sampleRecord() Record {
	return Record{Version: 1, VM: "web 01", VMID: uuidA, Generation: 1, Epoch: 12, EpochUUID: uuidB, Time: noon, Consistency: ConsistencyCrash,
		Previous: PointID{1, 10},
		Disks: []RecordDisk{{ID: "d1", Name: "os.vhd", Format: "vhd-fixed", State: StateComplete, VirtualSize: 1 << 30, Sum: "00000000000000ff", ChangedBytes: 8192, StoredBytes: 100},
			{ID: "d2", Name: "new.img", Format: "raw", State: StateInitial, VirtualSize: 512}},
		Segments: []SegmentRef{{DiskID: "d1", Blob: "web~2001/d1/log/1-11", Generation: 1, Epoch: 11, Size: 1024, Sum: "0123456789abcdef", UUID: uuidA, VirtualSize: 1 << 30},
			{DiskID: "d1", Blob: "web~2001/d1/log/1-12", Generation: 1, Epoch: 12, Size: 512, Sum: "fedcba9876543210", UUID: uuidB, VirtualSize: 1 << 30}}}
}

func samplePin() Pin {
	return Pin{Version: 1, ID: "p1", VM: "web 01", Point: PointID{1, 12}, Reader: "export on host2", Created: noon, Until: noon.Add(time.Hour),
		Needs: []Need{{DiskID: "d1", Snapshot: "2026-01-05T11:00:00.0000000Z", Segments: []string{"web~2001/d1/log/1-11", "web~2001/d1/log/1-12"}}}}
}

// Documents of every past version must read the same for ever.
func TestGoldenDocuments(t *testing.T) {
	vm, record, pin := sampleVM(), sampleRecord(), samplePin()
	void := Record{Version: 1, VM: "web 01", VMID: uuidA, Generation: 1, Epoch: 13, EpochUUID: uuidB, Previous: PointID{1, 12}, Void: true}
	for file, c := range map[string]struct{ want, got checked }{
		"vm-v1.json": {&vm, &VMDoc{}}, "record-v1.json": {&record, &Record{}}, "void-v1.json": {&void, &Record{}}, "pin-v1.json": {&pin, &Pin{}},
	} {
		path := filepath.Join("testdata", file)
		encoded, err := encode(c.want)
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, encoded, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		golden, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(golden, encoded) {
			t.Errorf("%s: encoded is\n%s", file, encoded)
		}
		if err := decode(file, golden, c.got); err != nil || !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: %v\ngot  %+v\nwant %+v", file, err, c.got, c.want)
		}
	}
}

func TestNewerVersionIsRefusedAsSuch(t *testing.T) {
	for _, doc := range []checked{&VMDoc{}, &Record{}, &Pin{}} {
		err := decode("x", fmt.Appendf(nil, `{"version": %d, "name": {"something": "else"}, "unheard_of": 1}`, doc.newest()+1), doc)
		var e *Error
		if !errors.Is(err, ErrVersion) || errors.Is(err, ErrMalformed) || !errors.As(err, &e) || e.Class != retry.NonRecoverable ||
			!strings.Contains(e.Hint, "Upgrade") {
			t.Errorf("%T: %v", doc, err)
		}
	}
}

func TestStrictDecoding(t *testing.T) {
	good, err := os.ReadFile("testdata/record-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string][2]string{
		"unknown field":        {`"vm":`, `"added_later": 1, "vm":`},
		"missing field":        {`"vm":`, `"added_later": 1, "vmm":`},
		"no version":           {`"version": 1`, `"version": 0`},
		"negative version":     {`"version": 1`, `"version": -1`},
		"version of words":     {`"version": 1`, `"version": "1"`},
		"empty vm":             {`"vm": "web 01"`, `"vm": ""`},
		"vm id":                {uuidA, "x"},
		"epoch uuid":           {`"epoch_uuid": "6`, `"epoch_uuid": "`},
		"previous of no form":  {`"1-10"`, `"1-010"`},
		"previous not older":   {`"1-10"`, `"1-12"`},
		"segment too old":      {`"1-10"`, `"1-11"`},
		"segment too new":      {"\"epoch\": 11", "\"epoch\": 13"},
		"epoch 0":              {"\"epoch\": 12,\n  \"epoch_uuid\"", "\"epoch\": 0,\n  \"epoch_uuid\""},
		"void with disks":      {`"time"`, `"void": true, "time"`},
		"no time":              {`"2026-01-05T12:00:00.123456789Z"`, `"0001-01-01T00:00:00Z"`},
		"state":                {`"complete"`, `"done"`},
		"complete without sum": {`"00000000000000ff"`, `""`},
		"short sum":            {`"00000000000000ff"`, `"ff"`},
		"upper-case sum":       {`"00000000000000ff"`, `"00000000000000FF"`},
		"disk of no size":      {`"virtual_size": 1073741824`, `"virtual_size": 0`},
		"disk without name":    {`"os.vhd"`, `""`},
		"segment sum":          {`0123456789abcdef`, `xyz`},
		"segment size":         {`"size": 1024`, `"size": 1000`},
		"segment blob":         {`"web~2001/d1/log/1-11"`, `""`},
		"absolute blob":        {`"web~2001/d1/log/1-11"`, `"/etc/passwd"`},
		"segment twice":        {`log/1-11`, `log/1-12`},
		"segment of no disk":   {"\"disk_id\": \"d1\"", "\"disk_id\": \"\""},
		"two documents":        {"\n}\n", "\n}\n{}"},
		"cut short":            {"\n}\n", ""},
		"huge number":          {`"epoch": 12`, `"epoch": 99999999999999999999`},
	} {
		bad := strings.Replace(string(good), change[0], change[1], 1)
		if bad == string(good) {
			t.Fatalf("%s changes nothing", what)
		}
		if err := decode("x", []byte(bad), &Record{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestEncodeRefusesWhatDecodeWould(t *testing.T) {
	for what, change := range map[string]func(*VMDoc){
		"no name":      func(d *VMDoc) { d.Name = "" },
		"no id":        func(d *VMDoc) { d.VMID = "" },
		"generation 0": func(d *VMDoc) { d.Generation, d.Cuts = 0, nil },
		"cut of now":   func(d *VMDoc) { d.Cuts[0].Generation = 3 },
		"cut twice":    func(d *VMDoc) { d.Cuts[0].Generation = 2 },
		"disk twice":   func(d *VMDoc) { d.Disks[0].ID = "d2" },
		"disk no name": func(d *VMDoc) { d.Disks[0].Name = "" },
		"version":      func(d *VMDoc) { d.Version = 7 },
	} {
		doc := sampleVM()
		change(&doc)
		if _, err := encode(&doc); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, change := range map[string]func(*Pin){
		"no id": func(p *Pin) { p.ID = "" }, "no vm": func(p *Pin) { p.VM = "" }, "no end": func(p *Pin) { p.Until = time.Time{} },
	} {
		pin := samplePin()
		change(&pin)
		if _, err := encode(&pin); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestSums(t *testing.T) {
	for _, s := range []checksum.Sum{0, 1, checksum.ZeroBlock, ^checksum.Sum(0)} {
		if back, err := ParseSum(FormatSum(s)); back != s || err != nil || len(FormatSum(s)) != 16 {
			t.Errorf("%x: %s, %x, %v", uint64(s), FormatSum(s), uint64(back), err)
		}
	}
}

func FuzzDecodeRecord(f *testing.F) {
	for _, file := range []string{"record-v1.json", "void-v1.json"} {
		data, err := os.ReadFile(filepath.Join("testdata", file))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var r Record
		if decode("x", data, &r) != nil {
			return
		}
		encoded, err := encode(&r)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		var again Record
		if err := decode("x", encoded, &again); err != nil {
			t.Fatalf("not decoded again: %v", err)
		}
	})
}

func FuzzDecodeVM(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "vm-v1.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("web 01", data)
	f.Fuzz(func(t *testing.T, vm string, data []byte) {
		doc, err := decodeVM(vm, data)
		if err != nil {
			return
		}
		encoded, err := encodeVM(doc)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		if again, err := decodeVM(vm, encoded); err != nil || again.Generation != doc.Generation || again.Owner != doc.Owner {
			t.Fatalf("%v\n%+v\n%+v", err, doc, again)
		}
	})
}

// FuzzDecodePin: what a reader left is a pin that can be written again, or an error.
func FuzzDecodePin(f *testing.F) {
	data, err := os.ReadFile(filepath.Join("testdata", "pin-v1.json"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var p Pin
		if err := decode("x", data, &p); err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrVersion) {
				t.Errorf("%v", err)
			}
			return
		}
		encoded, err := encode(&p)
		if err != nil {
			t.Fatalf("decoded, but not encoded: %v", err)
		}
		var again Pin
		if err := decode("x", encoded, &again); err != nil {
			t.Fatalf("not decoded again: %v", err)
		}
	})
}
