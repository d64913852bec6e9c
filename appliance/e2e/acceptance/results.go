package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

// result is what a stage left, as JSON in its state file.
type result struct {
	Stage    string         `json:"stage"`
	Short    bool           `json:"short"`
	Azure    bool           `json:"azure"`
	Seed     uint64         `json:"seed"`
	Ended    time.Time      `json:"ended"`
	Took     time.Duration  `json:"took"`
	Figures  []stage.Figure `json:"figures"`
	Failures []string       `json:"failures"`
	before   bool           // from an earlier run
}

func (r result) passed() bool { return len(r.Failures) == 0 }

func stateFile(e *stage.Env, name string) string {
	return filepath.Join(e.Dir, "result-"+name+".json")
}

// finished returns the result of an earlier run that counts: it passed, with the same options.
func finished(e *stage.Env, name string) (result, bool) {
	var r result
	data, err := os.ReadFile(stateFile(e, name))
	if err != nil || json.Unmarshal(data, &r) != nil {
		return result{}, false
	}
	r.before = true
	return r, r.passed() && r.Short == e.Short && r.Azure == e.Azure
}

func save(e *stage.Env, r result) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	temp := stateFile(e, r.Stage) + ".new"
	if err := os.WriteFile(temp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, stateFile(e, r.Stage))
}

func runStages(ctx context.Context, e *stage.Env, match *regexp.Regexp, again bool) error {
	var results []result
	var broken error
	for _, s := range stage.All {
		if !match.MatchString(s.Name) || ctx.Err() != nil {
			continue
		}
		if r, ok := finished(e, s.Name); ok && !again {
			results = append(results, r)
			continue
		}
		fmt.Printf("\n== %s: %s\n", s.Name, s.About)
		r := runStage(ctx, e, s)
		results = append(results, r)
		broken = errors.Join(broken, save(e, r))
	}
	failed := summary(results)
	if ctx.Err() != nil {
		return errors.Join(broken, errors.New("interrupted; run it again to go on"))
	}
	if failed > 0 {
		broken = errors.Join(broken, fmt.Errorf("%d of %d stages failed", failed, len(results)))
	}
	return broken
}

func runStage(ctx context.Context, e *stage.Env, s stage.Stage) result {
	began := time.Now()
	report := stage.NewReport(e.Out)
	if err := s.Run(ctx, e, report); err != nil {
		report.Fail("%v", err)
	}
	return result{
		Stage: s.Name, Short: e.Short, Azure: e.Azure, Seed: e.Seed, Ended: time.Now().UTC(), Took: time.Since(began),
		Figures: report.Figures(), Failures: report.Failures(),
	}
}

// summary prints the table and returns how many failed.
func summary(results []result) (failed int) {
	fmt.Printf("\n%-10s %-8s %9s  %s\n", "stage", "result", "took", "figures")
	for _, r := range results {
		verdict := "passed"
		switch {
		case !r.passed():
			verdict = "FAILED"
			failed++
		case r.before:
			verdict = "before"
		}
		var figures []string
		for _, f := range r.Figures {
			figures = append(figures, f.Name+": "+f.Value)
		}
		fmt.Printf("%-10s %-8s %9v  %s\n", r.Stage, verdict, r.Took.Round(time.Second), strings.Join(figures, "; "))
		for _, f := range r.Failures {
			fmt.Printf("           ! %s\n", strings.ReplaceAll(f, "\n", "\n             "))
		}
	}
	return failed
}
