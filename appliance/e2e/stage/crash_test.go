package stage

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/failpoint"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// A failpoint that no road leads to is crashed at by nobody.
func TestI4_EveryFailpointHasARoad(t *testing.T) {
	var reached []string
	for _, r := range roads {
		reached = append(reached, r.points...)
	}
	for p := range outOfReach {
		reached = append(reached, p)
	}
	all := failpoint.All()
	slices.Sort(all)
	slices.Sort(reached)
	if !slices.Equal(all, reached) {
		t.Errorf("the failpoints are\n%q\nroads lead to\n%q", all, reached)
	}
}

func TestShortFormIsAHandful(t *testing.T) {
	n := 0
	for _, r := range sampled(&Env{Seed: 5}, roads) {
		if len(r.points) == 0 || len(r.points) > 2 {
			t.Errorf("%s: %q", r.name, r.points)
		}
		n += len(r.points)
	}
	if n < 4 || n > 6 {
		t.Errorf("%d points", n)
	}
}

func TestCrashesAddUpOverRuns(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crashes.jsonl")
	if all, err := ReadLines[Crashed](path); err != nil || len(all) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	for _, b := range []Crashed{
		{Seed: 1, Kills: 12, Cuts: 8, Points: 100, Suspect: 3, Longest: 2},
		{Seed: 2, Kills: 3, Cuts: 4, Failure: "a wrong point"},
		{Seed: 3, Kills: 9, Cuts: 11, Points: 50, Suspect: 7, Longest: 1},
	} {
		if err := AddLine(path, b); err != nil {
			t.Fatal(err)
		}
	}
	all, err := ReadLines[Crashed](path)
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	if sum := total(all); sum.Kills != 21 || sum.Cuts != 19 || sum.Points != 150 || sum.Suspect != 7 || sum.Longest != 2 {
		t.Errorf("%+v", sum)
	}
	if err := os.WriteFile(path, []byte("rotten\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLines[Crashed](path); err == nil {
		t.Error("a rotten ledger is read")
	}
}

// The halves that the load writes to are both written, and together no more than what a crash may make suspect.
func TestLoadOfCrashesStaysInItsSpan(t *testing.T) {
	c := &crasher{guest: &guest{disks: crashDisks}, rng: rand.New(rand.NewPCG(1, 1))}
	for d, of := range crashDisks {
		c.window.Store(0)
		first := c.where(d)
		c.window.Store(1)
		second := c.where(d)
		size := of.size
		if of.span > 0 {
			size = of.span
		}
		if first.From != 0 || first.To != second.From || second.To != size/stamp.BlockSize || first.To == 0 || second.From == second.To {
			t.Errorf("%s: %v, %v", of.name, first, second)
		}
	}
}
