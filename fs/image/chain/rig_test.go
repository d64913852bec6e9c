package chain

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// rig is a store in a directory.
type rig struct {
	t    *testing.T
	path string
	dir  *Dir
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, path: t.TempDir()}
	var err error
	if r.dir, err = OpenDir(r.path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.must(r.dir.Close()) })
	return r
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// put writes a file in place, so that it stays the same file.
func (r *rig) put(name string, b []byte) {
	r.t.Helper()
	path := filepath.Join(r.path, name)
	r.must(os.MkdirAll(filepath.Dir(path), 0o700))
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	r.must(err)
	_, err = f.WriteAt(b, 0)
	r.must(err)
	r.must(f.Truncate(int64(len(b))))
	r.must(f.Close())
}

// vhd puts images of a chain; all are of the time that their children recorded.
func (r *rig) vhd(name string, l *imagetest.VHDLayer) { r.put(name, l.File()) }

func (r *rig) open(name string) *Chain {
	r.t.Helper()
	c, err := OpenFile(r.dir, name, Options{})
	r.must(err)
	r.t.Cleanup(func() { r.must(c.Close()) })
	return c
}

// reads holds a chain's disk against its model.
func (r *rig) reads(name string, model []byte) *Chain {
	r.t.Helper()
	c := r.open(name)
	if got := imagetest.ReadAll(r.t, c); !bytes.Equal(got, model) {
		r.t.Fatalf("%s: the disk is not the model's", c.Identity())
	}
	r.extents(c, model)
	return c
}

// extents demands that the extents cover the disk once and lead to its bytes.
func (r *rig) extents(c *Chain, model []byte) {
	r.t.Helper()
	at := image.DiskOffset(0)
	for e := range c.Extents(0, c.Size()) {
		if e.Disk != at || e.Len <= 0 {
			r.t.Fatalf("an extent at %d of %d bytes, expected at %d", e.Disk, e.Len, at)
		}
		got := make([]byte, e.Len)
		if m := c.Members[e.Member]; e.From == image.FromFile && m.Table.Replayed().Empty() {
			if n, err := m.closer.(File).ReadAt(got, int64(e.File)); n != len(got) {
				r.t.Fatal(err)
			}
		}
		if e.From == image.FromParent || !bytes.Equal(got, model[at:int64(at)+e.Len]) {
			r.t.Fatalf("%+v does not lead to the disk's bytes", e)
		}
		at += image.DiskOffset(e.Len)
	}
	if int64(at) != c.Size() {
		r.t.Fatalf("extents end at %d of %d", at, c.Size())
	}
}

// changed demands that Changed names every block that differs, and returns how many it names.
func (r *rig) changed(what string, was, now *Chain, diskWas, diskNow []byte, written func(Member) extent.Set[extent.FileBlock]) int64 {
	r.t.Helper()
	got := now.Changed(was, written)
	want := imagetest.Differing[extent.DiskBlock](diskWas, diskNow).Intersect(extent.Of(now.Disk()))
	if missed := want.Subtract(got); !missed.Empty() {
		r.t.Fatalf("%s: missed %v", what, missed.Ranges())
	}
	if beyond := got.Subtract(extent.Of(now.Disk())); !beyond.Empty() {
		r.t.Fatalf("%s: past the end: %v", what, beyond.Ranges())
	}
	return got.Blocks()
}

func nothing(Member) extent.Set[extent.FileBlock] { return extent.Set[extent.FileBlock]{} }

// touch gives a file its time back.
func (r *rig) touch(name string, at time.Time) {
	r.t.Helper()
	r.must(os.Chtimes(filepath.Join(r.path, name), at, at))
}
