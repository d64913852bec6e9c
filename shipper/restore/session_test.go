package restore_test

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

func TestHoldPinsWhatItReads(t *testing.T) {
	w, f, d, ids := chain(t)
	now := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	s, err := restore.Hold(t.Context(), f, w.VM, ids[2].String(), []string{"os.vhd"}, restore.HoldOptions{Reader: "export on h",
		Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	pins, err := catalog.Pins(t.Context(), f, w.VM)
	if err != nil || len(pins) != 1 {
		t.Fatal(pins, err)
	}
	p := pins[0]
	if p.Point != ids[2] || p.Reader != "export on h" || !p.Until.Equal(now.Add(restore.DefaultPinTTL)) {
		t.Errorf("pin %+v", p)
	}
	if len(p.Needs) != 1 || p.Needs[0].DiskID != d.ID || p.Needs[0].Snapshot == "" || len(p.Needs[0].Segments) != 3 {
		t.Errorf("needs %+v", p.Needs)
	}
	if s.Record().ID() != ids[2] || len(s.Plans()) != 1 || s.Context().Err() != nil {
		t.Errorf("session of %s, %d plans", s.Record().ID(), len(s.Plans()))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s.Context().Err() == nil {
		t.Error("a closed session still reads")
	}
	if pins, err := catalog.Pins(t.Context(), f, w.VM); err != nil || len(pins) != 0 {
		t.Errorf("pins after: %v, %v", pins, err)
	}
}

func TestUnpinnedWritesNothing(t *testing.T) {
	w, f, _, _ := chain(t)
	f.SetHook(func(op fake.Op) fake.Fault {
		if op.Write {
			t.Errorf("%s %s", op.Method, op.Name)
		}
		return fake.Fault{}
	})
	s, err := restore.Hold(t.Context(), f, w.VM, "latest", nil, restore.HoldOptions{Unpinned: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Verify(nil), s.Close()); err != nil {
		t.Error(err)
	}
}

// Between the first look and the pin anything can happen; the second look sees it.
func TestI5_HoldLooksAgainAfterThePin(t *testing.T) {
	between := map[string]func(w world, id catalog.PointID) error{
		"pruned": func(w world, id catalog.PointID) error {
			return w.f.Delete(w.t.Context(), catalog.RecordName(w.VM, id))
		},
		"cut off": func(w world, id catalog.PointID) error {
			_, err := catalog.UpdateVM(w.t.Context(), w.f, w.VM, func(d *catalog.VMDoc) error {
				d.Cuts = append(d.Cuts, catalog.Cut{Generation: d.Generation, Epoch: id.Epoch - 1})
				d.Generation++
				return nil
			})
			return err
		},
	}
	for what, change := range between {
		t.Run(what, func(t *testing.T) {
			cw, f, _, ids := chain(t)
			w := world{t, f, cw.VM}
			f.SetHook(func(op fake.Op) fake.Fault {
				if op.Method == "Create" {
					f.SetHook(nil)
					if err := change(w, ids[3]); err != nil {
						t.Error(err)
					}
				}
				return fake.Fault{}
			})
			if _, err := restore.Hold(t.Context(), f, w.VM, ids[3].String(), nil, restore.HoldOptions{}); !errors.Is(err, catalog.ErrNoPoint) {
				t.Errorf("hold: %v", err)
			}
			if pins, err := catalog.Pins(t.Context(), f, w.VM); err != nil || len(pins) != 0 {
				t.Errorf("pins left: %v, %v", pins, err)
			}
		})
	}
}

type world struct {
	t  *testing.T
	f  *fake.Fake
	VM string
}

func TestPinIsRefreshed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, _ := chain(t)
		s, err := restore.Hold(t.Context(), f, w.VM, "latest", nil, restore.HoldOptions{})
		if err != nil {
			t.Fatal(err)
		}
		f.FailAt(1, fake.Fault{Kind: fake.Refuse}) // one failure is survived
		<-time.After(3 * time.Hour)
		synctest.Wait()
		pins, err := catalog.Pins(t.Context(), f, w.VM)
		if err != nil || len(pins) != 1 || pins[0].Expired(time.Now()) {
			t.Errorf("after three hours: %v, %v", pins, err)
		}
		if err := errors.Join(s.Verify(nil), s.Close()); err != nil {
			t.Error(err)
		}
	})
}

func TestLostPinEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, _ := chain(t)
		s, err := restore.Hold(t.Context(), f, w.VM, "latest", nil, restore.HoldOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pins, _ := catalog.Pins(t.Context(), f, w.VM)
		if err := catalog.DeletePin(t.Context(), f, w.VM, pins[0].ID); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		<-s.Context().Done()
		if d := time.Since(start); d > restore.DefaultPinTTL/2 {
			t.Errorf("noticed after %s", d)
		}
		if err := s.Verify(nil); !errors.Is(err, restore.ErrPinLost) {
			t.Errorf("verify: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestPinThatCannotBeRefreshedEndsTheSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, f, _, _ := chain(t)
		s, err := restore.Hold(t.Context(), f, w.VM, "latest", nil, restore.HoldOptions{})
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		f.SetHook(func(op fake.Op) fake.Fault {
			if op.Method == "Replace" {
				return fake.Fault{Kind: fake.Throttle}
			}
			return fake.Fault{}
		})
		<-s.Context().Done()
		if d := time.Since(start); d < restore.DefaultPinTTL || d > 2*restore.DefaultPinTTL {
			t.Errorf("ended after %s", d)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestHoldNamesWhatIsNotThere(t *testing.T) {
	w, f, _, _ := chain(t)
	for _, c := range []struct {
		vm, spec, disk string
		want           error
	}{
		{"vm", "latest", "nope.vhd", restore.ErrNoDisk},
		{"vm", "7-7", "", catalog.ErrNoPoint},
		{"other", "latest", "", catalog.ErrNoVM},
	} {
		var disks []string
		if c.disk != "" {
			disks = []string{c.disk}
		}
		if _, err := restore.Hold(t.Context(), f, c.vm, c.spec, disks, restore.HoldOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	_ = w
}

func TestVerifySaysWhichDisk(t *testing.T) {
	w := twoDisks(t)
	f := w.T.(*fake.Fake)
	w.Apply()
	d := w.Disks[1]
	snapshots, _ := catalog.Snapshots(t.Context(), f, w.VM, d.ID)
	f.Rot(catalog.ReplicaName(w.VM, d.ID), snapshots[1].ID, 0)
	s, err := restore.Hold(t.Context(), f, w.VM, "latest", nil, restore.HoldOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var total int64
	err = s.Verify(func(_, n int64) { total = n })
	var differs *restore.DiffersError
	if !errors.As(err, &differs) || differs.Disk != d.Name || differs.ErrorCode() == "" || differs.ErrorAction() == "" {
		t.Errorf("verify: %v", err)
	}
	if total != (8+9+10)*extent.BlockSize {
		t.Errorf("progress of %d bytes", total)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func TestReplacedPlanReadsTheSamePoint(t *testing.T) {
	w, _, d, ids := chain(t)
	before := open(t, w, ids[3], d.ID)
	w.Apply()
	after := open(t, w, ids[3], d.ID)
	if len(before.Plan().Segments) != 4 || len(after.Plan().Segments) != 0 {
		t.Errorf("%d segments before the apply, %d after", len(before.Plan().Segments), len(after.Plan().Segments))
	}
	a, b := make([]byte, len(d.Data)), make([]byte, len(d.Data))
	if _, err := before.ReadAt(a, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := after.ReadAt(b, 0); err != nil || !bytes.Equal(a, b) {
		t.Fatal("they differ", err)
	}
}

func ExampleDiffersError() {
	fmt.Println(&restore.DiffersError{VM: "web01", Disk: "os.vhd", Point: catalog.PointID{Generation: 1, Epoch: 12}, Want: 1, Got: 2})
	// Output: web01/os.vhd at 1-12: content differs from its record: CRC-64 0000000000000002, recorded 0000000000000001
}
