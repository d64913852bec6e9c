package chain

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// moment is a store with a chain, and what the chain's disk reads.
type moment struct {
	chain *Chain
	model []byte
}

// written compares the files of two stores of chains, as a tracker of all files would know.
func written(before map[string][]byte, r *rig) func(Member) extent.Set[extent.FileBlock] {
	return func(m Member) extent.Set[extent.FileBlock] {
		b, err := os.ReadFile(filepath.Join(r.path, m.Name))
		r.must(err)
		for _, old := range before {
			if bytes.Equal(old[:min(len(old), 2048)], b[:min(len(b), 2048)]) {
				return imagetest.Differing[extent.FileBlock](old, b)
			}
		}
		return extent.Of(extent.Cover[extent.FileBlock](0, int64(len(b))))
	}
}

// files are all images of the store.
func (r *rig) files() map[string][]byte {
	all := map[string][]byte{}
	entries, err := os.ReadDir(r.path)
	r.must(err)
	for _, e := range entries {
		if all[e.Name()], err = os.ReadFile(filepath.Join(r.path, e.Name())); err != nil {
			r.t.Fatal(err)
		}
	}
	return all
}

// TestNewLeafChangesNothing: after a snapshot the disk reads as before, and nothing of it has to be looked at.
func TestNewLeafChangesNothing(t *testing.T) {
	r := newRig(t)
	base, middle, leaf := r.vhds(rand.New(rand.NewPCG(3, 1)), 4096)
	r.vhd("base.vhd", base)
	r.vhd("middle.vhd", middle)
	r.vhd("leaf.vhd", leaf)
	was := r.open("middle.vhd")
	leaf = imagetest.NewVHDLayer(middle.Virtual, 4096, 3, middle, "middle.vhd")
	r.vhd("leaf.vhd", leaf)
	now := r.reads("leaf.vhd", leaf.Model)
	if n := r.changed("new leaf", was, now, middle.Model, leaf.Model, nothing); n != 0 {
		t.Errorf("%d blocks changed", n)
	}
	if c := now.Identity().Compare(was.Identity()); c != NewLeaf {
		t.Errorf("%q", c)
	}
	leaf.Put(8192, bytes.Repeat([]byte{8}, 512))
	r.vhd("leaf.vhd", leaf)
	if n := r.changed("written", was, r.reads("leaf.vhd", leaf.Model), middle.Model, leaf.Model, nothing); n != 1 {
		t.Errorf("%d blocks changed", n)
	}
}

// TestOldDataBecomesVisible: a block that was written elsewhere long ago, and the entry of a parent that now names it.
func TestOldDataBecomesVisible(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(256<<10, 64<<10, 1, nil, "")
	base.Put(0, bytes.Repeat([]byte{1}, 256<<10))
	leaf := imagetest.NewVHDLayer(256<<10, 64<<10, 2, base, "base.vhd")
	leaf.Put(64<<10+512, bytes.Repeat([]byte{2}, 512))
	r.vhd("base.vhd", base)
	r.vhd("leaf.vhd", leaf)
	was := r.reads("leaf.vhd", leaf.Model)
	base.Move(1)
	base.Write(64<<10, bytes.Repeat([]byte{3}, 64<<10))
	model := append(bytes.Clone(leaf.Model[:64<<10]), bytes.Repeat([]byte{3}, 64<<10)...)
	model = append(model, leaf.Model[128<<10:]...)
	copy(model[64<<10+512:], bytes.Repeat([]byte{2}, 512))
	r.vhd("base.vhd", base)
	now := r.reads("leaf.vhd", model)
	if n := r.changed("moved", was, now, leaf.Model, model, nothing); n != 16 {
		t.Errorf("%d blocks changed", n)
	}
	leaf.Put(140<<10, bytes.Repeat([]byte{4}, 4096))
	copy(model[140<<10:], bytes.Repeat([]byte{4}, 4096))
	r.vhd("leaf.vhd", leaf)
	last := r.reads("leaf.vhd", model)
	if n := r.changed("written", now, last, model, model, nothing); n != 1 {
		t.Errorf("%d blocks changed", n)
	}
}

