package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// tracked is a VM with one disk of one region, without a pipeline.
func tracked(t *testing.T) (*journal.VM, *journal.Disk) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "os.img")
	must(os.WriteFile(path, bytes.Repeat([]byte("x"), extent.RegionSize), 0o600))
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(err)
	t.Cleanup(func() { f.Close() })
	file, err := journal.OSFile(f)
	must(err)
	j, err := journal.Open(&memory.Store{}, journal.Options{Saved: t.TempDir()})
	must(err)
	vm, err := j.VM("web")
	must(err)
	d, err := vm.AddDisk("os.img", file, journal.Identity{Ino: 1})
	must(err)
	return vm, d
}

// Whoever asks whether a disk is suspect, the status or the capture stage, begins no comparison: what is being read
// since before the suspicion grew must not come to count by it.
func TestI11_LookingDoesNotMakeAComparisonCount(t *testing.T) {
	_, d := tracked(t)
	whole := extent.Range[extent.FileBlock]{End: extent.BlocksPerRegion}
	if err := d.SetSuspect("first"); err != nil {
		t.Fatal(err)
	}
	d.Suspect() // a comparison begins, and reads all of it
	if err := d.SetSuspect("changed behind our back"); err != nil {
		t.Fatal(err)
	}
	src := source{disk: d, foreign: new(atomic.Bool)}
	if !src.Suspect() {
		t.Fatal("not suspect")
	}
	if err := d.Compared(whole); err != nil {
		t.Fatal(err)
	}
	if !src.Suspect() {
		t.Error("what was read before the change cleared it")
	}
}

// An epoch that was sealed while another process had a disk open for writing is no state of the VM, also if that
// process is gone when it is captured.
func TestForeignWriterAtTheSealLeavesTheEpochOpen(t *testing.T) {
	vm, d := tracked(t)
	for name, c := range map[string]struct {
		atSeal, later, between, open bool
	}{
		"all the time":   {true, true, false, true},
		"until the seal": {true, false, false, true},
		"since the seal": {false, true, false, true},
		"during capture": {false, false, true, true},
		"never":          {false, false, false, false},
	} {
		writing, doubts := c.atSeal, int64(7)
		e, err := volume{vm, func(string) bool { return writing }, func(string) int64 { return doubts }}.Seal(shipper.SealRequest{})
		if err != nil {
			t.Fatal(err)
		}
		writing = c.later
		if c.between {
			doubts += 2
		}
		sealed, found := e.Disk(d.ID())
		if !found || sealed.SuspectAtSeal() != c.open {
			t.Errorf("%s: found %v, suspect %v", name, found, sealed.SuspectAtSeal())
		}
		if err := e.MergeBack(); err != nil {
			t.Fatal(err)
		}
	}
}
