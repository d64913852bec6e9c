package control

import (
	"context"
	"errors"
	"testing"
)

// The commands that move a VM arrive as they were sent, and a refusal comes back whole.
func TestMoves(t *testing.T) {
	var got string
	var opts UnprotectOptions
	c, _ := serve(t, &fake{move: func(_ context.Context, command, vm string, o UnprotectOptions) (Moved, error) {
		got, opts = command+" "+vm, o
		if vm == "paused" {
			return Moved{}, Refused(CodeRefused, "let it go on first: vhdrelay resume paused", "VM paused is Paused: %s is refused", command)
		}
		return Moved{VM: vm, State: "Paused"}, nil
	}})
	for command, call := range map[string]func(context.Context, string) (Moved, error){
		"pause": c.Pause, "resume": c.Resume, "protect": c.Protect,
		"unprotect": func(ctx context.Context, vm string) (Moved, error) {
			return c.Unprotect(ctx, vm, UnprotectOptions{DeleteReplica: true})
		},
	} {
		m, err := call(deadline(t), "web")
		if err != nil || m != (Moved{"web", "Paused"}) || got != command+" web" || opts.DeleteReplica != (command == "unprotect") {
			t.Errorf("%s: %+v %v, arrived as %q %+v", command, m, err, got, opts)
		}
		var e *Error
		if _, err = call(deadline(t), "paused"); !errors.As(err, &e) || e.Exit != ExitRefused || e.Code != CodeRefused || e.Action == "" {
			t.Errorf("%s refused: %v", command, err)
		}
	}
}

func TestUnmountCrosses(t *testing.T) {
	c, _ := serve(t, &fake{mount: func(_ context.Context, store string, force bool) (Unmounted, error) {
		if !force {
			return Unmounted{}, Refused("store-busy", "close them", "files are open in %s", store)
		}
		return Unmounted{Stores: []string{store}}, nil
	}})
	if u, err := c.Unmount(t.Context(), "main", true); err != nil || len(u.Stores) != 1 || u.Stores[0] != "main" {
		t.Errorf("%+v %v", u, err)
	}
	var e *Error
	if _, err := c.Unmount(t.Context(), "main", false); !errors.As(err, &e) || e.Code != "store-busy" || e.Exit != ExitRefused || e.Action != "close them" {
		t.Errorf("%v", err)
	}
}
