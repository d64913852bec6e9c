package repotest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// topLevel is the fixed top level. Dot files come on top.
var topLevel = []string{"fs", "journal", "shipper", "resync", "appliance", "systemd", "go.mod", "go.sum", "Makefile", "README.md", "LICENSE"}

func TestEveryPackageIsDocumented(t *testing.T) {
	for _, p := range packages(t) {
		if p.Name != "" && p.Name != "main" && !strings.HasPrefix(p.Doc, "Package "+strings.TrimSuffix(p.Name, "_test")+" ") {
			t.Errorf("%s: the package comment must begin with %q", p.rel(), "Package "+p.Name)
		}
		if p.Name == "main" && p.Doc == "" {
			t.Errorf("%s: has no package comment", p.rel())
		}
	}
}

func TestTopLevel(t *testing.T) {
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"bin": true}
	for _, name := range topLevel {
		known[name] = true
	}
	for _, e := range entries {
		if !known[e.Name()] && !strings.HasPrefix(e.Name(), ".") {
			t.Errorf("%s does not belong at the top level: it is fixed", e.Name())
		}
	}
	for _, name := range topLevel {
		if _, err := os.Stat(filepath.Join(root, name)); err != nil {
			t.Errorf("%s is missing at the top level", name)
		}
	}
}

func TestTopLevelDirectoriesOpenWithDocAndReadme(t *testing.T) {
	for _, dir := range anywhere {
		for _, name := range []string{"doc.go", "README.md"} {
			if info, err := os.Stat(filepath.Join(root, dir, name)); err != nil || info.Size() < 200 {
				t.Errorf("%s/%s is missing or says nothing", dir, name)
			}
		}
	}
}

func TestLicenceIsApache2(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"Apache License", "Version 2.0, January 2004", "END OF TERMS AND CONDITIONS", "8. Limitation of Liability"} {
		if !strings.Contains(string(text), part) {
			t.Errorf("LICENSE lacks %q: it must be the full text", part)
		}
	}
}
