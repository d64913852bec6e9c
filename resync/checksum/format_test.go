package checksum

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// The bytes of version 1, for ever: never change them, add a version.
const (
	goldenHeader = "565243524354424c" + "01000000" + "00200000" + "0300000000000000" + "2a00000000000000" +
		"0500000000000000" + "000102030405060708090a0b0c0d0e0f"
	goldenHeaderSum = "6ee64c570754a366"
	goldenSideList  = "56524352435a4552" + "01000000" + "00000000" + "000102030405060708090a0b0c0d0e0f" +
		"0200000000000000" + "3e004eac55f69045" + "0100000000000000" + "0201000000000000"
)

var goldenID = [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}

func TestGoldenHeader(t *testing.T) {
	h := header{serial: 3, position: 42, blocks: 5, id: goldenID}
	p := h.encode()
	if got := hex.EncodeToString(p[:headerSize]); got != goldenHeader+goldenHeaderSum {
		t.Errorf("header is\n%s, expected\n%s", got, goldenHeader+goldenHeaderSum)
	}
	if len(p) != slotSize || !IsZero(p[headerSize:]) {
		t.Error("the rest of the slot is not zero")
	}
	golden, _ := hex.DecodeString(goldenHeader + goldenHeaderSum)
	if back, err := decodeHeader(golden); err != nil || back != h {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

func TestGoldenSideList(t *testing.T) {
	blocks := []extent.DiskBlock{1, 258}
	if got := hex.EncodeToString(encodeSide(goldenID, blocks)); got != goldenSideList {
		t.Errorf("side list is\n%s, expected\n%s", got, goldenSideList)
	}
	golden, _ := hex.DecodeString(goldenSideList)
	back, err := decodeSide(golden, goldenID)
	if err != nil || len(back) != 2 || back[0] != 1 || back[1] != 258 {
		t.Errorf("decoded %v, %v", back, err)
	}
}

// resum makes an altered header consistent again.
func resum(p []byte) []byte {
	binary.LittleEndian.PutUint64(p[headerSize-8:], uint64(Of(p[:headerSize-8])))
	return p
}

func alter(p []byte, at int, b byte) []byte {
	p = bytes.Clone(p)
	p[at] ^= b
	return p
}

func TestHeaderErrorsAreTold(t *testing.T) {
	good := header{serial: 1, blocks: 1}.encode()
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"magic":           {alter(good, 0, 1), ErrMagic},
		"damage":          {alter(good, 30, 1), ErrChecksum},
		"damaged version": {alter(good, 8, 2), ErrChecksum},
		"newer version":   {resum(alter(good, 8, 3)), ErrVersion},
		"version 0":       {resum(alter(good, 8, 1)), ErrChecksum},
		"entries moved":   {resum(alter(good, 13, 1)), ErrChecksum},
		"absurd size":     {resum(alter(good, 39, 1)), ErrChecksum},
		"short":           {good[:63], ErrTruncated},
	} {
		if _, err := decodeHeader(c.p); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
	}
}

func TestSlotsChooseTheNewerValidOne(t *testing.T) {
	old, newer := header{serial: 4, position: 1}.encode(), header{serial: 5, position: 2}.encode()
	none, torn, future := make([]byte, slotSize), alter(newer, 20, 1), resum(alter(newer, 8, 3))
	for name, c := range map[string]struct {
		a, b     []byte
		position uint64
		err      error
	}{
		"newer second": {old, newer, 2, nil},
		"newer first":  {newer, old, 2, nil},
		"torn":         {old, torn, 1, nil},
		"torn first":   {torn, old, 1, nil},
		"fresh":        {old, none, 1, nil},
		"both torn":    {torn, torn, 0, ErrChecksum},
		"torn fresh":   {none, torn, 0, ErrChecksum},
		"none":         {none, none, 0, ErrMagic},
		"future":       {old, future, 0, ErrVersion},
		"future first": {future, old, 0, ErrVersion},
		"cut off":      {old, nil, 0, ErrTruncated},
	} {
		h, err := decodeSlots(append(bytes.Clone(c.a), c.b...))
		if !errors.Is(err, c.err) || h.position != c.position {
			t.Errorf("%s: position %d, %v", name, h.position, err)
		}
	}
}

func TestSideListErrorsAreTold(t *testing.T) {
	good := encodeSide(goldenID, []extent.DiskBlock{7})
	future := alter(good, 8, 3)
	copy(future[40:48], make([]byte, 8))
	binary.LittleEndian.PutUint64(future[40:], uint64(Of(future)))
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"magic":     {alter(good, 0, 1), ErrMagic},
		"damage":    {alter(good, 50, 1), ErrChecksum},
		"short":     {good[:20], ErrTruncated},
		"cut":       {good[:50], ErrTruncated},
		"version":   {future, ErrVersion},
		"exchanged": {encodeSide([16]byte{}, nil), ErrChecksum},
	} {
		if _, err := decodeSide(c.p, goldenID); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
	}
}

func TestOpenRefusesWhatIsNoTable(t *testing.T) {
	h := header{blocks: 2}
	whole := append(append(h.encode(), make([]byte, slotSize)...), make([]byte, 16)...)
	for name, c := range map[string]struct {
		p    []byte
		want error
	}{
		"empty":   {nil, ErrTruncated},
		"text":    {bytes.Repeat([]byte("hello, world\n"), 1000), ErrMagic},
		"cut":     {whole[:len(whole)-1], ErrTruncated},
		"damaged": {alter(whole, 33, 1), ErrChecksum},
		"newer":   {resum(alter(whole, 8, 3)), ErrVersion},
		"whole":   {whole, nil},
		"longer":  {append(bytes.Clone(whole), 1, 2, 3), nil},
	} {
		path := filepath.Join(t.TempDir(), "table")
		must(t, os.WriteFile(path, c.p, 0o600))
		table, err := OpenTable(path)
		if !errors.Is(err, c.want) || err == nil && table.Blocks() != 2 {
			t.Errorf("%s: %v, expected %v", name, err, c.want)
		}
		if err == nil {
			must(t, table.Close())
		}
	}
	if _, err := OpenTable(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// Whatever the bytes, the table opens and is consistent, or says which of the
// four it is.
func FuzzOpenTable(f *testing.F) {
	h := header{serial: 1, position: 3, blocks: 3, id: goldenID}
	entries := binary.LittleEndian.AppendUint64(make([]byte, 16), 9)
	whole := append(append(h.encode(), header{serial: 2, blocks: 1, id: goldenID}.encode()...), entries...)
	f.Add(whole, encodeSide(goldenID, []extent.DiskBlock{1}), false)
	f.Add(whole[:slotSize], []byte{}, false)
	f.Add(resum(alter(whole, 8, 3)), []byte{}, true)
	f.Fuzz(func(t *testing.T, p, side []byte, mend bool) {
		if p = bytes.Clone(p); mend { // past the header's checksum, to what is behind it
			for slot := range slices.Chunk(p, slotSize) {
				if len(slot) >= headerSize {
					resum(slot)
				}
			}
		}
		if len(side) == 0 {
			side = nil
		}
		table, err := open("fuzz", &powerFile{now: p, side: side})
		if err == nil {
			if err := table.Check(); err != nil {
				t.Fatal(err)
			}
			if err := table.Commit(1<<63, 9, list(sums(3, 4))); err != nil {
				t.Fatal(err)
			}
			must(t, table.Check())
			return
		}
		for _, known := range []error{ErrMagic, ErrVersion, ErrChecksum, ErrTruncated} {
			if errors.Is(err, known) {
				return
			}
		}
		t.Errorf("unnamed error: %v", err)
	})
}
