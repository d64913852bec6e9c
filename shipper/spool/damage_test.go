package spool

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[at] ^= 1
	write(t, path, string(data))
}

// Three epochs; the second is spoiled. Open says so, nothing is captured on top of it, and giving the suffix up mends it.
func TestI12_DamageIsReportedAndGivenUp(t *testing.T) {
	cases := map[string]struct {
		spoil func(t *testing.T, dir string)
		want  error
	}{
		"missing segment":  {func(t *testing.T, dir string) { remove(t, filepath.Join(dir, "a.seg")) }, ErrMissing},
		"short segment":    {func(t *testing.T, dir string) { write(t, filepath.Join(dir, "a.seg"), "short") }, ErrSegment},
		"flipped manifest": {func(t *testing.T, dir string) { flip(t, filepath.Join(dir, manifestName), 200) }, ErrChecksum},
		"empty manifest":   {func(t *testing.T, dir string) { write(t, filepath.Join(dir, manifestName), "") }, ErrTruncated},
		"other epoch's manifest": {func(t *testing.T, dir string) {
			data, err := os.ReadFile(filepath.Join(dir, "..", "1-1", manifestName))
			if err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Join(dir, manifestName), string(data))
		}, ErrMalformed},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			a, dir := fixture(t)
			for e := uint64(1); e <= 3; e++ {
				a.mustCommit(t, e, e-1, "a")
			}
			c.spoil(t, filepath.Join(dir, "1-2"))
			s := again(t, dir)
			d := s.Damaged()
			if len(d) != 1 || d[0].Epoch != 2 || !errors.Is(d[0], c.want) {
				t.Fatalf("damage %v", d)
			}
			if err := s.Check(); !errors.Is(err, c.want) {
				t.Fatalf("check: %v", err)
			}
			if _, err := s.Begin(1, 4); !errors.Is(err, ErrDamaged) {
				t.Fatalf("begin: %v", err)
			}
			if err := s.IntendGiveUp(2); err != nil {
				t.Fatal(err)
			}
			if err := s.FinishGiveUp(); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(epochs(s), []uint64{1}) || len(s.Damaged()) != 0 {
				t.Fatal(epochs(s), s.Damaged())
			}
			b := &actor{s, newLedger()}
			b.mustCommit(t, 4, 1, "a")
			if err := s.CheckDeep(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
}

func TestI4_LostEpochBreaksTheChain(t *testing.T) {
	a, dir := fixture(t)
	for e := uint64(1); e <= 3; e++ {
		a.mustCommit(t, e, e-1, "a")
	}
	remove(t, filepath.Join(dir, "1-2"))
	if d := again(t, dir).Damaged(); len(d) != 1 || d[0].Epoch != 3 || !errors.Is(d[0], ErrChain) {
		t.Fatal(d)
	}
}

func TestCheckDeepFindsAFlippedByte(t *testing.T) {
	a, dir := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	for at := 0; at < 8192; at += 1111 {
		flip(t, filepath.Join(dir, "1-1", "a.seg"), at)
		if err := a.s.Check(); err != nil {
			t.Fatalf("shallow: %v", err)
		}
		if err := a.s.CheckDeep(); !errors.Is(err, ErrSegment) {
			t.Fatalf("byte %d: %v", at, err)
		}
		flip(t, filepath.Join(dir, "1-1", "a.seg"), at)
	}
	if err := a.s.CheckDeep(); err != nil {
		t.Fatal(err)
	}
}

// A segment that is right in itself, and another epoch's: its bytes agree with the manifest, its header does not.
func TestCheckDeepFindsAnotherEpochsSegment(t *testing.T) {
	a, _ := fixture(t)
	d, err := a.s.Begin(1, 2)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := writeSegment(d, header(1, 0, "a"))
	if err != nil {
		t.Fatal(err)
	}
	m := sampleManifest()
	m.Epoch, m.Previous, m.Disks = 2, 0, []ManifestDisk{{ID: "a", State: Complete, Segment: ref}}
	if err := d.Commit(m); err != nil {
		t.Fatal(err)
	}
	if err := a.s.CheckDeep(); !errors.Is(err, ErrSegment) {
		t.Fatal(err)
	}
}

func TestCheckFindsStrangers(t *testing.T) {
	a, dir := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	write(t, filepath.Join(dir, "stranger"), "")
	if err := a.s.Check(); !errors.Is(err, ErrUnknown) {
		t.Fatal(err)
	}
}

// A newer program's spool is refused as a whole and left as it is, drafts included.
func TestNewerVersionIsRefusedUntouched(t *testing.T) {
	for _, file := range []string{"1-1/" + manifestName, giveUpName} {
		a, dir := fixture(t)
		a.mustCommit(t, 1, 0, "a")
		if _, _, err := a.draft(2, 1, "a"); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, file), string(document(2, kindManifest, "{}")))
		if _, err := Open(dir, Options{Log: quiet}); !errors.Is(err, ErrVersion) {
			t.Fatalf("%s: %v", file, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "1-2", "a.seg")); err != nil {
			t.Fatal(err)
		}
	}
}

// A give-up whose intent cannot be read is one of everything.
func TestUnreadableIntentGivesEverythingUp(t *testing.T) {
	for _, data := range []string{"", string(document(1, kindGiveUp, `{"from":0}`)), string(document(1, kindManifest, `{"from":2}`))} {
		a, dir := fixture(t)
		a.mustCommit(t, 1, 0, "a")
		a.mustCommit(t, 2, 1, "a")
		write(t, filepath.Join(dir, giveUpName), data)
		s := again(t, dir)
		if from, pending := s.GiveUpFrom(); from != 1 || !pending {
			t.Fatal(from, pending)
		}
		if err := s.FinishGiveUp(); err != nil || len(epochs(s)) != 0 {
			t.Fatal(err, epochs(s))
		}
	}
}

func TestOpenRemovesDraftsAndTemporaryFiles(t *testing.T) {
	a, dir := fixture(t)
	a.mustCommit(t, 1, 0, "a")
	if _, _, err := a.draft(2, 1, "a"); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "1-1", manifestName+".tmp"), "x")
	write(t, filepath.Join(dir, "1-2", manifestName+".tmp"), "x")
	write(t, filepath.Join(dir, giveUpName+".tmp"), "x")
	s := again(t, dir)
	if err := a.led.check(s); err != nil {
		t.Fatal(err)
	}
	names, err := durable.OS{}.ReadDir(filepath.Join(dir, "1-1"))
	if err != nil || !slices.Equal(names, []string{"a.seg", manifestName}) {
		t.Fatal(names, err)
	}
}
