package cli

import (
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

func TestMoveCommands(t *testing.T) {
	r := newRig(t)
	r.serve(t, fleet()...)
	golden(t, "moves", r.session("pause web01", "pause web01 --json", "pause paused01", "pause nobody", "resume web01", "protect web01",
		"unprotect web01 --yes", "unprotect web01 --delete-replica --yes --json", "unprotect web01", "unprotect web01 --delete-replica",
		"unprotect nobody"))
}

// On a terminal it asks, and only the name of the VM is consent.
func TestUnprotectAsks(t *testing.T) {
	for answer, want := range map[string]control.Exit{"web01\n": control.ExitDone, "y\n": control.ExitFailed, "": control.ExitFailed, "web02\n": control.ExitFailed} {
		r := newRig(t)
		r.serve(t, fleet()...)
		r.deps.Stdin, r.deps.Interactive = strings.NewReader(answer), true
		text, exit := r.run("unprotect", "web01", "--delete-replica")
		if exit != want || !strings.Contains(text, "2 recovery points") || !strings.Contains(text, "type the name of the VM") {
			t.Errorf("%q: exit %d\n%s", answer, exit, text)
		}
		if deleted := strings.Contains(text, "replica deleted"); deleted != (want == control.ExitDone) {
			t.Errorf("%q: deleted is %v", answer, deleted)
		}
	}
}
