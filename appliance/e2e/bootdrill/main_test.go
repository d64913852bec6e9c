package main

import (
	"context"
	"regexp"
	"strings"
	"testing"
)

// What has passed is not run again, what failed or was spoiled is; fewer kills, or another target, prove less.
func TestResume(t *testing.T) {
	runs, fail := map[string]int{}, map[string]bool{"bad": true}
	run := func(_ context.Context, o options, d drill) result {
		runs[d.name]++
		r := result{Drill: d.name, Azure: o.azure, Kills: o.kills}
		if fail[d.name] {
			r.Failures = []string{"no"}
		}
		return r
	}
	all := []drill{{name: "good"}, {name: "bad"}, {name: "long", handover: true}}
	o := options{dir: t.TempDir(), kills: 2, match: regexp.MustCompile("")}
	for range 2 {
		if err := runDrills(t.Context(), o, all, run); err == nil || !strings.Contains(err.Error(), "bad") {
			t.Fatalf("a failed drill: %v", err)
		}
	}
	if runs["good"] != 1 || runs["bad"] != 2 || runs["long"] != 1 {
		t.Fatalf("%v", runs)
	}
	o.kills, o.match = 3, regexp.MustCompile("good|long")
	spoiled := o
	spoiled.spoil = "older"
	for _, o := range []options{o, spoiled, o} {
		if err := runDrills(t.Context(), o, all, run); err != nil {
			t.Fatal(err)
		}
	}
	if runs["good"] != 2 || runs["long"] != 3 {
		t.Fatalf("%v", runs)
	}
	o.azure, o.again = true, true
	if err := runDrills(t.Context(), o, all, run); err != nil || runs["good"] != 3 || runs["long"] != 4 {
		t.Fatalf("%v, %v", runs, err)
	}
}

func TestInterruptedLeavesNoResult(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := options{dir: t.TempDir(), match: regexp.MustCompile("")}
	runs := 0
	run := func(context.Context, options, drill) result {
		runs++
		cancel()
		return result{Drill: "one"}
	}
	one := []drill{{name: "one"}}
	if runDrills(ctx, o, one, run) == nil {
		t.Fatal("an interruption is no error")
	}
	if err := runDrills(t.Context(), o, one, func(context.Context, options, drill) result { runs++; return result{Drill: "one"} }); err != nil || runs != 2 {
		t.Fatalf("%v, %d runs", err, runs)
	}
}

// Every drill has what its steps need, and its disk is a whole number of MiB: the restored one has the same size.
func TestDrills(t *testing.T) {
	for _, d := range drills {
		if d.image == "" || d.format == "" || d.size%(1<<20) != 0 || d.packages == "" || d.handover != (d.sources != "") || d.handover == (d.journal != "") {
			t.Errorf("%+v", d)
		}
	}
}
