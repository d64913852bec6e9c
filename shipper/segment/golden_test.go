package segment

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

var update = flag.Bool("update", false, "write the golden files; a change of one is a change of the format")

// readGolden decodes hexadecimal text with comments and line breaks.
func readGolden(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func writeGolden(t *testing.T, name string, b []byte) {
	t.Helper()
	var text bytes.Buffer
	for line := range slices.Chunk(b, 32) {
		text.WriteString(hex.EncodeToString(line) + "\n")
	}
	if err := os.WriteFile(filepath.Join("testdata", name), text.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// The bytes of level off are the format, all of them. Those of zstd are what one release of the library made of it: they must
// be read forever, and need not be written again.
func TestGoldenBytes(t *testing.T) {
	for _, level := range levels {
		name := "v1-" + string(level) + ".hex"
		if *update {
			writeGolden(t, name, sample(t, level))
		}
		golden := readGolden(t, name)
		if level == Off && !bytes.Equal(golden, sample(t, level)) {
			t.Errorf("%s: the format changed", name)
		}
		checkGolden(t, name, reopen(t, golden))
	}
}

// checkGolden holds what is read against what was written, from the constants alone.
func checkGolden(t *testing.T, name string, r *Reader) {
	t.Helper()
	if r.Header() != testHeader(16) {
		t.Errorf("%s: header %+v", name, r.Header())
	}
	want := []Extent{
		{Range: dataRange(1, 2)}, {Range: dataRange(4, 3), Zero: true}, {Range: dataRange(8, 1), Offset: 2 * block},
		{Range: dataRange(9, 1), Frame: 1}, {Range: dataRange(20, 1000), Zero: true},
	}
	if !slices.Equal(r.Extents(), want) {
		t.Errorf("%s: extents %+v", name, r.Extents())
	}
	got, _ := readAll(t, r)
	for b, first := range map[extent.DiskBlock]int{1: 1, 2: 2, 8: 8, 9: 9} {
		if !bytes.Equal(got[b], pattern(first, 1)) {
			t.Errorf("%s: block %d", name, b)
		}
	}
}

// The diagram of shipper/README.md, field by field.
func TestGoldenFields(t *testing.T) {
	b := readGolden(t, "v1-off.hex")
	fields := []struct {
		off  int
		want string
	}{
		{0, "76686472736567 0a"},                        // magic "vhdrseg\n"
		{8, "0100 0000 6b000000"},                       // version, flags, header length
		{16, "0100000000000000 0c00000000000000"},       // generation, epoch
		{32, "0a00000000000000"},                        // previous
		{40, "e0000000000000000000000000000001"},        // epoch UUID
		{56, "5e000000000000000000000000000002"},        // UUID
		{72, "0000010000000000"},                        // virtual size
		{80, "0500 0600 00000000"},                      // name lengths
		{88, hex.EncodeToString([]byte("web01os.vhd"))}, // names
		{107, "76686672"},                               // the first frame, "vhfr"
		{len(b) - trailerLen, hex.EncodeToString([]byte("vhdrend\n"))},
	}
	for _, f := range fields {
		want, err := hex.DecodeString(strings.ReplaceAll(f.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b[f.off:], want) {
			t.Errorf("byte %d: %x, want %x", f.off, b[f.off:f.off+len(want)], want)
		}
	}
}
