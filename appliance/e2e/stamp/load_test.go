package stamp

import (
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// plain makes disks that nobody stands before.
func plain(t *testing.T, sizes ...int64) (paths []string) {
	t.Helper()
	for i, size := range sizes {
		path := filepath.Join(t.TempDir(), string(rune('a'+i)))
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(path, size); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR|unix.O_DIRECT, 0)
		if err != nil {
			t.Skipf("no O_DIRECT here: %v", err)
		}
		_ = f.Close()
		paths = append(paths, path)
	}
	return paths
}

func read(t *testing.T, paths []string) (images []Image) {
	t.Helper()
	for i, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		im, err := ReadImage(f, info.Size(), i)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, im)
	}
	return images
}

// What a load leaves on plain files is the cut that includes everything, and what it left before is an earlier one.
func TestLoadOnPlainFiles(t *testing.T) {
	paths := plain(t, 4<<20, 2<<20)
	var clock Clock
	log := NewLog(&clock, read(t, paths))
	load := Load{Seed: 7, Rate: 200 << 20, Span: []Span{{From: 100, To: 512}}}
	var earlier *Cut
	for round := range 3 {
		load.Seed += uint64(round)
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := load.Run(ctx, log, paths)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		cut := log.Check(read(t, paths), Bounds{After: math.MaxInt64, Before: math.MaxInt64}, earlier)
		if err := cut.Err(); err != nil {
			t.Fatal(err)
		}
		earlier = cut
	}
	if cut := log.CheckDurable(read(t, paths)); !cut.OK() {
		t.Fatal(cut.Err())
	}
	totals := log.Totals()
	if totals.Writes < 20 || totals.InFlight != 0 || totals.Failed != 0 {
		t.Fatalf("%+v", totals)
	}
	for b := range 1024 {
		if (b < 100 || b >= 512) && len(log.mu.history[0][b]) != 0 {
			t.Fatalf("block %d is beyond the span", b)
		}
	}
}

// A disk that fails ends the load with its error, and the write counts as failed.
func TestLoadFails(t *testing.T) {
	paths := plain(t, 1<<20)
	var clock Clock
	log := NewLog(&clock, read(t, paths))
	if err := (Load{Seed: 1}).Run(t.Context(), log, []string{filepath.Join(t.TempDir(), "absent")}); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	if err := (Load{Seed: 1, Writers: 2}).Run(t.Context(), log, []string{"/dev/full"}); err == nil {
		t.Fatal("a full disk takes everything")
	}
	if log.Totals().Writes != 0 {
		t.Fatalf("%+v", log.Totals())
	}
}

// Whole keeps a write within its piece of the disk, and cuts none that is.
func TestLoadWhole(t *testing.T) {
	paths := plain(t, 4<<20)
	var clock Clock
	log := NewLog(&clock, read(t, paths))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := (Load{Seed: 3, Rate: 200 << 20, Whole: 16}).Run(ctx, log, paths); err != nil {
		t.Fatal(err)
	}
	full := 0
	for _, w := range log.mu.writes {
		if w.First/16 != (w.First+int64(w.Count)-1)/16 {
			t.Fatalf("blocks %d+%d cross a multiple of 16", w.First, w.Count)
		}
		if w.Count > 8 {
			full++
		}
	}
	if full == 0 {
		t.Fatal("all writes are small")
	}
}
