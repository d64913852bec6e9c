package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

// What was done stays done, half a line is no cut, and a failure is not forgotten by the next run.
func TestLedger(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cuts.jsonl")
	if done, err := stage.ReadLines[stage.Pull](path); err != nil || len(done) != 0 {
		t.Fatalf("%v, %v", done, err)
	}
	for i := range 3 {
		if err := stage.AddLine(path, stage.Pull{Cut: i, Blocks: 10, Suspect: int64(i) << 20}); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"cut": 3, "se`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	done, err := stage.ReadLines[stage.Pull](path)
	if err != nil || len(done) != 3 || done[2].Cut != 2 {
		t.Fatalf("%+v, %v", done, err)
	}
	var out strings.Builder
	if err := summary(&out, done); err != nil || !strings.Contains(out.String(), "3 power cuts, 0 failed") || !strings.Contains(out.String(), "30 blocks; most suspect 2 MiB") {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := summary(&out, append(done, stage.Pull{Cut: 9, Failures: []string{"torn"}})); err == nil || !strings.Contains(out.String(), "torn") {
		t.Errorf("%v: %s", err, out.String())
	}
	if err := os.WriteFile(path, []byte("no JSON\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := stage.ReadLines[stage.Pull](path); err == nil {
		t.Error("a ledger that is none is taken for one")
	}
}
