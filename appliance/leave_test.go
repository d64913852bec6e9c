package appliance

import (
	"context"
	"log/slog"
	"syscall"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
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
	must(a.journal.Save("ship/id", struct{}{})) // so that there is something to remove, and a moment to ask in
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

// An unprotect in the middle of a takeover deletes what the takeover has written under its new generation, wherever it was
// interrupted, and a later life begins after it.
func TestUnprotectDuringATakeover(t *testing.T) {
	for name, stuck := range map[string]string{"vm.json is written": "AcquireLease", "it is not": "Replace"} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, "", oneImage(), func(b *bubble) {
				b.within(time.Minute, "web", "replicating", replicating)
				b.seize()
				b.write("web/os.img", 0, 4096)
				b.within(2*time.Minute, "web", "fenced", hasReason(health.Fenced))
				b.target.SetHook(func(op fake.Op) fake.Fault {
					if op.Method == stuck {
						return fake.Fault{Kind: fake.Refuse, Err: syscall.ECONNREFUSED}
					}
					return fake.Fault{}
				})
				ctx, cancel := context.WithTimeout(b.t.Context(), time.Second)
				defer cancel()
				_, _ = b.a.Adopt(ctx, "web", nil) // it gets nowhere
				b.within(2*time.Minute, "web", "stuck", hasReason(health.Retrying))
				b.up()
				if stuck == "Replace" {
					b.seizeBack()
				}
				b.must(b.unprotect(true))
				for item, err := range b.target.List(b.t.Context(), "web/") {
					t.Errorf("left: %s, %v", item.Name, err)
				}
				_, err := b.a.Protect(b.t.Context(), "web")
				b.must(err)
				if v := b.within(2*time.Minute, "web", "replicating again", replicating); v.Generation < 3 {
					t.Errorf("generation %d was used before", v.Generation)
				}
			})
		})
	}
}

// seizeBack gives the VM back to us: as if the other host had never been.
func (b *bubble) seizeBack() {
	b.t.Helper()
	_, err := catalog.UpdateVM(b.t.Context(), b.target, "web", func(d *catalog.VMDoc) error {
		d.Generation--
		return nil
	})
	b.must(err)
}
