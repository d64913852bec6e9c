package main

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// child writes a program that plays its histories as told: seeds from 13 on go wrong, 17 ends its process.
func fakeSimulation(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "sim.test")
	script := `#!/bin/sh
while [ $# -gt 0 ]; do
	case $1 in -sim.seed) seed=$2;; -sim.count) count=$2;; esac
	shift
done
bad=0
while [ $count -gt 0 ]; do
	case $seed in
	13) echo "seed $seed: WRONG in 1ms"; bad=1;;
	17) echo "panic"; exit 2;;
	*) echo "seed $seed: ok in 1ms";;
	esac
	seed=$((seed+1)); count=$((count-1))
done
exit $bad
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSeedsThatFailAreSaidAndOthersRemembered(t *testing.T) {
	path := filepath.Join(t.TempDir(), "passed")
	l, err := openLedger(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	tt := &torture{binary: fakeSimulation(t), out: &out, ledger: l, next: 11, until: time.Now().Add(time.Minute)}
	tt.play(context.Background(), 11)
	if wrong := l.wrong(); !slices.Equal(wrong, []uint64{13, 17}) {
		t.Errorf("wrong: %v\n%s", wrong, out.String())
	}
	if l.count() != 8 || !l.has(20) || l.has(13) || l.has(17) {
		t.Errorf("%d passed", l.count())
	}
	if err := l.close(); err != nil {
		t.Fatal(err)
	}
	again, err := openLedger(path)
	if err != nil || again.count() != 8 {
		t.Fatalf("a second run knows %d, %v", again.count(), err)
	}
	if err := again.close(); err != nil {
		t.Fatal(err)
	}
}

func TestRunEndsInTimeAndFailsIfOneWentWrong(t *testing.T) {
	l, err := openLedger(filepath.Join(t.TempDir(), "passed"))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	tt := &torture{binary: fakeSimulation(t), out: &out, ledger: l, next: 1, until: time.Now().Add(300 * time.Millisecond)}
	err = tt.run(context.Background(), 1)
	if l.count() == 0 || !strings.Contains(out.String(), "an hour") {
		t.Errorf("%v, %s", err, out.String())
	}
	if (err != nil) != (len(l.wrong()) > 0) {
		t.Errorf("%v with %v wrong", err, l.wrong())
	}
}

func TestParse(t *testing.T) {
	if seed, verdict, ok := parse("seed 7: ok in 3s"); seed != 7 || verdict != "ok" || !ok {
		t.Error(seed, verdict, ok)
	}
	if _, _, ok := parse("--- PASS: TestHistories/7"); ok {
		t.Error("any line passes")
	}
}
