package vhd

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

type layer struct{ *imagetest.VHDLayer }

func newLayer(virtual, blockSize int64, id byte, parent *layer, name string) *layer {
	if parent == nil {
		return &layer{imagetest.NewVHDLayer(virtual, blockSize, id, nil, "")}
	}
	return &layer{imagetest.NewVHDLayer(virtual, blockSize, id, parent.VHDLayer, name)}
}

func (l *layer) open(t testing.TB) *Image {
	t.Helper()
	return openBytes(t, l.File())
}

func (l *layer) disk(t testing.TB, parent image.Parent) (*Image, []byte) {
	t.Helper()
	i := l.open(t)
	return i, imagetest.ReadAll(t, i.Disk(parent))
}

// chain makes three images one over the other; the disks are of different sizes.
func chain(rnd *rand.Rand, virtual, blockSize int64) []*layer {
	base := newLayer(virtual, blockSize, 1, nil, "")
	for range 40 {
		base.Change(rnd)
	}
	middle := newLayer(virtual, blockSize, 2, base, "base.vhd")
	for range 40 {
		middle.Change(rnd)
	}
	return []*layer{base, middle, newLayer(virtual+33<<10+512, blockSize, 3, middle, "middle.vhd")}
}

// TestChainsAndTheirChanges: three images deep, the leaf written, trimmed, freed and moved at random. The disk is the
// model's at every step, and the differences between two steps name every block that differs.
func TestChainsAndTheirChanges(t *testing.T) {
	for _, blockSize := range []int64{4096, 16 << 10, 128 << 10, 2 << 20} {
		for seed := range uint64(max(2, min(20, 1<<20/blockSize))) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			layers := chain(rnd, 300<<10, blockSize)
			base, _ := layers[0].disk(t, nil)
			middle, _ := layers[1].disk(t, base.Disk(nil))
			parent := middle.Disk(base.Disk(nil))
			leaf := layers[2]
			was, diskWas := leaf.disk(t, parent)
			fileWas := leaf.File()
			for step := range 15 {
				for range rnd.IntN(4) + 1 {
					leaf.Change(rnd)
				}
				now, disk := leaf.disk(t, parent)
				what := fmt.Sprintf("blocks of %d, seed %d, step %d", blockSize, seed, step)
				if !bytes.Equal(disk, leaf.Model) {
					t.Fatalf("%s: the disk is not the model's", what)
				}
				imagetest.CheckMappings(t, now.Table)
				imagetest.CheckChanged(t, what, was.Table, now.Table, fileWas, leaf.File(), diskWas, disk)
				was, fileWas, diskWas = now, leaf.File(), disk
			}
		}
	}
}

// TestLinkNamesTheParent: id, time and every locator.
func TestLinkNamesTheParent(t *testing.T) {
	layers := chain(rand.New(rand.NewPCG(1, 1)), 300<<10, 4096)
	base, leaf := layers[1].open(t), layers[2].open(t)
	if !leaf.Link.Matches(base.Info.ID) || leaf.Link.Matches(leaf.Info.ID) || leaf.Link.Matches([16]byte{}) || base.Link == nil {
		t.Errorf("%+v", leaf.Link)
	}
	want := []image.Locator{{Kind: "W2ru", Path: `.\middle.vhd`, At: 512 + 576}, {Kind: "W2ku", Path: `C:\vm\middle.vhd`, At: 512 + 600},
		{Kind: "MacX", Path: "file://./middle.vhd", At: 512 + 624}, {Kind: "name", Path: "middle.vhd", At: 512 + 64}}
	if fmt.Sprint(leaf.Link.Locators) != fmt.Sprint(want) || !leaf.Link.Time.Equal(imagetest.Created) {
		t.Errorf("%+v", leaf.Link)
	}
	if leaf.Info.Format != image.VHDDifferencing || layers[0].open(t).Info.Format != image.VHDDynamic {
		t.Error("formats")
	}
}

// TestLibvhdiReadsTheSameChain: a second reader that knows parents. It needs FUSE. Blocks of the usual size:
// libvhdi 20210425 reads other sectors than the specification says where blocks are smaller.
func TestLibvhdiReadsTheSameChain(t *testing.T) {
	imagetest.NeedTool(t, "vhdimount")
	imagetest.NeedTool(t, "fusermount")
	for seed := range uint64(3) {
		layers := chain(rand.New(rand.NewPCG(seed, 2)), 7<<20, 2<<20)
		dir, mnt := t.TempDir(), t.TempDir()
		leaf := newLayer(layers[1].Virtual, 2<<20, 3, layers[1], "middle.vhd") // it reads no parent that is shorter
		rnd := rand.New(rand.NewPCG(seed, 3))
		for range 60 {
			leaf.Change(rnd)
		}
		for name, l := range map[string]*layer{"base.vhd": layers[0], "middle.vhd": layers[1], "leaf.vhd": leaf} {
			if err := os.WriteFile(filepath.Join(dir, name), l.File(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("vhdimount", filepath.Join(dir, "leaf.vhd"), mnt).CombinedOutput(); err != nil {
			t.Fatalf("vhdimount: %v\n%s", err, out)
		}
		t.Cleanup(func() { imagetest.Run(t, "fusermount", "-u", mnt) })
		found := false
		names, _ := filepath.Glob(filepath.Join(mnt, "*"))
		for _, name := range names {
			got, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			found = found || bytes.Equal(got, leaf.Model)
		}
		if !found {
			t.Errorf("seed %d: %v is not the model's disk", seed, names)
		}
	}
}

// TestParentIsNeeded: what is the parent's is not made up.
func TestParentIsNeeded(t *testing.T) {
	leaf := newLayer(64<<10, 4096, 2, newLayer(64<<10, 4096, 1, nil, ""), "base.vhd")
	leaf.Write(0, bytes.Repeat([]byte{7}, 4096))
	d := leaf.open(t).Disk(nil)
	b := make([]byte, 4096)
	if n, err := d.ReadAt(b, 0); n != 4096 || err != nil || b[4095] != 7 {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := d.ReadAt(b, 4096); !isErr(err, image.ErrParent) {
		t.Errorf("%v", err)
	}
}