// TestMerge: the middle's data is written into the base, then the leaf is linked to the base, as XCP-ng coalesces. The
// disk reads the same all the while; looked at is what moved and no more.
func TestMerge(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(1<<20, 4096, 1, nil, "")
	base.Put(0, bytes.Repeat([]byte{1}, 512<<10))
	middle := imagetest.NewVHDLayer(1<<20, 4096, 2, base, "base.vhd")
	middle.Put(64<<10, bytes.Repeat([]byte{2}, 64<<10))
	leaf := imagetest.NewVHDLayer(1<<20, 4096, 3, middle, "middle.vhd")
	leaf.Put(96<<10, bytes.Repeat([]byte{3}, 128<<10))
	model := bytes.Repeat([]byte{1}, 512<<10)
	copy(model[64<<10:], bytes.Repeat([]byte{2}, 64<<10))
	copy(model[96<<10:], bytes.Repeat([]byte{3}, 128<<10))
	model = append(model, make([]byte, 512<<10)...)
	r.vhd("base.vhd", base)
	r.vhd("middle.vhd", middle)
	r.vhd("leaf.vhd", leaf)
	was := r.reads("leaf.vhd", model)
	before := r.files()
	base.Put(64<<10, bytes.Repeat([]byte{2}, 64<<10))
	r.vhd("base.vhd", base)
	during := r.reads("leaf.vhd", model)
	if c := during.Identity().Compare(was.Identity()); c != Written {
		t.Errorf("%q", c)
	}
	if n := r.changed("data copied", was, during, model, model, written(before, r)); n > 1 {
		t.Errorf("%d blocks changed, all but what a file block has besides are behind the middle's", n)
	}
	leaf.Reparent(base.VHD, imagetest.Created)
	leaf.Locate(0, "W2ru", `.\base.vhd`)
	r.vhd("leaf.vhd", leaf)
	r.must(os.Remove(filepath.Join(r.path, "middle.vhd")))
	now := r.reads("leaf.vhd", model)
	if c := now.Identity().Compare(was.Identity()); c != Merged {
		t.Errorf("%q", c)
	}
	if n := r.changed("relinked", was, now, model, model, nothing); n != 8 {
		t.Errorf("%d blocks changed; 32 KiB came out of the middle", n)
	}
}

// TestLeafMergedIntoItsParent: the snapshot is given up, the parent is the disk again.
func TestLeafMergedIntoItsParent(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(1<<20, 4096, 1, nil, "")
	base.Put(0, bytes.Repeat([]byte{1}, 512<<10))
	leaf := imagetest.NewVHDLayer(1<<20, 4096, 2, base, "base.vhd")
	leaf.Put(0, bytes.Repeat([]byte{2}, 16<<10))
	r.vhd("base.vhd", base)
	r.vhd("leaf.vhd", leaf)
	was := r.reads("leaf.vhd", leaf.Model)
	before := r.files()
	base.Put(0, bytes.Repeat([]byte{2}, 16<<10))
	r.vhd("base.vhd", base)
	now := r.open("base.vhd")
	if n := r.changed("merged", was, now, leaf.Model, leaf.Model, written(before, r)); n < 4 || n > 5 {
		t.Errorf("%d blocks changed", n)
	}
	if c := now.Identity().Compare(was.Identity()); c != Merged {
		t.Errorf("%q", c)
	}
}

// TestMovedAndChangedParents: another name is no change; other bytes under the same name are one.
func TestMovedAndChangedParents(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	base.Put(0, bytes.Repeat([]byte{1}, 64<<10))
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	leaf.Put(0, bytes.Repeat([]byte{2}, 8<<10))
	r.vhd("base.vhd", base)
	r.vhd("leaf.vhd", leaf)
	was := r.reads("leaf.vhd", leaf.Model)
	r.must(os.Rename(filepath.Join(r.path, "base.vhd"), filepath.Join(r.path, "golden.vhd")))
	leaf.Locate(0, "W2ru", `.\golden.vhd`)
	r.vhd("leaf.vhd", leaf)
	moved := r.reads("leaf.vhd", leaf.Model)
	if n := r.changed("moved", was, moved, leaf.Model, leaf.Model, nothing); n != 0 || moved.Identity().Compare(was.Identity()) != Renamed {
		t.Errorf("%d blocks changed, %s", n, moved.Identity().Describe(was.Identity()))
	}
	r.must(os.Rename(filepath.Join(r.path, "golden.vhd"), filepath.Join(r.path, "old")))
	copied := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	copied.Put(0, bytes.Repeat([]byte{7}, 64<<10))
	r.vhd("golden.vhd", copied)
	model := append(bytes.Repeat([]byte{2}, 8<<10), bytes.Repeat([]byte{7}, 56<<10)...)
	changed := r.reads("leaf.vhd", model)
	if n := r.changed("changed", was, changed, leaf.Model, model, nothing); n != 14 || changed.Identity().Compare(was.Identity()) != Other {
		t.Errorf("%d blocks changed, %s", n, changed.Identity().Describe(was.Identity()))
	}
	if now := r.open("leaf.vhd"); now.Identity().Compare(changed.Identity()) != Same {
		t.Errorf("%s", now.Identity().Describe(changed.Identity()))
	}
}

