package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// killed is what a failpoint panics with.
type killed struct{ point string }

// killAt runs work on a target that dies the k-th time it passes any failpoint,
// and returns the target as the next process opens it, and where it died ("" if
// it did not). Locks are freed as the kernel frees those of a dead process.
func killAt(t *testing.T, k int, prepare, work func(d *Dir) error) (after *Dir, point string) {
	t.Helper()
	armed, n := false, 0
	d := newDir(t, Options{Hook: func(point string) {
		if n++; armed && n == k {
			panic(killed{point})
		}
	}})
	ok(t, prepare(d))
	armed, n = true, 0
	func() {
		defer func() {
			if r := recover(); r != nil {
				dead, isKill := r.(killed)
				if !isKill {
					panic(r)
				}
				point = dead.point
			}
		}()
		ok(t, work(d))
	}()
	return reopen(t, d), point
}

// everyKill kills work at its first failpoint, its second, … until it survives,
// and checks each time; it returns the points it died at.
func everyKill(t *testing.T, prepare, work func(d *Dir) error, check func(t *testing.T, d *Dir)) map[string]bool {
	t.Helper()
	died := map[string]bool{}
	for k := 1; ; k++ {
		after, point := killAt(t, k, prepare, work)
		t.Run(fmt.Sprintf("%d %s", k, point), func(t *testing.T) { check(t, after) })
		if point == "" {
			return died
		}
		died[point] = true
		if k > 100 {
			t.Fatal("it never survives")
		}
	}
}

func nothing(*Dir) error { return nil }

func blobOf(value byte) func(d *Dir) error {
	return func(d *Dir) error {
		if err := d.CreatePages(bg, "vm/b", 64<<10, 3); err != nil {
			return err
		}
		return put(d, "vm/b", 0, value, target.Unguarded)
	}
}

// bg is for work that a failpoint cuts off.
var bg = context.Background()

// TestI5_CrashInCreate: the record is there whole or not at all, and creating it
// again succeeds or finds exactly it.
func TestI5_CrashInCreate(t *testing.T) {
	content := bytes.Repeat([]byte("record"), 1000)
	create := func(d *Dir) error {
		_, err := d.Create(bg, "vm/points/1-1.json", content)
		return err
	}
	died := everyKill(t, nothing, create, func(t *testing.T, d *Dir) {
		_, err := d.Create(t.Context(), "vm/points/1-1.json", content)
		if err != nil {
			is(t, err, target.ErrExists)
		}
		o, err := d.Get(t.Context(), "vm/points/1-1.json")
		ok(t, err)
		if !bytes.Equal(o.Data, content) {
			t.Fatalf("%d bytes of %d", len(o.Data), len(content))
		}
		if got := list(t, d, ""); len(got) != 1 {
			t.Fatalf("listed %v", got)
		}
	})
	wantDied(t, died, PointBeforePublish, PointAfterPublish)
}

func wantDied(t *testing.T, died map[string]bool, want ...string) {
	t.Helper()
	for _, p := range want {
		if !died[p] {
			t.Errorf("never died %q", p)
		}
	}
}

// TestI7_CrashInReplace: the old vm.json or the new one.
func TestI7_CrashInReplace(t *testing.T) {
	prepare := func(d *Dir) error {
		_, err := d.Create(bg, "vm/vm.json", []byte("old"))
		return err
	}
	replace := func(d *Dir) error {
		_, err := d.Replace(bg, "vm/vm.json", []byte("new"), contentETag([]byte("old")))
		return err
	}
	died := everyKill(t, prepare, replace, func(t *testing.T, d *Dir) {
		o, err := d.Get(t.Context(), "vm/vm.json")
		ok(t, err)
		if s := string(o.Data); s != "old" && s != "new" {
			t.Fatalf("read %q", s)
		}
		_, err = d.Replace(t.Context(), "vm/vm.json", []byte("newer"), o.ETag)
		ok(t, err)
	})
	wantDied(t, died, PointBeforeReplace, PointAfterReplace)
}

