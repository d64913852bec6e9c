package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The list is for the code as it is: a patch that does not apply proves nothing.
func TestEveryPatchApplies(t *testing.T) {
	list, err := load("patches")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 20 {
		t.Errorf("%d mutants", len(list))
	}
	for _, m := range list {
		cmd := exec.Command("git", "apply", "--check", m.path)
		cmd.Dir = filepath.Join("..", "..", "..")
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s does not apply any more: %s", m.name, text)
		}
	}
}

const module = "module example.com/m\n\ngo 1.26\n"

func write(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A module with one rule and one test of it, and mutants of every kind.
func TestVerdicts(t *testing.T) {
	tree, list := t.TempDir(), t.TempDir()
	write(t, tree, "go.mod", module)
	write(t, tree, "a.go", "package m\n\nfunc one() int { return 1 }\n")
	write(t, tree, "a_test.go", "package m\n\nimport \"testing\"\n\nfunc TestOne(t *testing.T) {\n\tif one() != 1 {\n\t\tt.Fatal()\n\t}\n}\n")
	patch := func(to, check string) string {
		return "Says: x\nCheck: " + check + "\n\n--- a/a.go\n+++ b/a.go\n@@ -1,3 +1,3 @@\n package m\n \n-func one() int { return 1 }\n+func one() int { return " + to + " }\n"
	}
	write(t, list, "1-caught.patch", patch("2", ". -run One"))
	write(t, list, "2-survives.patch", patch("3 - 2", ". -run One"))
	write(t, list, "3-build.patch", patch("x", ". -run One"))
	write(t, list, "4-notest.patch", patch("2", ". -run Nothing"))
	write(t, list, "5-apply.patch", strings.Replace(patch("2", "."), "-func one() int { return 1 }", "-func two() int { return 1 }", 1))
	all, err := load(list)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	b := &bench{tree: tree, caught: t.TempDir(), out: &out}
	for i, want := range []error{nil, errSurvives, errBuild, errNoTest, errApply} {
		if _, _, err := b.try(context.Background(), all[i]); !errors.Is(err, want) {
			t.Errorf("%s: %v, expected %v", all[i].name, err, want)
		}
	}
	if err := b.all(context.Background(), all); err == nil || !strings.Contains(err.Error(), "4 of 5") {
		t.Errorf("%v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "by TestOne\n") {
		t.Errorf("it does not say what noticed it:\n%s", out.String())
	}
	out.Reset()
	if err := b.all(context.Background(), all[:1]); err != nil || !strings.Contains(out.String(), "caught before") {
		t.Errorf("%v\n%s", err, out.String())
	}
}

func TestPatchWithoutACheckIsRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a.patch", "Says: x\n\n--- a/a\n+++ b/a\n")
	if _, err := load(dir); err == nil {
		t.Error("it is taken")
	}
	if _, err := load(t.TempDir()); err == nil {
		t.Error("an empty list passes")
	}
}

// Only a failed test is a proof: a check that ran out of time, or never came to a test, is not.
func TestTimeoutIsNoProof(t *testing.T) {
	failed := errors.New("exit status 1")
	for text, want := range map[string]error{
		"--- FAIL: TestOne (0.00s)\nFAIL":                                                         nil,
		"panic: assignment to entry in nil map\nFAIL":                                             nil,
		"=== RUN TestOne\npanic: test timed out after 10m0s\n\trunning tests:\n\t\tTestOne\nFAIL": errTimeout,
		"--- FAIL: TestOne (0.1s)\npanic: test timed out after 10m0s\nFAIL":                       errTimeout,
		"seed 7: HANGS\npanic: history hangs\nFAIL":                                               errTimeout,
		"go: cannot find main module":                                                             errUnclear,
		"m.go:1:1: expected 'package'\nFAIL example.com/m [setup failed]":                         errBuild,
	} {
		if got := verdict(text, failed); !errors.Is(got, want) || (want == nil) != (got == nil) {
			t.Errorf("%q: %v, expected %v", text, got, want)
		}
	}
}
