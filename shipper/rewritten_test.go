package shipper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync"
)

// sealedBytes is a disk at its seal.
type sealedBytes struct {
	EpochDisk
	content []byte
}

func (s sealedBytes) FileSize() int64 { return int64(len(s.content)) }

func (s sealedBytes) PeekBlocks(r FileRange, p []byte) error {
	clear(p)
	copy(p, s.content[r.Offset():])
	return nil
}

// A dynamic VHD may be exactly as long as a fixed one of its disk's size would be: one block less, and tables of that size.
func TestI3_DynamicImageIsNotReadAsFixed(t *testing.T) {
	const size = 4 * mib
	content := make([]byte, size+image.FooterSize)
	copy(content[size:], imagetest.NewVHD(size, mib, 1, nil, "").Footer)
	if info, err := sealedFooter(image.Info{Format: image.VHDFixed}, sealedBytes{content: content}); !errors.Is(err, ErrBadDisk) {
		t.Errorf("read as %+v, error %v", info, err)
	}
	fixed := image.FixedFooter(size, [16]byte{1}, imagetest.Created)
	copy(content[size:], fixed[:])
	if info, err := sealedFooter(image.Info{Format: image.VHDFixed}, sealedBytes{content: content}); err != nil || info.VirtualSize != size {
		t.Errorf("a fixed one is read as %+v, error %v", info, err)
	}
}

// An image that is written over in place during its initial replication, with one that has a block table, is read anew.
func TestImageWrittenOverDuringInitialReplication(t *testing.T) {
	const size = 4 * mib
	m := newImage("a.vhd", size)
	r := newRig(t, m)
	r.fill("a.vhd", mib, 64*kib, 7)
	r.hook = func(point string) {
		if point == PointAfterBaseSnapshot {
			panic(crashed{})
		}
	}
	if err := r.cycle(); !errors.Is(err, errCrashed) {
		t.Fatalf("the initial replication went on: %v", err)
	}
	r.hook, m.translated = nil, true
	r.crash()
	over := imagetest.NewVHD(size, mib, 2, nil, "")
	over.Write(2*mib, bytes.Repeat([]byte{9}, 4096))
	r.truncate("a.vhd", 0)
	r.do("a.vhd", extent.Change{Kind: extent.Write, Len: int64(len(over.File()))}, over.File())
	r.quiesce()
	if points := r.finish(); len(points) == 0 {
		t.Errorf("no point: %s", r.vm.Status().OpenReason)
	}
}

// overwrite writes an image over another, in place; untracked as if nothing had served the file.
func (r *rig) overwrite(name string, file []byte, tracked bool) {
	r.t.Helper()
	m := r.images[name]
	if !tracked {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.data = bytes.Clone(file)
		return
	}
	r.truncate(name, 0)
	for off := 0; off < len(file); off += mib {
		r.write(name, int64(off), file[off:min(off+mib, len(file))]...)
	}
}

// A complete fixed VHD that becomes a dynamic one in place is read through its block table from then on, whatever its size is
// now, and the points go on.
func TestI4_CompleteImageIsWrittenOverWithADynamicOne(t *testing.T) {
	for _, size := range []int64{2 * mib, 4 * mib, 7 * mib} {
		for _, how := range []string{"served", "behind", "crash", "not served"} {
			t.Run(fmt.Sprint(size/mib, " MiB, ", how), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					m := newImage("a.vhd", 4*mib)
					r := newRig(t, m)
					r.fill("a.vhd", mib, 64*kib, 7)
					r.quiesce()
					over := imagetest.NewVHD(size, mib, 2, nil, "")
					over.Write(0, bytes.Repeat([]byte{8}, 4096))
					over.Write(size-64*kib, bytes.Repeat([]byte{9}, 64*kib))
					m.translated = true
					r.overwrite("a.vhd", over.File(), how == "served" || how == "crash")
					r.closed = how == "crash" || how == "not served"
					if how == "behind" { // nobody says so, and one block of it is written at the mount
						r.write("a.vhd", 0, over.File()[:512]...)
					}
					if !r.closed {
						if m := r.capture(); m.Closed || m.Disks[0].Segment != nil { // the seal finds it out
							t.Errorf("%+v", m)
						}
					}
					points := len(r.vm.liveRecords())
					r.finish()
					if n := len(r.vm.liveRecords()); n <= points {
						t.Errorf("%d points, there were %d", n, points)
					}
					if s := r.vm.Status().Disks[0]; s.Err != nil || s.Format != image.VHDDynamic || s.VirtualSize != size {
						t.Errorf("%+v", s)
					}
				})
			})
		}
	}
}

// A process may die at every step of it.
func TestI4_WrittenOverAndKilled(t *testing.T) {
	for k := 1; ; k++ {
		struck := false
		bubble(t, func(t *testing.T) {
			m := newImage("a.vhd", 4*mib)
			r := newRig(t, m)
			r.fill("a.vhd", 0, 4*mib, 7)
			r.quiesce()
			over := imagetest.NewVHD(5*mib, mib, 2, nil, "")
			over.Write(0, bytes.Repeat([]byte{7}, 2*mib)) // as before, elsewhere in the file
			m.translated = true
			r.overwrite("a.vhd", over.File(), true)
			r.capture()
			left := k
			r.hook = func(string) {
				if left--; left == 0 {
					struck = true
					panic(crashed{})
				}
			}
			for range 3 {
				if errors.Is(r.cycle(), errCrashed) {
					break
				}
			}
			r.finish()
		})
		if !struck || t.Failed() {
			return
		}
	}
}

// A table that is being found out was found out through the block table that is lost: what was freed since is the same in
// none and in the present one.
func TestI4_BlockTableLostWhileMatching(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r, h, rng := translatedRig(t, "c.vhd", 600*kib, 900*kib)
		h.begun(r, rng, func() { h.put(0, bytes.Repeat([]byte{1}, 600*kib)) })
		r.quiesce()
		o := r.other("machine")
		ctx := context.Background()
		o.must(o.run(o.connect, o.vm.initialStep))
		id := o.disks["c.vhd"].ID()
		w, err := o.vm.OpenView(ctx, id, "")
		o.must(err)
		table, layout, ok := o.vm.MatchTable(id)
		if !ok {
			t.Fatal("nothing to match")
		}
		_, err = resync.NewMatch(resync.MatchDeps{Source: o.vm.diskByID(id).src, Layout: layout, Table: table, Replica: w,
			Passed: func(b extent.DiskBlock) error { return o.vm.NoteMatched(id, b) }}, resync.Options{}).Run(ctx, 0)
		o.must(err)
		o.must(w.Close(ctx))
		if disk := layout.Disk(); table.Unknown().Any(disk) {
			t.Fatalf("of blocks %v some are unknown after the match", disk)
		}
		h.begun(o, rng, func() { h.drop(2) })
		for _, file := range o.blockFiles() {
			o.must(os.Remove(file))
		}
		o.closed = true
		o.finish()
	})
}
