package appliance

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

var updateTables = flag.Bool("update-tables", false, "write the generated tables of the READMEs anew")

// causes are the codes of all errors.
func causes() []retry.Meaning {
	list := append(retry.Meanings(), target.Meanings()...)
	list = append(list, pageblob.Meanings()...)
	list = append(list, shipper.Meanings()...)
	list = append(list, retry.Meaning{Code: journal.CodeSlow, Class: retry.Recoverable, Action: journal.ActionSlow})
	return retry.Sorted(append(list, retry.Meaning{Code: "disk-removed", Class: retry.Recoverable, Action: "none: the next turn does without the disk"}))
}

// The tables of codes in the READMEs are what the code says; -update-tables writes them.
func TestTablesAreInTheReadmes(t *testing.T) {
	for path, want := range map[string]string{"../README.md": health.Table(), "health/README.md": health.CauseTable(causes())} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		before, rest, ok := strings.Cut(string(text), health.Begin)
		got, after, closed := strings.Cut(rest, health.End)
		if !ok || !closed {
			t.Fatalf("%s has no place for the table of codes", path)
		}
		if got == want {
			continue
		}
		if !*updateTables {
			t.Errorf("%s differs from the code: go test ./appliance -run TestTablesAreInTheReadmes -update-tables", path)
			continue
		}
		if err := os.WriteFile(path, []byte(before+health.Begin+want+health.End+after), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestI12_EveryCodeIsInATable: every code that the sources spell out is one that
// operators can look up.
func TestI12_EveryCodeIsInATable(t *testing.T) {
	known := map[string]bool{}
	for _, m := range causes() {
		if m.Action == "" {
			t.Errorf("%s: no action", m.Code)
		}
		known[m.Code] = true
	}
	for _, m := range health.Codes {
		known[m.Code] = true
	}
	for dir, spelt := range map[string]*regexp.Regexp{
		"../shipper": regexp.MustCompile(`Code: *"([a-z]+(?:-[a-z]+)*)"|\.Code(?:, e\.[A-Za-z]+)* = (?:[A-Za-z.]+, )*"([a-z-]+)"`),
		".":          regexp.MustCompile(`(?:warning|critical)\("([a-z-]+)"`),
	} {
		for _, code := range speltIn(t, dir, spelt) {
			if !known[code] {
				t.Errorf("code %q of %s is in no table: add it to health.Codes or to a Meanings of its package", code, dir)
			}
		}
	}
}

func speltIn(t *testing.T, dir string, spelt *regexp.Regexp) (codes []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range spelt.FindAllStringSubmatch(string(text), -1) {
			codes = append(codes, strings.Join(m[1:], ""))
		}
		return err
	})
	if err != nil || dir == "../shipper" && len(codes) < 5 {
		t.Fatalf("%v, %d codes", err, len(codes))
	}
	return codes
}
