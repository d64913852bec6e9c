package main

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

// staged replaces the stages for one test and counts their runs.
func staged(t *testing.T, stages map[string]error) (*stage.Env, map[string]int) {
	t.Helper()
	before := stage.All
	t.Cleanup(func() { stage.All = before })
	stage.All = nil
	runs := make(map[string]int)
	var names []string
	for name := range stages {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		err := stages[name]
		stage.All = append(stage.All, stage.Stage{Name: name, About: "a stage of a test", Run: func(_ context.Context, _ *stage.Env, r *stage.Report) error {
			runs[name]++
			r.Figure("runs", "%d", runs[name])
			return err
		}})
	}
	return &stage.Env{Dir: t.TempDir(), Out: io.Discard}, runs
}

var all = regexp.MustCompile("")

// What has passed is not run again, what has failed is; another length or target is another test.
func TestResume(t *testing.T) {
	e, runs := staged(t, map[string]error{"good": nil, "bad": errors.New("no")})
	for range 2 {
		if err := runStages(t.Context(), e, all, false); err == nil {
			t.Fatal("a failed stage is no failure")
		}
	}
	if runs["good"] != 1 || runs["bad"] != 2 {
		t.Fatalf("%v", runs)
	}
	e.Short = true
	if err := runStages(t.Context(), e, regexp.MustCompile("^good$"), false); err != nil {
		t.Fatal(err)
	}
	e.Azure = true
	if err := runStages(t.Context(), e, regexp.MustCompile("^good$"), false); err != nil {
		t.Fatal(err)
	}
	if err := runStages(t.Context(), e, regexp.MustCompile("^good$"), true); err != nil {
		t.Fatal(err)
	}
	if runs["good"] != 4 || runs["bad"] != 2 {
		t.Fatalf("%v", runs)
	}
}

func TestResultsSurvive(t *testing.T) {
	e, _ := staged(t, map[string]error{"good": nil})
	e.Seed = 42
	if err := runStages(t.Context(), e, all, false); err != nil {
		t.Fatal(err)
	}
	r, ok := finished(e, "good")
	if !ok || r.Seed != 42 || !r.before || len(r.Figures) != 1 || r.Figures[0].Value != "1" {
		t.Fatalf("%+v, %v", r, ok)
	}
	if err := os.WriteFile(stateFile(e, "good"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := finished(e, "good"); ok {
		t.Fatal("half a result counts")
	}
	if _, ok := finished(e, "absent"); ok {
		t.Fatal("no result counts")
	}
}

func TestInterrupted(t *testing.T) {
	e, runs := staged(t, map[string]error{"good": nil})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := runStages(ctx, e, all, false); err == nil || runs["good"] != 0 {
		t.Fatalf("%v, %v", err, runs)
	}
}

func TestSummaryCountsFailures(t *testing.T) {
	if n := summary([]result{{Stage: "a"}, {Stage: "b", Failures: []string{"x\ny"}}, {Stage: "c", before: true}}); n != 1 {
		t.Fatalf("%d failed", n)
	}
}
