package shipper

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// translatedRig is a VM with one translated disk, replicated as it is.
func translatedRig(t *testing.T, name string, size, most int64) (*rig, *hypervisor, *rand.Rand) {
	t.Helper()
	h, m := newHypervisor(t, name, size, most)
	r := newRig(t, m)
	r.quiesce()
	return r, h, rand.New(rand.NewPCG(5, 5))
}

// begun does an operation to its end.
func (h *hypervisor) begun(r *rig, rng *rand.Rand, change func()) {
	change()
	h.begin(r, rng)
	h.do(r, -1)
}

func (r *rig) capture() *spool.Manifest {
	r.t.Helper()
	r.must(r.vm.captureStep(context.Background()))
	ms := r.spool.Manifests()
	if len(ms) == 0 {
		r.t.Fatal("nothing was captured")
	}
	return ms[len(ms)-1]
}

// blockFiles are the names of the block tables in the state directory.
func (r *rig) blockFiles() []string {
	r.t.Helper()
	names, err := filepath.Glob(filepath.Join(r.dir, "*.blocks-*"))
	r.must(err)
	return names
}

func (r *rig) checkFiles() []*Finding {
	disks := map[string]string{}
	for name, d := range r.disks {
		disks[d.ID()] = name
	}
	return Files{Name: "vm", ID: r.log.ID(), Docs: testDocuments{r.j}, Spool: filepath.Join(r.dir, "spool"), TableDir: r.dir,
		Disks: disks, Reserved: r.log.LastEpoch()}.Check()
}

// A table that cannot be read at the seal leaves the epoch open and the disk as it was; what only the table tells of is found
// by the next epoch that can read it.
func TestI4_TableThatIsTornAtTheSealIsLookedAtAgain(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "c.vhd", 600*kib, 900*kib)
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{1}, 64*kib)); h.put(64*kib, bytes.Repeat([]byte{2}, 64*kib)) })
		r.quiesce()
		before := r.vm.disks()[0].state.get().Blocks
		h.begun(r, rng, func() { h.swap(0, 1) })
		header := r.images["c.vhd"].content()[512:1024]
		r.write("c.vhd", 512, bytes.Repeat([]byte{0xee}, 512)...)
		m := r.capture()
		if m.Closed || !strings.Contains(m.OpenReason, "c.vhd") || m.Disks[0].Segment != nil || m.Disks[0].Blocks != before || m.Disks[0].VirtualSize != 600*kib {
			t.Errorf("the table cannot be read, and: %+v", m)
		}
		if s := r.vm.Status().Disks[0]; s.Err == nil {
			t.Error("the status does not say so")
		}
		r.write("c.vhd", 512, header...)
		r.finish()
		if r.vm.disks()[0].state.get().Blocks == before {
			t.Error("the table of the new epoch is not the previous one")
		}
	})
}

// A fixed VHD that becomes a dynamic one in place is not taken for what it was, even if the sizes fit.
func TestFixedVHDThatBecomesDynamicIsNotCaptured(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("b.vhd", mib))
		r.quiesce()
		footer := bytes.Clone(r.images["b.vhd"].content()[mib:])
		footer[63] = byte(image.TypeDynamic)
		binary.BigEndian.PutUint64(footer[16:], 512) // where its header would be
		binary.BigEndian.PutUint32(footer[64:], 0)
		var sum uint32
		for _, b := range footer {
			sum += uint32(b)
		}
		binary.BigEndian.PutUint32(footer[64:], ^sum)
		if f, err := image.ParseFooter(footer); err != nil || f.Type != image.TypeDynamic {
			t.Fatalf("%+v, %v", f, err)
		}
		r.write("b.vhd", mib, footer...)
		if m := r.capture(); m.Closed || m.Disks[0].Segment != nil {
			t.Errorf("%+v", m)
		}
	})
}

