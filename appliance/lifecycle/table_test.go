package lifecycle

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

// want says for every state which commands it allows, written by hand from the
// behaviour: the table must agree for every pair.
var want = map[State][]Event{
	Disabled:                  {Protect, Unprotect, Adopt},
	Ready:                     {Unprotect, Pause, Adopt, Sync},
	Waiting:                   {Unprotect, Pause, Sync},
	Initial:                   {Unprotect, Pause, Sync, Resync},
	Replicating:               {Unprotect, Pause, Sync, Resync},
	Paused:                    {Unprotect, Resume, Resync},
	ResynchronizationRequired: {Unprotect, Pause, Sync, Resync},
	Resynchronizing:           {Unprotect, Pause, Sync, Resync},
	ResynchronizationPaused:   {Unprotect, Pause, Sync, Resync},
	Error:                     {Unprotect, Pause, Resume, Adopt, Sync, Resync},
}

func TestEveryStateAndCommand(t *testing.T) {
	if len(want) != len(States) {
		t.Fatalf("%d states are judged, there are %d", len(want), len(States))
	}
	for _, s := range States {
		for _, command := range Commands {
			err := Permit("web", s.State, command)
			if allowed := slices.Contains(want[s.State], command); allowed != (err == nil) {
				t.Errorf("%s in %s: %v, want allowed=%v", command, s.State, err, allowed)
			}
			var refusal *Refusal
			if err == nil {
				continue
			}
			if !errors.As(err, &refusal) || !strings.Contains(err.Error(), string(s.State)) || refusal.WayOut == "" {
				t.Errorf("%s in %s: %v does not name the state, or no way out", command, s.State, err)
			}
		}
	}
}

// A way out that names a command must be one that the state allows.
func TestWaysOutAreOpen(t *testing.T) {
	for _, s := range States {
		for _, command := range Commands {
			var r *Refusal
			if !errors.As(Permit("web", s.State, command), &r) {
				continue
			}
			for _, way := range Commands {
				if strings.Contains(r.WayOut, "first: vhdrelay "+string(way)+" web") && Permit("web", s.State, way) != nil {
					t.Errorf("%s in %s: the way out is %q, which is refused too", command, s.State, way)
				}
			}
		}
	}
}

// Every state is entered and left, and every pair of states is judged: whatever a
// look shows after whatever was there before is a path, unless a command holds the
// VM.
func TestEveryPairOfStates(t *testing.T) {
	for _, from := range States {
		for _, to := range States {
			path, ok := Path(from.State, to.State)
			held := from.State == Paused || to.State == Paused
			if want := from.State == to.State || !held; ok != want {
				t.Errorf("%s to %s: %v %v", from.State, to.State, ok, path)
			}
			if ok && !slices.Contains(walk(from.State, path), to.State) {
				t.Errorf("%s by %v does not lead to %s", from.State, path, to.State)
			}
		}
	}
}

// walk follows events from a state to wherever they may lead.
func walk(from State, path []Event) []State {
	at := []State{from}
	for _, event := range path {
		var next []State
		for _, s := range at {
			next = append(next, Targets(s, event)...)
		}
		at = next
	}
	return at
}

func TestTableIsWhole(t *testing.T) {
	entered, left := map[State]bool{}, map[State]bool{}
	seen := map[Edge]bool{}
	for _, e := range Edges() {
		if seen[e] {
			t.Errorf("%v twice", e)
		}
		seen[e] = true
		known := func(s State) bool { return slices.Contains(all(), s) }
		if !known(e.From) || !known(e.To) {
			t.Errorf("%v: a state that States does not list", e)
		}
		if e.From != e.To {
			left[e.From], entered[e.To] = true, true
		}
	}
	for _, s := range States {
		if !entered[s.State] || !left[s.State] || s.Meaning == "" {
			t.Errorf("%s: entered %v, left %v, meaning %q", s.State, entered[s.State], left[s.State], s.Meaning)
		}
	}
	for _, command := range Commands {
		if !slices.ContainsFunc(Edges(), func(e Edge) bool { return e.Event == command }) {
			t.Errorf("%s is refused everywhere", command)
		}
	}
}

func TestDrawingIsInTheReadme(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), Begin)
	drawn, _, closed := strings.Cut(rest, End)
	if !ok || !closed || drawn != Drawing() {
		t.Errorf("README.md does not show the table; between the marks must stand:\n%s", Drawing())
	}
}
