package shipper

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// grownRig is a VM whose only disk grew from 600 KiB to 6 MiB, all of which was written, while there is room for 1 MiB.
func grownRig(t *testing.T, name string) *rig {
	t.Helper()
	r, h, rng := translatedRig(t, name, 600*kib, 6*mib)
	h.begun(r, rng, func() {
		h.resize(6 * mib)
		for off := int64(0); off < 6*mib; off += 64 * kib {
			h.put(off, bytes.Repeat([]byte{byte(1 + off/(64*kib))}, 64*kib))
		}
	})
	r.quota = 2 * mib
	return r
}

// What a disk grew by is cut to the room like everything else, and comes with the epochs after.
func TestI10_CaptureOfAGrownDiskIsCut(t *testing.T) {
	for _, name := range []string{"c.vhd", "d.vhdx"} {
		for _, crash := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " crash ", crash), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					r := grownRig(t, name)
					if m := r.capture(); m.Closed || m.Disks[0].VirtualSize != 6*mib || m.Disks[0].Segment.ChangedBytes > mib {
						t.Errorf("closed %v, %d bytes of disk, %d captured of room for %d", m.Closed, m.Disks[0].VirtualSize, m.Disks[0].Segment.ChangedBytes, mib)
					}
					r.closed = crash
					r.quota = 64 * mib
					r.finish()
				})
			})
		}
	}
}

// Only the table tells of a block that went to where the disk grew: it has no entry that could be unknown, so it stays.
func TestI4_MovedIntoTheGrowthIsNotCut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "c.vhd", 3*mib, 6*mib)
		h.begun(r, rng, func() {
			for off := int64(0); off < 3*mib; off += 64 * kib {
				h.put(off, bytes.Repeat([]byte{byte(1 + off/(64*kib))}, 64*kib))
			}
		})
		r.quiesce()
		h.begun(r, rng, func() {
			h.resize(6 * mib)
			for b := range int64(48) { // unallocated and allocated change places
				h.swap(b, 48+b)
			}
		})
		r.quota = 2 * mib
		if m := r.capture(); m.Closed || m.Disks[0].Segment.ChangedBytes < 5*mib { // almost all of it changed, half to zeros
			t.Errorf("closed %v, %d captured", m.Closed, m.Disks[0].Segment.ChangedBytes)
		}
		r.quota = 64 * mib
		r.finish()
	})
}

// Until the epoch has given the growth its entries, only the change set and the activity log tell of what was left out.
func TestI4_GrowthThatWasLeftOutIsNotEvicted(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := grownRig(t, "c.vhd")
		d := r.vm.disks()[0]
		all := []FileRange{extent.Cover[extent.FileBlock](0, 7*mib)}
		var refused error
		r.hook = func(point string) {
			if point == PointBeforeManifest {
				refused = r.vm.Forget(d.src.ID(), all)
			}
		}
		r.capture()
		if refused == nil {
			t.Error("what has no entry was forgotten")
		}
		r.hook = nil
		r.quota = 0
		r.must(r.vm.captureStep(context.Background()))
		r.must(r.vm.Forget(d.src.ID(), all))
		if n := d.table().UnknownCount(); n < 6*mib/4096 {
			t.Errorf("%d entries are unknown of a disk that was forgotten", n)
		}
		r.quota = 64 * mib
		r.finish()
	})
}
