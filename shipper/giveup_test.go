package shipper

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// stuck lets three epochs pile up in the spool.
func stuck(t *testing.T) *rig {
	r := replicated(t)
	for i := range 3 {
		r.fill("a.raw", int64(i)*100*kib, 90*kib, byte(40+i))
		r.must(r.run(r.vm.captureStep))
	}
	return r
}

func TestI4_GiveUpDropsTheSuffixAndCapturesItAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		// A middle epoch turns out bad: it and what follows goes, what is before stays.
		from := r.spool.Manifests()[len(r.spool.Manifests())-2].Epoch
		r.vm.requestGiveUp(from)
		r.quota = 1 // no new epoch: see what is left
		r.must(r.run(r.vm.captureStep))
		ms := r.spool.Manifests()
		if len(ms) == 0 || ms[len(ms)-1].Epoch >= from {
			t.Fatalf("left: %d epochs", len(ms))
		}
		if r.vm.Status().CatchUp == "" {
			t.Error("nobody is told")
		}
		r.quota = 64 * mib
		// What was given up reads zero by now: it must be cleared, not skipped.
		r.discard("a.raw", 100*kib, 200*kib)
		r.finish()
	})
}

// What given up epochs carried is unknown, of every one of them: nothing else would bring it to the target.
func TestI4_WhatIsGivenUpIsUnknown(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		ms := r.spool.Manifests()
		r.vm.requestGiveUp(ms[len(ms)-2].Epoch)
		r.quota = 1
		r.must(r.run(r.vm.captureStep))
		if n := r.vm.disks()[0].table().UnknownCount(); n < 2*90*kib/4096 {
			t.Errorf("%d entries are unknown", n)
		}
		r.quota = 64 * mib
		r.finish()
	})
}

// The quota shrinks under what is there while nothing can be shipped.
func TestI10_QuotaIsHeldThroughAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.target.SetHook(func(fake.Op) fake.Fault { return fake.Fault{Kind: fake.Refuse} })
		r.quota = 3 * mib
		data, rng := make([]byte, 400*kib), rand.New(rand.NewPCG(1, 1))
		for i := range 40 {
			for j := range data {
				data[j] = byte(rng.Uint32())
			}
			r.do("a.raw", extent.Change{Off: int64(i%4) * 300 * kib, Len: int64(len(data))}, data)
			if err := r.run(r.vm.captureStep); err != nil {
				t.Fatal(err)
			}
			if n := r.spool.Bytes(); n > r.quota {
				t.Fatalf("turn %d: %d bytes spooled", i, n)
			}
			if i == 20 {
				r.quota = mib
				r.must(r.run(r.vm.captureStep))
			}
		}
		if !r.vm.Status().OverQuota {
			t.Error("not over quota")
		}
		r.quota = 64 * mib
		r.finish()
	})
}

// A disk shrinks in an epoch that is given up, and grows again: the target still
// has what the shrink cut off.
func TestI4_GivenUpShrinkIsNotForgotten(t *testing.T) {
	for _, again := range []int64{2 * mib, 3 * mib, mib} {
		bubble(t, func(t *testing.T) {
			r := replicated(t)
			r.fill("a.raw", 3*mib/2, 100*kib, 77)
			r.must(r.cycle())
			r.truncate("a.raw", mib)
			r.must(r.run(r.vm.captureStep))
			r.vm.requestGiveUp(r.spool.Manifests()[0].Epoch)
			r.truncate("a.raw", again)
			r.finish()
		})
	}
}

// And a disk grows in one, without a byte written.
func TestI4_GivenUpGrowthIsNotForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.truncate("a.raw", 4*mib)
		r.must(r.run(r.vm.captureStep))
		r.vm.requestGiveUp(r.vm.newestSpooled())
		r.must(r.run(r.vm.captureStep))
		r.finish()
	})
}

// An epoch whose record may land late is never given up.
func TestI5_AttemptedRecordIsNotGivenUp(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "Create" {
				return fake.Fault{Kind: fake.Late}
			}
			return fake.Fault{}
		})
		if err := r.run(r.vm.shipStep); err == nil {
			t.Fatal("shipped")
		}
		r.vm.requestGiveUp(1)
		r.quota = 1
		r.must(r.run(r.vm.captureStep))
		if ms := r.spool.Manifests(); len(ms) == 0 || !ms[len(ms)-1].RecordAttempted {
			t.Errorf("%d epochs left", len(ms))
		}
		r.target.Land()
		r.quota = 64 * mib
		records := r.finish()
		if records[len(records)-1].Previous.IsZero() {
			t.Error("no chain")
		}
	})
}