// A state directory that lost a block table compares the whole disk, once, and sends what differs.
func TestI11_LostBlockTableIsAComparison(t *testing.T) {
	for _, damage := range []func(name string) error{
		os.Remove,
		func(name string) error {
			b, err := os.ReadFile(name)
			if err == nil {
				b[len(b)/2] ^= 1
				err = os.WriteFile(name, b, 0o600)
			}
			return err
		},
	} {
		bubble(t, func(t *testing.T) {
			r, h, rng := translatedRig(t, "c.vhd", 600*kib, 900*kib)
			h.begun(r, rng, func() {
				for b := range int64(9) {
					h.put(b*64*kib, bytes.Repeat([]byte{byte(b + 1)}, 64*kib))
				}
			})
			r.quiesce()
			if files := r.blockFiles(); len(files) != 1 {
				t.Fatalf("%v", files)
			}
			if found := r.checkFiles(); len(found) != 0 {
				t.Errorf("before anything is damaged: %v", found)
			}
			r.must(damage(r.blockFiles()[0]))
			if found := r.checkFiles(); len(found) != 1 || !strings.Contains(found[0].Error(), "block table") {
				t.Errorf("the check says %v", found)
			}
			h.begun(r, rng, func() { h.swap(2, 5) })
			r.closed = true
			r.crash()
			if found := r.vm.Check(); len(found) != 1 || !strings.Contains(found[0].Error(), "block table") {
				t.Errorf("the check of the pipeline says %v", found)
			}
			if _, _, ok := r.vm.Table(r.disks["c.vhd"].ID()); ok {
				t.Error("there is a layout without a table")
			}
			if err := r.vm.Forget(r.disks["c.vhd"].ID(), []FileRange{{Start: 3, End: 4}}); err == nil {
				t.Error("it was forgotten, and nobody knows what")
			}
			r.must(r.cycle())
			if n := r.vm.Status().LastCycle.ChangedBytes; n != 2*64*kib {
				t.Errorf("%d bytes sent for two blocks that changed", n)
			}
			r.finish()
			if files := r.blockFiles(); len(files) != 1 {
				t.Errorf("left over: %v", files)
			}
		})
	}
}

// An evicted region's blocks are unknown where the entries lie, and metadata has no entries.
func TestI4_EvictedBlocksAreForgottenThroughTheTable(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "c.vhd", 600*kib, 900*kib)
		h.begun(r, rng, func() { h.put(128*kib, bytes.Repeat([]byte{1}, 64*kib)); h.put(0, bytes.Repeat([]byte{2}, 64*kib)) })
		r.quiesce()
		d := r.vm.disks()[0]
		forget := func(off, n int64) {
			r.must(r.vm.Forget(d.src.ID(), []FileRange{extent.Cover[extent.FileBlock](off, n)}))
		}
		at := h.image.at(2) + 512 + 8*kib // of the third block's data
		forget(at/4096*4096, 4096)
		for b := range d.table().Unknown().Ranges(DiskRange{End: d.table().Blocks()}, 0) {
			if b.Start < 32+1 || b.End > 32+4 {
				t.Errorf("unknown is %v", b)
			}
		}
		if n := d.table().UnknownCount(); n < 1 || n > 2 {
			t.Errorf("%d entries are unknown of one block of the file", n)
		}
		r.finish()
	})
	bubble(t, func(t *testing.T) { // before its table is read nobody knows what a block of the file holds
		_, m := newHypervisor(t, "d.vhdx", 3*mib, 3*mib)
		r := newRig(t, m)
		if err := r.vm.Forget(r.disks["d.vhdx"].ID(), []FileRange{{Start: 1, End: 2}}); err == nil {
			t.Error("it was forgotten as if the file were the disk")
		}
	})
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "d.vhdx", 3*mib, 3*mib)
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{1}, 64*kib)) })
		r.quiesce()
		d := r.vm.disks()[0]
		r.must(r.vm.Forget(d.src.ID(), []FileRange{extent.Cover[extent.FileBlock](0, 4*mib)}))
		if n := d.table().UnknownCount(); n != 0 {
			t.Errorf("%d entries are unknown of headers, log and table", n)
		}
		r.must(r.vm.Forget(d.src.ID(), []FileRange{extent.Cover[extent.FileBlock](100*mib, mib)})) // a block that is not in the table yet
	})
}

