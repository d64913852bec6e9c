package vhd

import (
	"bytes"
	"os"
	"testing"
)

func openBytes(t testing.TB, b []byte) *Image {
	t.Helper()
	i, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func openFile(t testing.TB, name string) *Image {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return openBytes(t, b)
}
