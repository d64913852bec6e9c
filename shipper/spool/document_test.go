package spool

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

var update = flag.Bool("update", false, "write the golden files; a change of one is a change of the format")

func sampleManifest() *Manifest {
	return &Manifest{
		Version: 1, VM: "web01", VMID: "0b1e", Generation: 1, Epoch: 12, Previous: 10, EpochUUID: "e0", SealedAt: time.Unix(1700000000, 250000000).UTC(),
		Closed: true, RecordAttempted: true,
		Disks: []ManifestDisk{
			{ID: "os", Name: "os.vhd", Format: image.VHDFixed, State: Complete, VirtualSize: 1 << 30, FileSize: 1<<30 + 512, DiskSum: 0x0123456789abcdef,
				SumKnown: true, Segment: &SegmentRef{"os.seg", "5e", 4608, 0xfedcba9876543210, 4096, 17}},
			{ID: "data", Name: "data.img", Format: image.Raw, State: Initial, VirtualSize: 1 << 20, FileSize: 1 << 20},
		},
	}
}

func TestGoldenManifest(t *testing.T) {
	path := filepath.Join("testdata", "v1-manifest.json")
	data, err := encodeManifest(sampleManifest())
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(path)
	if err != nil || string(golden) != string(data) {
		t.Errorf("the format changed: %v\n%s", err, data)
	}
	m, err := decodeManifest(golden)
	if err != nil || !reflect.DeepEqual(m, sampleManifest()) {
		t.Errorf("%v %+v", err, m)
	}
}

// document makes a document of any body with a right checksum.
func document(version int, kind, body string) []byte {
	return fmt.Appendf(nil, "%s %d %s %d %016x\n%s", documentMagic, version, kind, len(body), uint64(checksum.Of([]byte(body))), body)
}

func TestDocumentErrorsAreDistinct(t *testing.T) {
	good, err := encodeManifest(sampleManifest())
	if err != nil {
		t.Fatal(err)
	}
	body := string(good[strings.IndexByte(string(good), '\n')+1:])
	edit := func(from, to string) []byte { return document(1, kindManifest, strings.Replace(body, from, to, 1)) }
	cases := []struct {
		name string
		data []byte
		want error
	}{
		{"json without a first line", []byte(body), ErrMagic},
		{"other magic", []byte("vhdrelay-spoof 1 x\n"), ErrMagic},
		{"longer magic", []byte("vhdrelay-spools 1 x\n"), ErrMagic},
		{"newer", document(2, kindManifest, body), ErrVersion},
		{"newer, and all else is different", []byte("vhdrelay-spool 7 xyz\n"), ErrVersion},
		{"a field of a newer program", edit(`"vm":`, `"color": "red", "vm":`), ErrVersion},
		{"a field of a newer program in a disk", edit(`"name": "os.vhd"`, `"name": "os.vhd", "color": "red"`), ErrVersion},
		{"version 0", document(0, kindManifest, body), ErrMalformed},
		{"other kind", document(1, kindGiveUp, body), ErrMalformed},
		{"no JSON", document(1, kindManifest, "{"), ErrMalformed},
		{"two documents", document(1, kindManifest, body+body), ErrMalformed},
		{"wrong type", edit(`"epoch": 12`, `"epoch": "12"`), ErrMalformed},
		{"epoch 0", edit(`"epoch": 12`, `"epoch": 0`), ErrMalformed},
		{"state", edit(`"complete"`, `"odd"`), ErrMalformed},
		{"a path", edit(`"os.seg"`, `"../os.seg"`), ErrMalformed},
		{"short checksum", edit(`"0123456789abcdef"`, `"123"`), ErrMalformed},
		{"checksum digits", edit(`"0123456789abcdef"`, `"0123456789abcdeX"`), ErrMalformed},
		{"length", []byte("vhdrelay-spool 1 manifest x 0123456789abcdef\n{}"), ErrMalformed},
		{"checksum", []byte(strings.Replace(string(good), "web01", "web02", 1)), ErrChecksum},
		{"longer", append(good[:len(good):len(good)], ' '), ErrChecksum},
	}
	for _, c := range cases {
		if _, err := decodeManifest(c.data); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	for n := range good {
		if _, err := decodeManifest(good[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: %v", n, len(good), err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	good, err := encodeManifest(sampleManifest())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add(good[strings.IndexByte(string(good), '\n')+1:], true)
	f.Fuzz(func(t *testing.T, data []byte, wrap bool) {
		if wrap {
			data = document(1, kindManifest, string(data))
		}
		m, err := decodeManifest(data)
		if err != nil {
			return
		}
		again, err := encodeManifest(m)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := decodeManifest(again); err != nil || !m.onlyFlags(n) {
			t.Fatalf("%v\n%+v\n%+v", err, m, n)
		}
	})
}

// FuzzSpool: whatever a spool's files hold it opens, unless a newer version wrote one; what it cannot read is damage that it
// names, and a give-up that it cannot read is one of everything.
func FuzzSpool(f *testing.F) {
	manifest, err := encodeManifest(sampleManifest())
	if err != nil {
		f.Fatal(err)
	}
	intent, err := encodeDocument(kindGiveUp, giveUpJSON{From: 12})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("1-12", manifest, intent)
	f.Add("1-12", manifest[:40], []byte{})
	f.Add("01-12", []byte{}, []byte("vhdrelay"))
	f.Add("2-7", intent, manifest)
	f.Fuzz(func(t *testing.T, name string, manifest, intent []byte) {
		dir := t.TempDir()
		if strings.ContainsAny(name, "/\x00") || len(name) > 200 {
			return
		}
		if os.Mkdir(filepath.Join(dir, name), 0o700) != nil {
			return
		}
		write(t, filepath.Join(dir, name, manifestName), string(manifest))
		if len(intent) > 0 {
			write(t, filepath.Join(dir, giveUpName), string(intent))
		}
		s, err := Open(dir, Options{Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			if !errors.Is(err, ErrVersion) {
				t.Errorf("it does not open: %v", err)
			}
			return
		}
		from, pending := s.GiveUpFrom()
		if pending != (len(intent) > 0) || pending && from == 0 {
			t.Errorf("give up from %d, %t", from, pending)
		}
		if _, _, ours := parseEpochName(name); ours && len(s.Manifests())+len(s.Damaged()) == 0 {
			t.Errorf("epoch %s is neither there nor damaged", name)
		}
		if err := s.FinishGiveUp(); err != nil {
			t.Error(err)
		}
	})
}
