package appliance

import (
	"log/slog"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// Who asks for the replica to go while an unprotect that keeps it comes to its end is not told that it is gone
// before it is.
func TestLeavingGoesOnWhenMoreIsAskedForAtItsEnd(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	a := compose(&config.Config{StateDir: t.TempDir()}, Options{Log: slog.New(slog.DiscardHandler)})
	store := &memory.Store{}
	var err error
	a.journal, err = journal.Open(store, journal.Options{Saved: t.TempDir()})
	must(err)
	a.opened.target = fake.New(fake.Options{})
	life, err := lifecycle.Open(documents{a.journal}, "web", a.now)
	must(err)
	a.mu.lives["web"] = life
	must(life.Amend(func(r *lifecycle.Record) {
		r.Unprotected, r.ID, r.Generation, r.Leaving = true, "id", 1, &lifecycle.Leaving{Local: true}
	}))
	must(a.journal.Save("ship/id", 1)) // so that there is something to remove, and a moment to ask in
	asked := false
	store.Before = func(int, *kv.Batch) memory.Fault {
		if !asked {
			asked = true
			must(a.decideToLeave("web", true))
		}
		return memory.None
	}
	a.leave("web")
	a.keepLeaving(t.Context(), "web", a.mu.leaving["web"])
	if rec := life.Record(); !asked || rec.Leaving != nil || len(a.mu.leaving) != 0 {
		t.Errorf("asked %v, ended with %+v to do, %d under way", asked, rec.Leaving, len(a.mu.leaving))
	}
}
