// Mutants applies each patch of a kept list to a copy of the last commit and expects the check that the patch names to go
// red. It prints in how long. A patch that does not apply any more, or breaks the build, or whose check runs out of time,
// fails the run like one that nothing notices. What was caught is remembered for the commit.
//
// A patch begins with two lines, "Says:" what rule it breaks and "Check:" the arguments of go test that must fail.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// patches is where the list is, from the root of the repository.
const patches = "appliance/e2e/mutants/patches"

func main() {
	os.Exit(rig.Main("mutants", func(ctx context.Context) error { return run(ctx, os.Stdout) }))
}

func run(ctx context.Context, out io.Writer) error {
	dir := flag.String("dir", filepath.Join(os.TempDir(), "vhdrelay-mutants"), "work and what was caught")
	only := flag.String("run", "", "regular expression: only mutants whose name matches")
	flag.Parse()
	match, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	list, err := load(patches)
	if err != nil {
		return err
	}
	b := &bench{tree: filepath.Join(*dir, "tree"), out: out}
	commit, err := b.checkout(ctx)
	if err != nil {
		return err
	}
	b.caught = filepath.Join(*dir, commit)
	if err := os.MkdirAll(b.caught, 0o700); err != nil {
		return err
	}
	return b.all(ctx, slices.DeleteFunc(list, func(m mutant) bool { return !match.MatchString(m.name) }))
}

// mutant is one patch.
type mutant struct {
	name, says, check string
	path              string
}

// load reads the list, in the order of the names.
func load(dir string) ([]mutant, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.patch"))
	if err != nil || len(files) == 0 {
		return nil, errors.Join(err, fmt.Errorf("no patches in %s: run it from the root of the repository", dir))
	}
	var list []mutant
	for _, path := range files {
		m, err := parse(path)
		if err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

func parse(path string) (mutant, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return mutant{}, err
	}
	m := mutant{name: strings.TrimSuffix(filepath.Base(path), ".patch")}
	if m.path, err = filepath.Abs(path); err != nil {
		return mutant{}, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch {
		case key == "Says":
			m.says = value
		case key == "Check":
			m.check = value
		case strings.HasPrefix(line, "--- ") && m.says != "" && m.check != "":
			return m, nil
		}
	}
	return mutant{}, fmt.Errorf("%s: it needs a line Says:, a line Check: and a diff", path)
}

// bench is the copy that is broken and mended again and again.
type bench struct {
	tree   string
	caught string // directory with a file for each mutant that was caught
	out    io.Writer
}

// checkout makes the copy anew, of the last commit, and returns its name.
func (b *bench) checkout(ctx context.Context) (string, error) {
	commit, err := exec.CommandContext(ctx, "git", "rev-parse", "HEAD").Output()
	if err != nil {
		return "", fmt.Errorf("name the commit: %w", err)
	}
	if err := errors.Join(os.RemoveAll(b.tree), os.MkdirAll(b.tree, 0o700)); err != nil {
		return "", err
	}
	_, err = b.shell(ctx, ".", `git archive HEAD | tar -x -C "$TREE"`)
	return strings.TrimSpace(string(commit)), err
}

// shell runs a line in a directory.
func (b *bench) shell(ctx context.Context, dir, line string) (string, error) {
	cmd := exec.CommandContext(ctx, "sh", "-c", line)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TREE="+b.tree)
	text, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w", line, err)
	}
	return string(text), err
}

func (b *bench) all(ctx context.Context, list []mutant) error {
	var bad []string
	for _, m := range list {
		done := filepath.Join(b.caught, m.name)
		if _, err := os.Stat(done); err == nil {
			fmt.Fprintf(b.out, "%-32s caught before\n", m.name)
			continue
		}
		took, by, err := b.try(ctx, m)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(b.out, "%-32s %v\n", m.name, err)
			bad = append(bad, m.name)
			continue
		}
		fmt.Fprintf(b.out, "%-32s caught in %v by %s\n", m.name, took.Round(100*time.Millisecond), by)
		if err := os.WriteFile(done, nil, 0o600); err != nil {
			return err
		}
	}
	if len(bad) > 0 {
		return fmt.Errorf("%d of %d mutants are not caught: %s", len(bad), len(list), strings.Join(bad, ", "))
	}
	fmt.Fprintf(b.out, "all %d mutants are caught\n", len(list))
	return nil
}

// Errors of try.
var (
	errSurvives = errors.New("SURVIVES: its check passes")
	errApply    = errors.New("DOES NOT APPLY any more")
	errBuild    = errors.New("DOES NOT BUILD")
	errNoTest   = errors.New("SURVIVES: its check runs no test")
	errTimeout  = errors.New("NOT PROVEN: its check ran out of time")
	errUnclear  = errors.New("NOT PROVEN: its check ended without saying that a test failed")
)

// try breaks the copy, runs the check, and mends the copy. It returns how long the check took, and the test that failed first.
func (b *bench) try(ctx context.Context, m mutant) (took time.Duration, by string, err error) {
	if text, err := b.shell(ctx, b.tree, "git apply '"+m.path+"'"); err != nil {
		return 0, "", fmt.Errorf("%w: %s", errApply, text)
	}
	began := time.Now()
	text, err := b.shell(ctx, b.tree, "go test -trimpath -count=1 -vet=off -timeout 10m -failfast "+m.check)
	took = time.Since(began)
	if _, back := b.shell(ctx, b.tree, "git apply -R '"+m.path+"'"); back != nil {
		return 0, "", back
	}
	by = "a panic"
	if m := failed.FindStringSubmatch(text); m != nil {
		by = m[1]
	}
	return took, by, verdict(text, err)
}

var failed = regexp.MustCompile(`(?m)^ *--- FAIL: (\S+)`)

// verdict reads what go test said. Only a test that failed, or ended its process, has noticed something: a mutant that makes
// everything wait for ever is noticed by its reader's patience alone.
func verdict(text string, err error) error {
	switch {
	case strings.Contains(text, "[build failed]"), strings.Contains(text, "[setup failed]"):
		return fmt.Errorf("%w: %s", errBuild, text)
	case strings.Contains(text, "panic: test timed out"), strings.Contains(text, "panic: history hangs"):
		return errTimeout
	case err != nil && (strings.Contains(text, "--- FAIL") || strings.Contains(text, "panic: ")):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %s", errUnclear, text)
	case strings.Contains(text, "no tests to run"), strings.Contains(text, "no test files"):
		return errNoTest
	}
	return errSurvives
}
