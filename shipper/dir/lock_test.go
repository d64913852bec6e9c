package dir

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// blocked starts do while another process holds the blob's lock, calls meanwhile
// once do can only wait, lets go, and returns do's error.
func blocked(t *testing.T, d *Dir, exclusive bool, do func() error, meanwhile func()) error {
	t.Helper()
	unlock, err := d.lockNew(t.Context(), "vm/b")
	if !exclusive && err == nil {
		unlock()
		unlock, err = d.lock(t.Context(), lockPath("vm/b"), false, false)
	}
	ok(t, err)
	done := make(chan error, 1)
	go func() { done <- do() }()
	synctest.Wait()
	select {
	case err := <-done:
		t.Fatalf("did not wait for the lock: %v", err)
	default:
	}
	meanwhile()
	unlock()
	return <-done
}

// TestExclusion: whatever changes a blob's state waits for puts of other
// processes, and puts wait for it.
func TestExclusion(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		exclusive bool // the other's lock
		do        func(d *Dir) error
	}{
		"put waits for a snapshot": {true, func(d *Dir) error { return put(d, "vm/b", 0, 1, target.Unguarded) }},
		"clear waits":              {true, func(d *Dir) error { return d.ClearPages(ctx, "vm/b", 0, 512, target.Unguarded) }},
		"snapshot waits for a put": {false, func(d *Dir) error { _, err := d.Snapshot(ctx, "vm/b", "", "", nil); return err }},
		"number waits for a put":   {false, func(d *Dir) error { _, err := d.SetSequence(ctx, "vm/b", 1, "", ""); return err }},
		"resize waits for a put":   {false, func(d *Dir) error { return d.Resize(ctx, "vm/b", 512, target.Unguarded) }},
		"break waits for a put":    {false, func(d *Dir) error { return d.BreakLease(ctx, "vm/b") }},
		"delete waits for a put":   {false, func(d *Dir) error { return d.DeletePages(ctx, "vm/b", "") }},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDir(t, Options{})
			ok(t, d.CreatePages(t.Context(), "vm/b", 4096, 0))
			synctest.Test(t, func(t *testing.T) {
				ok(t, blocked(t, d, c.exclusive, func() error { return c.do(d) }, func() {}))
			})
		})
	}
}

// TestPutsShare: a put does not wait for another process's put, nor does a look.
func TestPutsShare(t *testing.T) {
	d := newDir(t, Options{})
	ok(t, d.CreatePages(t.Context(), "vm/b", 4096, 0))
	unlock, err := d.lock(t.Context(), lockPath("vm/b"), false, false)
	ok(t, err)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // so that a wait fails and does not hang
	defer cancel()
	data := make([]byte, 512)
	ok(t, d.PutPages(ctx, "vm/b", 0, data, checksum.Of(data), target.Unguarded))
	_, err = d.Properties(ctx, "vm/b", "")
	ok(t, err)
}

// TestCreateLooksAgain: a creator that waited finds what was made meanwhile.
func TestCreateLooksAgain(t *testing.T) {
	d := newDir(t, Options{})
	synctest.Test(t, func(t *testing.T) {
		err := blocked(t, d, true, func() error { return d.CreatePages(t.Context(), "vm/b", 512, 1) }, func() {
			ok(t, d.writeState("vm/b", state{Version: stateVersion, Birth: "x", Sequence: 7}))
			ok(t, d.publishSized("vm/b", 4096))
		})
		is(t, err, target.ErrExists)
	})
	p, err := d.Properties(t.Context(), "vm/b", "")
	ok(t, err)
	if p.Size != 4096 || p.Sequence != 7 {
		t.Errorf("the loser left its mark: %+v", p)
	}
}