// TestCrashInCreatePages: a blob is there whole, with its number, or not at all,
// and creating it again works either way.
func TestCrashInCreatePages(t *testing.T) {
	died := everyKill(t, nothing, blobOf(1), func(t *testing.T, d *Dir) {
		err := d.CreatePages(t.Context(), "vm/b", 64<<10, 3)
		if err != nil {
			is(t, err, target.ErrExists)
		}
		p, err := d.Properties(t.Context(), "vm/b", "")
		ok(t, err)
		if p.Size != 64<<10 || p.Sequence != 3 || p.Leased {
			t.Fatalf("%+v", p)
		}
		ok(t, put(d, "vm/b", 0, 9, target.Guard{Sequence: 3}))
	})
	wantDied(t, died, PointBeforeData, PointBeforePut, PointAfterPublish)
}

// TestI6_CrashInSnapshot: a snapshot exists whole, with its metadata, or not at
// all; the base is untouched.
func TestI6_CrashInSnapshot(t *testing.T) {
	snapshot := func(d *Dir) error {
		_, err := d.Snapshot(bg, "vm/b", "", "", map[string]string{"epoch": "7"})
		return err
	}
	everyKill(t, blobOf(5), snapshot, func(t *testing.T, d *Dir) {
		list, err := d.Snapshots(t.Context(), "vm/b")
		ok(t, err)
		for _, s := range list {
			wantContent(t, d, s.ID, 5)
			if s.Metadata["epoch"] != "7" || s.Size != 64<<10 {
				t.Fatalf("%+v", s)
			}
			ok(t, d.DeleteSnapshot(t.Context(), "vm/b", s.ID))
		}
		wantContent(t, d, "", 5)
		ok(t, snapshot(d))
		again, err := d.Snapshots(t.Context(), "vm/b")
		ok(t, err)
		if len(again) != 1 {
			t.Fatalf("%d snapshots afterwards", len(again))
		}
		for _, s := range list {
			if s.ID == again[0].ID {
				t.Fatal("the id of a deleted snapshot was used again")
			}
		}
	})
}

func wantContent(t *testing.T, d *Dir, snapshot string, value byte) {
	t.Helper()
	p := make([]byte, 64<<10)
	ok(t, d.ReadPages(t.Context(), "vm/b", snapshot, 0, p))
	if p[0] != value || p[4095] != value || !checksum.IsZero(p[4096:]) {
		t.Fatalf("content %d … %d", p[0], p[4095])
	}
}

// TestI7_CrashInFence: a number and a lease are the old or the new ones.
func TestI7_CrashInFence(t *testing.T) {
	fence := func(d *Dir) error {
		if err := d.AcquireLease(bg, "vm/b", idA); err != nil {
			return err
		}
		_, err := d.SetSequence(bg, "vm/b", 4, idA, "")
		return err
	}
	everyKill(t, blobOf(1), fence, func(t *testing.T, d *Dir) {
		p, err := d.Properties(t.Context(), "vm/b", "")
		ok(t, err)
		if p.Sequence != 3 && p.Sequence != 4 || p.Sequence == 4 && !p.Leased {
			t.Fatalf("%+v", p)
		}
		ok(t, fence(d))
		is(t, put(d, "vm/b", 0, 2, target.Guard{Lease: idA, Sequence: 3}), target.ErrSequence)
	})
}

// TestCrashInDelete: repeated, it ends with nothing left.
func TestCrashInDelete(t *testing.T) {
	remove := func(d *Dir) error { return d.DeletePages(bg, "vm/b", "") }
	died := everyKill(t, blobOf(1), remove, func(t *testing.T, d *Dir) {
		ok(t, remove(d))
		if got := list(t, d, ""); len(got) != 0 {
			t.Fatalf("listed %v", got)
		}
		if _, err := os.Stat(filepath.Join(d.path, side("vm/b"))); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("what belonged to the blob is left: %v", err)
		}
		ok(t, blobOf(6)(d))
		wantContent(t, d, "", 6)
	})
	wantDied(t, died, PointBeforeSidecar)
}

// TestEveryPointIsReached: a failpoint nobody passes tests nothing.
func TestEveryPointIsReached(t *testing.T) {
	seen := map[string]bool{}
	d := newDir(t, Options{Hook: func(p string) { seen[p] = true }})
	ok(t, blobOf(1)(d))
	ok(t, d.AcquireLease(t.Context(), "vm/b", idA))
	ok(t, d.DeletePages(t.Context(), "vm/b", idA))
	wantDied(t, seen, Points()...)
}
