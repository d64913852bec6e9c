package fsx

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// pairsIn makes two pairs of plain files: the "mount" is as good as its oracle.
func pairsIn(t *testing.T) []Pair {
	t.Helper()
	dir := t.TempDir()
	var pairs []Pair
	for _, name := range []string{"a", "b"} {
		pairs = append(pairs, Pair{Mount: filepath.Join(dir, name), Plain: filepath.Join(dir, name+".plain")})
	}
	return pairs
}

// refusing leaves out what a mount must refuse and a plain file does.
func refusing(t *testing.T) {
	t.Helper()
	all, total := operations, totalWeight
	t.Cleanup(func() { operations, totalWeight = all, total })
	operations = slices.DeleteFunc(slices.Clone(all), func(o operation) bool {
		if o.name == "refused" {
			totalWeight -= o.weight
		}
		return o.name == "refused"
	})
}

// TestPlainFilesAreEqual: every operation is done, with no difference and at the promised checkpoints.
func TestPlainFilesAreEqual(t *testing.T) {
	refusing(t)
	var at []int
	stats, err := Run(t.Context(), Options{Pairs: pairsIn(t), Seed: 1, Ops: 1500, Every: 600, Checkpoint: func(op int) error {
		at = append(at, op)
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range operations {
		if stats[o.name] == 0 {
			t.Errorf("%s was never done", o.name)
		}
	}
	if stats[Unmapped] != 0 {
		t.Error("plain files can be mapped")
	}
	if !slices.Equal(at, []int{600, 1200, 1500}) {
		t.Errorf("checkpoints at %v", at)
	}
}

// TestSameSeedSameOperations, whatever the files held before.
func TestSameSeedSameOperations(t *testing.T) {
	refusing(t)
	var logs [2][]byte
	for i := range logs {
		pairs := pairsIn(t)
		if _, err := Run(t.Context(), Options{Pairs: pairs, Seed: 7, Ops: 300}); err != nil {
			t.Fatal(err)
		}
		for _, p := range pairs {
			b, err := os.ReadFile(p.Mount)
			if err != nil {
				t.Fatal(err)
			}
			logs[i] = append(logs[i], b...)
		}
	}
	if !slices.Equal(logs[0], logs[1]) {
		t.Error("one seed, two results")
	}
}

// TestFailureTellsAll: one wrong byte is found, and the report says where and how to see it again.
func TestFailureTellsAll(t *testing.T) {
	refusing(t)
	pairs := pairsIn(t)
	damage := func(op int) error {
		if op != 400 {
			return nil
		}
		b, err := os.ReadFile(pairs[0].Mount)
		if err != nil || len(b) == 0 {
			return errors.Join(err, os.WriteFile(pairs[0].Mount, []byte("x"), 0o600))
		}
		b[len(b)/2] ^= 1
		return os.WriteFile(pairs[0].Mount, b, 0o600)
	}
	_, err := Run(t.Context(), Options{Pairs: pairs, Seed: 4, Ops: 1000, Every: 5, Checkpoint: damage, Replay: "the command"})
	f, ok := errors.AsType[*Failure](err)
	if !ok {
		t.Fatalf("%v", err)
	}
	if f.Seed != 4 || f.Op < 400 || f.Op >= 405 || len(f.Last) > keep || !slices.Contains(f.Last, "checkpoint after 400 operations") {
		t.Errorf("%+v", f)
	}
	for _, part := range []string{"seed 4", "the command", f.Last[len(f.Last)-1], "differ"} {
		if !strings.Contains(f.Error(), part) {
			t.Errorf("the report lacks %q:\n%v", part, f)
		}
	}
}

// TestCheckpointErrorEnds: who looks behind the mount can end the run.
func TestCheckpointErrorEnds(t *testing.T) {
	refusing(t)
	wrong := errors.New("nobody was told")
	_, err := Run(t.Context(), Options{Pairs: pairsIn(t), Seed: 1, Ops: 100, Every: 10, Checkpoint: func(int) error { return wrong }})
	if f, ok := errors.AsType[*Failure](err); !ok || !errors.Is(err, wrong) || f.Op != 9 {
		t.Errorf("%v", err)
	}
}

// TestRefusedMustBeRefused: a plain file moves its tail, which a mount may not.
func TestRefusedMustBeRefused(t *testing.T) {
	_, err := Run(t.Context(), Options{Pairs: pairsIn(t), Seed: 1, Ops: 2000})
	if f, ok := errors.AsType[*Failure](err); !ok || !strings.Contains(f.Last[len(f.Last)-1], "fallocate, mode") {
		t.Errorf("%v", err)
	}
}

// TestMinIsKept: a disk of a VM never shrinks to nothing; a plain file that is not there begins as a copy.
func TestMinIsKept(t *testing.T) {
	refusing(t)
	const least = 100_000
	pairs := pairsIn(t)
	for _, p := range pairs {
		if err := os.WriteFile(p.Mount, make([]byte, least+5), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Run(t.Context(), Options{Pairs: pairs, Seed: 5, Ops: 300, Min: least, Max: 2 * least, Every: 1, Checkpoint: func(int) error {
		for _, p := range pairs {
			st, err := os.Stat(p.Mount)
			if err != nil || st.Size() < least || st.Size() > 2*least {
				return errors.Join(err, errors.New("the size leaves its limits"))
			}
		}
		return nil
	}})
	if err != nil {
		t.Error(err)
	}
}

// TestMappable: what cannot be mapped at all is told from what cannot be mapped here. /proc has files without mmap.
func TestMappable(t *testing.T) {
	for name, want := range map[string]bool{"fsx.go": true, "/proc/self/status": false} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := mappable(f)
		if got != want || err != nil && want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestNothingToDoIsAnError(t *testing.T) {
	for _, o := range []Options{{}, {Pairs: pairsIn(t), Min: 5, Max: 5}} {
		if _, err := Run(t.Context(), o); err == nil {
			t.Errorf("%+v", o)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Pairs: pairsIn(t), Ops: 10}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestDifference(t *testing.T) {
	if got := difference([]byte{1, 2, 3}, []byte{1, 5, 6}); !strings.Contains(got, "2 of 3 bytes differ, the first is number 1: 0x2, and 0x5") {
		t.Error(got)
	}
	if got := difference([]byte{1}, nil); !strings.Contains(got, "1 bytes, the plain file has 0") {
		t.Error(got)
	}
}