// A region that leaves the activity log with a change takes nothing along: after a crash nobody looks at it, and its entries
// are unknown.
func TestI4_EvictedChangeIsCapturedAfterACrash(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "d.vhdx", 20*mib, 20*mib)
		h.begun(r, rng, func() {
			for b := range int64(20) {
				h.put(b*mib, bytes.Repeat([]byte{byte(b + 1)}, 4096))
			}
		})
		r.quiesce()
		r.active = 2
		r.closed = true
		r.crash()
		r.quiesce()
		for range 4 { // what is at rest leaves the activity log by itself
			r.must(r.vm.captureStep(context.Background()))
		}
		for round := byte(0); r.j.Stats().Evictions < 4; round++ {
			if round == 100 {
				t.Fatal("nothing is evicted")
			}
			h.begun(r, rng, func() { h.put(rng.Int64N(20)*mib, bytes.Repeat([]byte{100 + round}, 8192)) })
		}
		unknown := r.vm.disks()[0].table().UnknownCount()
		r.crash()
		if n := r.vm.disks()[0].table().UnknownCount(); n == 0 || n != unknown {
			t.Errorf("%d entries are unknown, %d were before the crash", n, unknown)
		}
		r.finish()
	})
}

// A capture that does not fit is cut between blocks of the disk that share a block of the file.
func TestI4_CutThroughABlockOfTheFile(t *testing.T) {
	for _, table := range []bool{false, true} {
		bubble(t, func(t *testing.T) {
			r, h, rng := translatedRig(t, "c.vhd", 3*mib, 4*mib)
			all := func(value byte) {
				h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{value}, 3*mib)) })
			}
			all(1)
			r.quiesce()
			if table { // only the table tells of it
				all(2)
				r.quiesce()
				h.begun(r, rng, func() {
					for b := int64(0); b < 48; b += 2 {
						h.put(b*64*kib, bytes.Repeat([]byte{byte(b)}, 64*kib))
					}
				})
				r.quiesce()
				h.begun(r, rng, func() {
					for b := int64(0); b < 48; b += 2 {
						h.swap(b, b+1)
					}
				})
			} else {
				all(3)
			}
			r.quota = 2 * mib
			if m := r.capture(); m.Closed || !strings.Contains(m.OpenReason, "fit") || m.Disks[0].Segment.ChangedBytes > mib {
				t.Errorf("%+v", m)
			}
			r.quota = 64 * mib
			r.finish()
		})
	}
}

// One block that is left out may share every block of the file with what is kept.
func TestI4_CutAroundOneBlock(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "c.vhd", 3*mib, 4*mib)
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{1}, 3*mib)) })
		r.quiesce()
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{2}, 256*4096)) })
		r.vm.disks()[0].cutFromDisk = 10
		r.quota = 2 * mib
		if m := r.capture(); m.Closed {
			t.Errorf("%+v", m)
		}
		r.quota = 64 * mib
		r.finish()
	})
}

// What was never allocated is neither read nor put, and is zeros at the target.
func TestUnallocatedBlocksAreNotSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		h, m := newHypervisor(t, "d.vhdx", 256*mib, 256*mib)
		h.put(100*mib, bytes.Repeat([]byte{7}, 512*kib))
		m.mu.data = h.image.file()
		r := newRig(t, m)
		r.must(r.run(r.connect))
		if err := r.vm.enroll(context.Background(), r.vm.disks()[0], mustProbe(t, m)); err != nil {
			t.Fatal(err)
		}
		d := r.vm.disks()[0]
		rep, err := r.vm.openReplica(context.Background(), d)
		r.must(err)
		r.must(r.vm.prepareReplica(context.Background(), d, rep, mustProbe(t, m)))
		if n := d.table().UnknownCount() * extent.BlockSize; n > mib {
			t.Errorf("%d bytes of 512 KiB of data are to be sent", n)
		}
		r.finish()
	})
}

// What was trimmed is only in the table: a capture that is cut takes it along, or nobody would tell of it again.
func TestI4_TrimBeyondAPrefixIsNotForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "d.vhdx", 4*mib, 4*mib)
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{1}, 4*mib)) })
		r.quiesce()
		h.begun(r, rng, func() {
			h.put(mib, bytes.Repeat([]byte{2}, 2*mib))
			h.drop(0)
			h.drop(3)
		})
		r.quota = 2 * mib
		if m := r.capture(); m.Closed || !strings.Contains(m.OpenReason, "fit") {
			t.Errorf("it was not cut: %+v", m)
		}
		r.quota = 64 * mib
		r.finish()
	})
}
