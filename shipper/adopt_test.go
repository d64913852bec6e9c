package shipper

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// carriedBlocks counts the blocks with payload in all segments of a generation.
func (r *rig) carriedBlocks(generation uint64) (n int64) {
	r.t.Helper()
	_, records, err := catalog.Load(context.Background(), r.target, "vm")
	r.must(err)
	for _, rec := range records {
		for _, ref := range rec.Segments {
			if ref.Generation != generation {
				continue
			}
			s, err := segment.Open(blobReader{ctx: context.Background(), vm: r.vm, name: ref.Blob}, ref.Size)
			r.must(err)
			for e := range s.All() {
				if !e.Zero {
					n += e.Range.Len()
				}
			}
		}
	}
	return n
}

// Lost state on the same host, and another host that is told to: what the target
// has is not sent again.
func TestAdoptedVMSendsOnlyWhatDiffers(t *testing.T) {
	for _, machine := range []string{"machine", "another machine"} {
		bubble(t, func(t *testing.T) {
			r := replicated(t)
			r.fill("b.vhd", 0, 3*extent.BlockSize, 3) // never shipped by this one
			o := r.other(machine)
			if machine != "machine" {
				if err := o.run(o.vm.connectStep); !errors.Is(err, ErrForeign) {
					t.Fatalf("%v", err)
				}
				o.must(o.vm.Adopt())
			}
			o.fill("a.raw", 100*extent.BlockSize, 2*extent.BlockSize, 9)
			o.finish()
			if n := o.carriedBlocks(2); n != 5 {
				t.Errorf("%d blocks sent, 5 differ", n)
			}
			if st := o.vm.state.get(); st.Adopt || st.Generation != 2 {
				t.Errorf("%+v", st)
			}
			if err := r.run(r.vm.connectStep); !errors.Is(err, ErrFenced) {
				t.Errorf("the old writer: %v", err)
			}
			// And back again: a lost writer that is told to takes it over, too.
			r.must(r.vm.Adopt())
			r.connected = false
			r.finish()
			if doc := r.doc(); doc.Generation != 3 || doc.VMID != r.log.ID() {
				t.Errorf("%+v", doc)
			}
		})
	}
}

// A table that is lost is found out again; the history goes on without a new generation.
func TestLostTableIsFoundOut(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		r.fill("a.raw", 300*kib, 2*extent.BlockSize, 5)
		r.must(r.run(r.vm.captureStep, r.vm.shipStep)) // recorded and not in the replica: carried
		path := r.vm.tablePath(r.vm.diskByID(r.disks["a.raw"].ID()))
		before := r.carriedBlocks(1)
		_ = r.vm.Close()
		r.must(os.Truncate(path, 100))
		r.store = r.store.Crash()
		r.open()
		r.fill("a.raw", mib, extent.BlockSize, 6)
		r.finish()
		if n := r.carriedBlocks(1) - before; n > 3 {
			t.Errorf("%d blocks sent, one was changed and two were carried", n)
		}
		if doc := r.doc(); doc.Generation != 1 {
			t.Errorf("generation %d", doc.Generation)
		}
	})
}

// seed puts a replica there as another tool does: a fixed VHD that is nearly right.
func (r *rig) seed(name string, size int64, change ...int64) {
	r.t.Helper()
	ctx, blob := context.Background(), catalog.ReplicaName("vm", name)
	r.must(r.target.CreatePages(ctx, blob, image.ReplicaSize(size), 0))
	data := padded(r.images[name].bytes())[:size]
	for _, b := range change {
		data[b*extent.BlockSize] ^= 1
	}
	footer := image.FixedFooter(image.PaddedSize(size), [16]byte{9}, r.clock.Now())
	r.must(r.target.PutPages(ctx, blob, 0, data, checksum.Of(data), target.Unguarded))
	r.must(r.target.PutPages(ctx, blob, image.PaddedSize(size), footer[:], checksum.Of(footer[:]), target.Unguarded))
}

func TestSeededReplicaIsNotClearedButAdopted(t *testing.T) {
	for name, size := range map[string]int64{"same size": 2 * mib, "smaller": mib, "larger": 3 * mib} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				m := newImage("a.raw", 2*mib)
				r := newRig(t, m)
				r.fill("a.raw", 0, 2*mib, 7)
				seedSize := min(size, 2*mib)
				r.seed("a.raw", seedSize, 10, 100)
				if size > 2*mib {
					r.must(r.target.Resize(context.Background(), catalog.ReplicaName("vm", "a.raw"), image.ReplicaSize(size), target.Unguarded))
				}
				err := r.run(r.connect, r.vm.initialStep)
				if _, code, _, _ := retry.Describe(err); code != "replica-exists" {
					t.Fatalf("%v", err)
				}
				page := make([]byte, 512)
				r.must(r.target.ReadPages(context.Background(), catalog.ReplicaName("vm", "a.raw"), "", 4096, page))
				if page[0] != 7 {
					t.Fatal("the seed was cleared")
				}
				r.must(r.vm.Adopt())
				r.finish()
				want := int64(2)
				if size < 2*mib {
					want += mib / extent.BlockSize
				}
				if n := r.carriedBlocks(1); n != want {
					t.Errorf("%d blocks sent, %d differ", n, want)
				}
			})
		})
	}
}

// Our own first attempt is told from a seed by its sequence number.
func TestReplicaOfALostAnswerIsOurs(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", mib))
		r.fill("a.raw", 0, 50*kib, 7)
		r.must(r.run(r.connect))
		d := r.vm.diskByID(r.disks["a.raw"].ID())
		info, err := d.probe()
		r.must(err)
		r.must(r.vm.enroll(context.Background(), d, info))
		r.must(d.state.update(func(s *diskRecord) { s.Created = false })) // as if the process had died at the answer
		r.crash()
		r.finish()
	})
}

// Every request of an adoption may fail, and every gap may be the end of the process.
func TestAdoptionIsRepeatable(t *testing.T) {
	for k := 1; ; k += 3 {
		struck := false
		bubble(t, func(t *testing.T) {
			r := replicated(t)
			o := r.other("another machine")
			o.must(o.vm.Adopt())
			before := r.target.Injected()
			r.target.FailAt(k, fake.Fault{Kind: fake.NotApplied})
			if o.run(o.connect, o.match) != nil {
				o.crash()
			}
			struck = r.target.Injected() > before
			o.finish()
			if n := o.carriedBlocks(2); n != 0 {
				t.Errorf("operation %d: %d blocks sent, none differ", k, n)
			}
		})
		if !struck || t.Failed() {
			break
		}
	}
}
