package appliance

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

var command = regexp.MustCompile(`vhdrelay (\w+)((?: --[\w-]+)*) (\w+)((?: --[\w-]+)*)`)

// perform runs the commands that an action prints, one after the other.
func (b *bubble) perform(action string) {
	b.t.Helper()
	ctx := b.t.Context()
	all := command.FindAllStringSubmatch(action, -1)
	if len(all) == 0 {
		b.t.Fatalf("%q names no command", action)
	}
	for _, c := range all {
		var err error
		switch vm := c[3]; c[1] {
		case "resume":
			_, err = b.a.Resume(ctx, vm)
		case "protect":
			_, err = b.a.Protect(ctx, vm)
		case "unprotect":
			_, err = b.a.Unprotect(ctx, vm, control.UnprotectOptions{DeleteReplica: strings.Contains(c[0], "--delete-replica")})
		case "adopt":
			_, err = b.a.Adopt(ctx, vm, nil)
		case "sync":
			_, err = b.a.Sync(ctx, vm, true, nil)
		default:
			b.t.Fatalf("%q: nobody knows how to %s", action, c[1])
		}
		if err != nil {
			b.t.Fatalf("%s: %v", c[0], err)
		}
	}
}

// worst waits until the VM is Critical for a cause, and returns the reason.
func (b *bubble) worst(cause string) control.Reason {
	b.t.Helper()
	v := b.within(7*time.Minute, "web", cause, func(v control.VM) bool {
		return v.Health == control.HealthCritical && v.Reasons[0].Code == health.CannotSend && v.Reasons[0].Cause == cause
	})
	return v.Reasons[0]
}

// Another writer takes the lease of the replica, and vm.json still names us: Critical at once, and what is printed mends it.
func TestTakenLeaseForReal(t *testing.T) {
	inBubble(t, "replication: {apply_interval: 1m}\n", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		const replica = "web/os.img/replica.vhd"
		b.must(b.target.BreakLease(b.t.Context(), replica))
		b.must(b.target.AcquireLease(b.t.Context(), replica, uuid.NewString()))
		b.write("web/os.img", 0, 4096)
		b.idle(3 * time.Minute)
		if v := b.vm("web"); v.Health != control.HealthNormal { // I7: a lease that is gone under our own generation is taken again
			b.perform(b.worst("lease-taken").Action)
		}
		b.write("web/os.img", 0, 4096)
		b.within(10*time.Minute, "web", "Normal", replicating)
		if v := b.within(10*time.Minute, "web", "an apply", func(v control.VM) bool { return v.AppliedEpoch == v.LastPoint.Epoch }); len(v.Reasons) > 0 {
			t.Errorf("%+v", v.Reasons)
		}
	})
}

// The container is deleted, and created again as the action says: it is empty then, which has an action of its own.
func TestMissingContainerForReal(t *testing.T) {
	inBubble(t, "", oneImage(), func(b *bubble) {
		b.within(time.Minute, "web", "replicating", replicating)
		b.target.SetHook(func(fake.Op) fake.Fault { return fake.Fault{Kind: fake.Refuse, Err: target.ErrNoContainer} })
		b.write("web/os.img", 0, 4096)
		r := b.worst("container-not-found")
		if !strings.Contains(r.Action, "create the container") {
			t.Errorf("%+v", r)
		}
		b.up()
		b.empty()
		b.perform(r.Action)
		b.perform(b.worst("target-lost").Action)
		b.within(5*time.Minute, "web", "Normal", replicating)
		res, err := b.a.Sync(b.t.Context(), "web", true, nil)
		if err != nil || res.Point == "" {
			t.Errorf("%+v, %v", res, err)
		}
	})
}

// empty takes everything away that the target holds.
func (b *bubble) empty() {
	b.t.Helper()
	ctx := b.t.Context()
	var all []target.Item
	for item, err := range b.target.List(ctx, "") {
		b.must(err)
		all = append(all, item)
	}
	for _, item := range all {
		if !item.Pages {
			b.must(b.target.Delete(ctx, item.Name))
			continue
		}
		snaps, err := b.target.Snapshots(ctx, item.Name)
		b.must(err)
		for _, s := range snaps {
			b.must(b.target.DeleteSnapshot(ctx, item.Name, s.ID))
		}
		b.must(b.target.BreakLease(ctx, item.Name))
		b.must(b.target.Delete(ctx, item.Name))
	}
}
