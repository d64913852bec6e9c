package catalog

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// These are stored at targets: no line may ever change.
func TestNamesAreGolden(t *testing.T) {
	id := PointID{1, 12}
	for got, want := range map[string]string{
		VMDocName("web01"):                      "web01/vm.json",
		RecordName("web01", id):                 "web01/points/1-12.json",
		PinName("web01", "p1"):                  "web01/pins/p1.json",
		ReplicaName("web01", "os.vhd"):          "web01/os.vhd/replica.vhd",
		SegmentName("web01", "os.vhd", id):      "web01/os.vhd/log/1-12",
		FailoverName("web01", "test1", "os"):    "web01/failover/test1/os.vhd",
		EncodeName("a b"):                       "a~20b",
		EncodeName("a/b"):                       "a~2Fb",
		EncodeName("100%~"):                     "100~25~7E",
		EncodeName("line\nfeed"):                "line~0Afeed",
		EncodeName("Grün"):                      "Gr~C3~BCn",
		EncodeName(".hidden."):                  "~2Ehidden~2E",
		EncodeName("."):                         "~2E",
		EncodeName(".."):                        "~2E~2E",
		EncodeName("a..b"):                      "a..b",
		EncodeName("points"):                    "~70oints",
		EncodeName("vm.json"):                   "~76m.json",
		EncodeName(""):                          "~0",
		EncodeName("Web01"):                     "Web01",
		EncodeName(strings.Repeat("x", 200)):    strings.Repeat("x", 200),
		EncodeName(strings.Repeat("\x00", 125)): "~~" + strings.Repeat("0", 198) + "~/00",
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

func checkName(t *testing.T, name string) {
	t.Helper()
	encoded := EncodeName(name)
	for _, element := range strings.Split(encoded, "/") {
		if element == "" || len(element) > 255 || strings.Trim(element, ".") != element {
			t.Errorf("%q: element %q", name, element)
		}
	}
	if strings.Trim(encoded, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~/") != "" {
		t.Errorf("%q: characters of %q", name, encoded)
	}
	back, rest, err := DecodeName(encoded + "/replica.vhd")
	if back != name || rest != "replica.vhd" || err != nil {
		t.Errorf("%q is %q, decodes to %q, %q, %v", name, encoded, back, rest, err)
	}
	if back, rest, err := DecodeName(encoded); back != name || rest != "" || err != nil {
		t.Errorf("%q alone is %q, decodes to %q, %q, %v", name, encoded, back, rest, err)
	}
}

func FuzzEncodeName(f *testing.F) {
	for _, s := range []string{"web01", "", "~", "~~", "~0", "a~", "%41", "pins", "failover", "a\x00b", "\xff\xfe", "日本語", strings.Repeat("ü/", 85),
		strings.Repeat("x", 201), strings.Repeat("~", 255), "vm.json", "."} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) { checkName(t, name) })
}

func FuzzDecodeName(f *testing.F) {
	for _, s := range []string{"a~2", "a~zz", "~~", "~~0", "~~~/", "~~00~/00", "a//b", "~61", "~~G", "a%2Fb", "points/1-1.json", "/", "~0x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, blob string) {
		name, rest, err := DecodeName(blob)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Errorf("%q: %v", blob, err)
			}
			return
		}
		if again := EncodeName(name); blob != again && blob != again+"/"+rest {
			t.Errorf("%q is %q and %q, which is %q", blob, name, rest, again)
		}
	})
}

func TestTwoNamesNeverMeet(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	alphabet := []string{"a", "A", "~", "0", ".", "/", "%", " ", "points", "\n", "ü", strings.Repeat("x", 120)}
	seen := map[string]string{}
	for range 20000 {
		var b strings.Builder
		for range 1 + rng.IntN(4) {
			b.WriteString(alphabet[rng.IntN(len(alphabet))])
		}
		name := b.String()
		encoded := EncodeName(name) + "/"
		if other, ok := seen[encoded]; ok && other != name {
			t.Fatalf("%q and %q are both %q", name, other, encoded)
		}
		seen[encoded] = name
	}
}

// The longest names Linux has, of the bytes that encode worst, on a target.
func TestWorstNamesFit(t *testing.T) {
	for _, c := range []byte{'x', ' ', '\n', '%', 0xff, '.'} {
		name := strings.Repeat(string([]byte{c}), 255)
		checkName(t, name)
		if err := CheckName(name, name); err != nil {
			t.Error(err)
		}
		longest := SegmentName(name, name, PointID{^uint64(0), ^uint64(0)})
		if len(longest) > 900 || !utf8.ValidString(longest) {
			t.Errorf("%d characters leave no room for a prefix", len(longest))
		}
	}
	if err := CheckName("vm", strings.Repeat("x", 1000)); !errors.Is(err, target.ErrName) {
		t.Errorf("too long: %v", err)
	}
}

func TestParseNames(t *testing.T) {
	id := PointID{3, 1 << 60}
	for _, name := range []string{"web01", "a/b", strings.Repeat("\n", 255), "points"} {
		vm, disk, got, err := ParseSegment(SegmentName(name, name+"2", id))
		if vm != name || disk != name+"2" || got != id || err != nil {
			t.Errorf("%q: %q, %q, %s, %v", name, vm, disk, got, err)
		}
		if got, err := ParseRecord(name, RecordName(name, id)); got != id || err != nil {
			t.Errorf("%q: record %s, %v", name, got, err)
		}
	}
	for _, blob := range []string{"", "vm", "vm/disk", "vm/disk/log/", "vm/disk/log/1", "vm/disk/log/01-2", "vm/disk/log/1-2/3", "vm/disk/log/-1-2",
		"vm/disk/replica.vhd", "vm/points/1-2.json", "v m/disk/log/1-2", "vm/~2/log/1-2"} {
		if _, _, _, err := ParseSegment(blob); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", blob, err)
		}
	}
	for _, blob := range []string{"vm/points/1-2", "vm/points/1-2.json.json", "vm2/points/1-2.json", "vm/points/x.json"} {
		if _, err := ParseRecord("vm", blob); !errors.Is(err, ErrName) {
			t.Errorf("%q: %v", blob, err)
		}
	}
}

func TestPointIDOrder(t *testing.T) {
	order := []PointID{{}, {0, 1}, {1, 0}, {1, 2}, {1, 10}, {2, 1}, {10, 1}}
	for i, a := range order {
		for j, b := range order {
			if a.Less(b) != (i < j) || (a.Compare(b) == 0) != (i == j) {
				t.Errorf("%s, %s", a, b)
			}
		}
		if a.IsZero() != (i == 0) {
			t.Errorf("%s is zero", a)
		}
	}
}

// FuzzNames: a blob's name is that of a segment or a record only if it is the one that we make for it.
func FuzzNames(f *testing.F) {
	id := PointID{3, 17}
	for _, s := range []string{SegmentName("web01", "os.vhd", id), RecordName("web01", id), "web01/points/03-1.json", "a/b/log/1-1x", "//log/1-1", "1-18446744073709551616"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if vm, disk, id, err := ParseSegment(name); err == nil && SegmentName(vm, disk, id) != name {
			t.Errorf("%q is taken for segment %v of %q/%q", name, id, vm, disk)
		}
		if id, err := ParseRecord("web01", name); err == nil && RecordName("web01", id) != name {
			t.Errorf("%q is taken for record %v", name, id)
		}
		if id, err := ParsePointID(name); err == nil && id.String() != name {
			t.Errorf("%q is taken for %v", name, id)
		}
	})
}
