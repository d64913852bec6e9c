package spool

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
)

var quiet = slog.New(slog.DiscardHandler)

// I4, I5, I10: the power goes before every single operation of a spool's life, and what was acknowledged is there afterwards.
func TestI4_PowerCutAtEveryOperation(t *testing.T) {
	d := newDisk()
	a := &actor{led: newLedger()}
	cuts := 0
	d.before = func(op int) {
		cuts++
		afterPowerCut(t, d, a.led.clone(), fmt.Sprintf("before operation %d", op))
	}
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a.s = s
	if err := a.life(); err != nil {
		t.Fatal(err)
	}
	if err := a.led.check(s); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d power cuts", cuts)
}

// Fail the k-th operation, for every k: somebody says so, and neither now nor after a power cut is anything wrong. Twice: the
// operation fails once, or everything fails from there on.
func TestI4_EveryOperationFails(t *testing.T) {
	for _, dead := range []bool{false, true} {
		for k := 1; ; k++ {
			if !liveWithFailure(t, k, dead) {
				t.Logf("%d operations", k-1)
				break
			}
		}
	}
}

func liveWithFailure(t *testing.T, k int, dead bool) bool {
	d := newDisk()
	hit := ""
	d.fail = func(op int, name string) error {
		if op == k || dead && op > k {
			if hit == "" {
				hit = name
			}
			return errInjected
		}
		return nil
	}
	a := &actor{led: newLedger()}
	s, err := open("/spool", Options{Log: quiet}, d)
	if err == nil {
		a.s = s
		err = a.life()
	}
	what := fmt.Sprintf("operation %d (%s) failed, dead %v", k, hit, dead)
	if hit == "" {
		if err != nil {
			t.Fatal(err)
		}
		return false
	}
	if !errors.Is(err, errInjected) {
		t.Fatalf("%s and nobody said so: %v", what, err)
	}
	afterPowerCut(t, d, a.led, what)
	if s == nil || dead {
		return true
	}
	d.fail = nil
	recoverInPlace(t, a, what)
	afterPowerCut(t, d, a.led, what+", settled")
	return true
}

// recoverInPlace is what the stages do when the disk is back: settle, and repeat what was asked for.
func recoverInPlace(t *testing.T, a *actor, what string) {
	t.Helper()
	if err := a.s.Settle(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	for e := range a.led.may {
		if a.s.entry(e) == nil {
			a.led.gone(e)
		}
	}
	if from, pending := a.s.GiveUpFrom(); pending {
		if err := a.s.FinishGiveUp(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for e := uint64(1); e < 10; e++ {
			if e >= from {
				a.led.leaving(e)
				a.led.gone(e)
			}
		}
		a.led.intent, a.led.perhaps = 0, 0
	}
	for e := range a.led.may { // releases that were begun
		if err := a.release(e); err != nil {
			t.Fatalf("%s: release %d: %v", what, e, err)
		}
	}
	if err := a.led.check(a.s); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// A draft that cannot be removed when it is given up goes before the next epoch: it counts against the quota.
func TestI10_WhatAnAbortLeftGoesBeforeTheNextEpoch(t *testing.T) {
	d := newDisk()
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a := &actor{s, newLedger()}
	draft, _, err := a.draft(1, 0, "a")
	if err != nil {
		t.Fatal(err)
	}
	d.fail = func(_ int, name string) error {
		if name == "remove" {
			return errInjected
		}
		return nil
	}
	if err := draft.Abort(); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	if err := s.Check(); err != nil {
		t.Errorf("a draft that could not be removed is no violation: %v", err)
	}
	d.fail = nil
	a.mustCommit(t, 2, 0, "a")
	if names, err := d.ReadDir("/spool"); err != nil || len(names) != 1 {
		t.Errorf("left in the spool: %v, %v", names, err)
	}
}

// A manifest whose directory sync fails and that cannot be unlinked either: the spool says so, refuses to capture, and Settle
// ends it.
func TestI4_UnsettledManifestStopsTheCapture(t *testing.T) {
	d := newDisk()
	a := &actor{led: newLedger()}
	s, err := open("/spool", Options{Log: quiet}, d)
	if err != nil {
		t.Fatal(err)
	}
	a.s = s
	draft, m, err := a.draft(1, 0, "a")
	if err != nil {
		t.Fatal(err)
	}
	renamed := false
	d.fail = func(_ int, name string) error {
		if renamed = renamed || name == "rename"; renamed && (name == "syncdir" || name == "remove") {
			return errInjected
		}
		return nil
	}
	if err := draft.Commit(m); !errors.Is(err, ErrUnsettled) || !errors.Is(err, errInjected) {
		t.Fatalf("commit: %v", err)
	}
	a.led.may[1] = true
	afterPowerCut(t, d, a.led, "unsettled")
	if _, err := s.Begin(1, 2); !errors.Is(err, ErrUnsettled) {
		t.Fatalf("begin: %v", err)
	}
	if err := draft.Abort(); !errors.Is(err, ErrUnsettled) {
		t.Fatalf("abort: %v", err)
	}
	if len(s.Manifests()) != 0 {
		t.Fatal("the epoch is listed")
	}
	d.fail = nil
	if err := s.Settle(); err != nil {
		t.Fatal(err)
	}
	a.led.gone(1)
	afterPowerCut(t, d, a.led, "settled")
	if err := a.commit(2, 0, "a"); err != nil {
		t.Fatal(err)
	}
}

// The same life on a real file system, its directory copied at every hook point: every copy opens, checks and goes on.
func TestI4_CrashAtEveryPoint(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	a := &actor{led: newLedger()}
	type copied struct {
		dir, point string
		led        *ledger
	}
	var copies []copied
	seen := map[string]int{}
	hook := func(point string) {
		seen[point]++
		to := filepath.Join(t.TempDir(), "copy")
		if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		copies = append(copies, copied{to, point, a.led.clone()})
	}
	s, err := Open(dir, Options{Hook: hook, Log: quiet})
	if err != nil {
		t.Fatal(err)
	}
	a.s = s
	if err := a.life(); err != nil {
		t.Fatal(err)
	}
	for _, c := range copies {
		s, err := Open(c.dir, Options{Log: quiet})
		if err == nil {
			err = c.led.check(s)
		}
		if err == nil {
			err = goesOn(s, c.led)
		}
		if err != nil {
			t.Errorf("crash at %q: %v", c.point, err)
		}
	}
	for _, p := range Points() {
		if seen[p] == 0 && p != PointManifestFailed {
			t.Errorf("never at %q", p)
		}
	}
}
