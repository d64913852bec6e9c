package stage

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// The load stays at a place for a while, within the disk, and comes to all of them.
func TestWandering(t *testing.T) {
	disks := []disk{{size: 8 << 20}, {size: 64 << 20}}
	where := wandering(1, disks)
	for d := range disks {
		blocks := disks[d].size / stamp.BlockSize
		seen, moves, last := map[int64]bool{}, 0, int64(-1)
		for range 400 * wanderEvery {
			s := where(d)
			if s.From < 0 || s.To > blocks || s.To-s.From != wanderBlocks {
				t.Fatalf("%+v of %d blocks", s, blocks)
			}
			if s.From != last {
				moves++
			}
			seen[s.From], last = true, s.From
		}
		if int64(len(seen)) != blocks/wanderBlocks || moves > 400 {
			t.Fatalf("disk %d: %d places, %d moves", d, len(seen), moves)
		}
	}
}

// The whole way without an appliance: the daemon is killed under load, and what it answered is in the images, until one of
// them is put back.
func TestUnquietJudgesImages(t *testing.T) {
	tools(t, "qemu-storage-daemon", "qemu-img", "qemu-io")
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	a, err := rig.New(rig.Options{Dir: dir, Binary: "none", Mount: filepath.Join(dir, "source"), URL: "dir://" + dir})
	if err != nil {
		t.Fatal(err)
	}
	u, err := newUnquiet(t.Context(), &Env{Out: io.Discard, Seed: 5}, NewReport(io.Discard), a)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = u.leave() }() // its load failed with the daemon
	image := filepath.Join(u.store(), u.images[2].name)
	if err := u.images[2].copy(t.Context(), image, filepath.Join(dir, "before")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := u.work(ctx); err != nil {
		t.Fatal(err)
	}
	if err := u.pause(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	u.exporter.end(unix.SIGKILL)
	if err := u.guest.stop(); errors.Is(err, errStuck) {
		t.Fatal(err)
	}
	all := stamp.Bounds{After: math.MaxInt64, Before: math.MaxInt64}
	judge := func() error {
		images, err := u.readSource()
		if err != nil {
			t.Fatal(err)
		}
		return u.log.Check(images, all, nil).Err()
	}
	if totals := u.log.Totals(); totals.Writes < 20 {
		t.Fatalf("%+v", totals)
	}
	if err := judge(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "before"), image); err != nil {
		t.Fatal(err)
	}
	if err := judge(); err == nil {
		t.Fatal("an image that lost all that was written")
	}
}