// A give-up does not wait for a target that hangs, and is no trouble of the stage
// that it stopped.
func TestI10_GiveUpStopsAHangingUpload(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		hangs := make(chan struct{}, 100)
		r.target.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "PutPages" {
				hangs <- struct{}{}
				return fake.Fault{Kind: fake.Hang}
			}
			return fake.Fault{}
		})
		shipped := make(chan error)
		go func() { shipped <- r.vm.shipStep(context.Background()) }()
		<-hangs
		r.quota = 1
		r.must(r.run(r.vm.captureStep))
		r.target.SetHook(nil)
		if err := <-shipped; err != nil {
			t.Errorf("ship: %v", err)
		}
		r.quota = 64 * mib
		r.finish()
	})
}

// damage spoils the file of the segment of an epoch.
func (r *rig) damage(epoch uint64, how func(path string) error) {
	r.t.Helper()
	paths, err := filepath.Glob(filepath.Join(r.dir, "spool", catalogID(1, epoch), "*.seg"))
	r.must(err)
	if len(paths) == 0 {
		r.t.Fatalf("epoch %d has no segment", epoch)
	}
	r.must(how(paths[0]))
}

func TestI4_DamagedSegmentIsCapturedAgain(t *testing.T) {
	spoil := map[string]func(string) error{
		"missing":   os.Remove,
		"truncated": func(p string) error { return os.Truncate(p, 1024) },
		"rotten": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("rot"), 700)
			return errors.Join(err, f.Close())
		},
	}
	for name, how := range spoil {
		for _, restart := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					r := stuck(t)
					ms := r.spool.Manifests()
					r.damage(ms[len(ms)-2].Epoch, how)
					if restart {
						r.crash()
					}
					_ = r.run(r.connect, r.vm.shipStep)
					r.finish()
				})
			})
		}
	}
}

// The target holds the epoch already: the copy goes, no point does.
func TestI4_DamagedCopyOfAShippedEpochIsReleased(t *testing.T) {
	for _, restart := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			r := stuck(t)
			r.must(r.run(r.vm.shipStep))
			ms := r.spool.Manifests()
			r.damage(ms[len(ms)-1].Epoch, func(p string) error { return os.Truncate(p, 1024) })
			if restart {
				r.crash()
			}
			r.pointsOfClosed(r.finish())
		})
	}
}

// Nobody can read what the manifest said: only a new generation is safe.
func TestI5_UnreadableManifestOpensAGeneration(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := stuck(t)
		ms := r.spool.Manifests()
		r.must(os.WriteFile(filepath.Join(r.dir, "spool", catalogID(1, ms[len(ms)-2].Epoch), "manifest.json"), []byte("{}"), 0o600))
		r.crash()
		r.finish()
		if doc := r.doc(); doc.Generation != 2 {
			t.Errorf("generation %d", doc.Generation)
		}
	})
}

// A segment goes bad between its manifest and its table.
func TestI4_SegmentBadBeforeItsTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 90*kib, 9)
		r.hook = func(point string) {
			if point == PointAfterManifest {
				r.hook = nil
				ms := r.spool.Manifests()
				r.damage(ms[len(ms)-1].Epoch, os.Remove)
			}
		}
		r.must(r.run(r.vm.captureStep))
		r.finish()
	})
}

// An epoch at the target is not released before its tables are written.
func TestI4_NothingShipsBeforeItsTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 90*kib, 9)
		var during error
		r.hook = func(point string) {
			if point == PointAfterManifest {
				r.hook = nil
				r.quota = 1 // everything shipped would go
				during = r.vm.shipStep(context.Background())
				r.quota = 64 * mib
			}
		}
		r.must(r.run(r.vm.captureStep))
		r.must(during)
		r.pointsOfClosed(r.finish())
	})
}

// A capture that fails leaves no draft behind, and its blocks change hands once.
func TestI4_FailedCaptureIsMergedBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 0, 90*kib, 9)
		dir := filepath.Join(r.dir, "spool")
		r.hook = func(point string) {
			if point == spool.PointDirectoryMade {
				r.must(os.RemoveAll(filepath.Join(dir, catalogID(1, r.log.LastEpoch()))))
			}
		}
		for range 2 {
			if err := r.run(r.vm.captureStep); err == nil {
				t.Fatal("captured into nothing")
			}
		}
		r.hook = nil
		r.finish()
	})
}

func catalogID(generation, epoch uint64) string {
	return catalog.PointID{Generation: generation, Epoch: epoch}.String()
}