// TestChangedNamesWhatDiffers: random changes of all three images of a chain, of its links and of its sizes.
func TestChangedNamesWhatDiffers(t *testing.T) {
	for seed := range uint64(12) {
		r := newRig(t)
		rnd := rand.New(rand.NewPCG(seed, 7))
		base := imagetest.NewVHDLayer(300<<10, 4096, 1, nil, "")
		r.change(base, rnd)
		middle := imagetest.NewVHDLayer(200<<10, 4096, 2, base, "base.vhd")
		r.change(middle, rnd)
		leaf := imagetest.NewVHDLayer(300<<10+512*rnd.Int64N(9), 4096, 3, middle, "middle.vhd")
		r.change(leaf, rnd)
		layers := map[string]*imagetest.VHDLayer{"base.vhd": base, "middle.vhd": middle, "leaf.vhd": leaf}
		for name, l := range layers {
			r.vhd(name, l)
		}
		was := moment{r.open("leaf.vhd"), nil}
		was.model = imagetest.ReadAll(t, was.chain)
		for step := range 12 {
			before := r.files()
			switch rnd.IntN(4) {
			case 0:
				base.Change(rnd)
			case 1:
				middle.Change(rnd)
			case 2:
				leaf.Change(rnd)
				base.Change(rnd)
			default:
				leaf.Change(rnd)
			}
			if step == 6 {
				leaf.Reparent(base.VHD, imagetest.Created)
				leaf.Locate(0, "W2ru", `.\base.vhd`)
			}
			for name, l := range layers {
				if !bytes.Equal(before[name], l.File()) {
					r.vhd(name, l)
				}
			}
			now := moment{r.open("leaf.vhd"), nil}
			now.model = imagetest.ReadAll(t, now.chain)
			r.extents(now.chain, now.model)
			r.changed(fmt.Sprintf("seed %d, step %d", seed, step), was.chain, now.chain, was.model, now.model, written(before, r))
			was = now
		}
	}
}

// TestResizedLeaf: what came and went of the disk's end is named, up to its present end.
func TestResizedLeaf(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	base.Put(0, bytes.Repeat([]byte{1}, 64<<10))
	r.vhd("base.vhd", base)
	small := imagetest.NewVHDLayer(32<<10+512, 4096, 2, base, "base.vhd")
	large := imagetest.NewVHDLayer(100<<10, 4096, 2, base, "base.vhd")
	r.vhd("small.vhd", small)
	r.vhd("large.vhd", large)
	a, b := r.open("small.vhd"), r.open("large.vhd")
	b.Members[0].Stat = a.Members[0].Stat // the same file, rewritten
	diskA, diskB := imagetest.ReadAll(t, a), imagetest.ReadAll(t, b)
	if n := r.changed("grown", a, b, diskA, diskB, nothing); n != 17 {
		t.Errorf("%d blocks changed", n)
	}
	r.changed("shrunk", b, a, diskB, diskA, nothing)
}

// TestIdentityIsStored: as JSON, and means the same when it is read again.
func TestIdentityIsStored(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("base.vhd", base)
	r.vhd("leaf.vhd", leaf)
	now := r.open("leaf.vhd").Identity()
	text, err := json.Marshal(now)
	r.must(err)
	var stored Identity
	r.must(json.Unmarshal(text, &stored))
	if now.Compare(stored) != Same || stored.String() != "leaf.vhd over base.vhd" || !strings.HasPrefix(now.Describe(stored), "same: ") {
		t.Errorf("%s: %s", text, now.Describe(stored))
	}
	if now.Compare(nil) != Other || Identity(nil).Compare(now) != Other {
		t.Error("no chain is another chain")
	}
}

// TestUnwritten: a file that may have been written within the grain of its times counts as written.
func TestUnwritten(t *testing.T) {
	at := time.Unix(1e9, 0)
	s := Stat{Size: 10, Device: 1, Inode: 2, Modified: at, Changed: at}
	if !s.Unwritten(s, at.Add(time.Minute)) || s.Unwritten(s, at.Add(time.Second)) {
		t.Error("grain")
	}
	for _, change := range []func(*Stat){
		func(s *Stat) { s.Size++ }, func(s *Stat) { s.Inode++ }, func(s *Stat) { s.Device++ }, func(s *Stat) { s.Birth = at },
		func(s *Stat) { s.Modified = at.Add(1) }, func(s *Stat) { s.Changed = at.Add(1) },
	} {
		now := s
		change(&now)
		if now.Unwritten(s, at.Add(time.Minute)) {
			t.Errorf("%+v", now)
		}
	}
	if (Stat{}).SameFile(Stat{}) {
		t.Error("a file that nobody knows is none")
	}
}
