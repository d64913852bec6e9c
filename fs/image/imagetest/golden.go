package imagetest

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"testing"
)

const goldenRow = 32

// Golden reads an image that is checked in: its size, then every row of 32 bytes that is not all zeros.
func Golden(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first, rest, _ := strings.Cut(string(text), "\n")
	size := 0
	if _, err := fmt.Sscanf(first, "size %d", &size); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	b := make([]byte, size)
	for line := range strings.Lines(rest) {
		var at int
		var digits string
		if _, err := fmt.Sscanf(line, "%x %s", &at, &digits); err != nil {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		row, err := hex.DecodeString(digits)
		if err != nil || at+len(row) > size {
			t.Fatalf("%s: %q: %v", path, line, err)
		}
		copy(b[at:], row)
	}
	return b
}

// Dump writes an image as Golden reads it.
func Dump(b []byte) string {
	text := fmt.Sprintf("size %d\n", len(b))
	for at := 0; at < len(b); at += goldenRow {
		row := b[at:min(at+goldenRow, len(b))]
		if len(bytes.Trim(row, "\x00")) > 0 {
			text += fmt.Sprintf("%07x %s\n", at, hex.EncodeToString(row))
		}
	}
	return text
}
