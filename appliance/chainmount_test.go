package appliance

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// flush writes what differs in the file at the mount, sector by sector.
func (r *rig) flush(name string, l imagetest.Layer) {
	r.t.Helper()
	path := filepath.Join(r.mount, "web", name)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	r.must(err)
	defer f.Close()
	was, err := os.ReadFile(filepath.Join(r.source, "web", name))
	r.must(err)
	now := l.Bytes()
	for at := 0; at < len(now); at += 512 {
		if end := min(at+512, len(now)); at >= len(was) && (!bytes.Equal(now[at:end], make([]byte, end-at)) || end == len(now)) ||
			at < len(was) && !bytes.Equal(was[at:min(end, len(was))], now[at:end]) {
			_, err := f.WriteAt(now[at:end], int64(at))
			r.must(err)
		}
	}
}

// merge puts what up's disk has and down's has not into down.
func merge(up, down imagetest.Layer) {
	for at := 0; at < len(up.Disk()); at += 512 {
		if p := up.Disk()[at : at+512]; !bytes.Equal(p, down.Disk()[at:at+512]) {
			down.Put(int64(at), p)
		}
	}
}

// A chain of three, written to at the mount, snapshot and merged as XCP-ng does, and the appliance started anew: every point
// is what the guest had, of one disk with one replica.
func TestI2_ChainAtTheMount(t *testing.T) {
	for ext, base := range map[string]imagetest.Layer{
		"vhd":  imagetest.NewVHDLayer(4*mib, 64<<10, 1, nil, "").Layer(),
		"vhdx": imagetest.NewVHDXLayer(4*mib, 512, 1, nil, "").Layer(),
	} {
		t.Run(ext, func(t *testing.T) {
			r := newRig(t)
			disk := "disk." + ext
			fill := func(l imagetest.Layer, off int64, n int) { l.Put(off, r.content(n)) }
			fill(base, 0, 2*mib)
			middle := base.Over(2, "base."+ext)
			fill(middle, mib, 200<<10)
			leaf := middle.Over(3, "middle."+ext)
			fill(leaf, 3*mib, 100<<10)
			for name, l := range map[string]imagetest.Layer{"base." + ext: base, "middle." + ext: middle, disk: leaf} {
				r.put("web/"+name, l.Bytes())
			}
			r.start()
			r.await("web", "a first point", func(v control.VM) bool { return v.LastPoint != nil })
			holds := func(what string) {
				t.Helper()
				t.Log(what)
				r.equals("web", r.sync("web"), map[string][]byte{disk: leaf.Disk()})
				if v := r.vm("web"); len(v.Disks) != 1 || v.Disks[0].Name != disk || v.Health != control.HealthNormal {
					t.Errorf("%s: %+v", what, v)
				}
			}
			fill(leaf, mib+4096, 64<<10)
			r.flush(disk, leaf)
			holds("written")

			r.rename("web/"+disk, "web/snapshot."+ext)
			snapshot := leaf
			leaf = snapshot.Over(4, "snapshot."+ext)
			r.flush(disk, leaf)
			fill(leaf, 8192, 32<<10)
			r.flush(disk, leaf)
			holds("snapshot")

			merge(snapshot, middle)
			r.flush("middle."+ext, middle)
			leaf.Link(middle, "middle."+ext)
			r.flush(disk, leaf)
			r.must(os.Remove(filepath.Join(r.mount, "web/snapshot."+ext)))
			fill(leaf, 2*mib, 4096)
			r.flush(disk, leaf)
			holds("merged")

			r.stop()
			r.start()
			fill(leaf, 0, 4096)
			r.flush(disk, leaf)
			holds("started again")

			merge(leaf, middle)
			r.flush("middle."+ext, middle)
			r.rename("web/middle."+ext, "web/"+disk)
			leaf = middle
			fill(leaf, mib, 4096)
			r.flush(disk, leaf)
			holds("the leaf merged, and its parent renamed over it")
			blobs, err := filepath.Glob(filepath.Join(r.store, "*/*/replica.vhd"))
			r.must(err)
			if len(blobs) != 1 {
				t.Errorf("%d replicas: %v", len(blobs), blobs)
			}
		})
	}
}
