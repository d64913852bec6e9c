package vhdx

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// layer is a layer whose table may be in a log only.
type layer struct {
	*imagetest.VHDXLayer
	log logged
}

func newLayer(virtual, sector int64, id byte, parent *layer, name string) *layer {
	var below *imagetest.VHDXLayer
	if parent != nil {
		below = parent.VHDXLayer
	}
	l := imagetest.NewVHDXLayer(virtual, sector, id, below, name)
	return &layer{l, logged{l.VHDX, map[int64][]byte{}}}
}

func (l *layer) open(t testing.TB) *Image { return openBytes(t, l.B) }

// chain makes three images one over the other; the leaf is larger.
func chain(rnd *rand.Rand, sector int64, plain bool) []*layer {
	base := newLayer(3<<20, sector, 1, nil, "")
	base.Plain = plain
	for range 15 {
		base.Change(rnd)
	}
	middle := newLayer(3<<20, sector, 2, base, "base.vhdx")
	for range 15 {
		middle.Change(rnd)
	}
	return []*layer{base, middle, newLayer(3<<20+5*4096, sector, 3, middle, "middle.vhdx")}
}

// TestChainsLogsAndTheirChanges: three images deep, the leaf written, zeroed, freed and moved at random, half of the time
// with the table and the bitmaps in a log only. The disk is the model's at every step, and the differences between two
// steps name every block that differs.
func TestChainsLogsAndTheirChanges(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		for seed := range uint64(4) {
			rnd := rand.New(rand.NewPCG(seed, 1))
			layers := chain(rnd, sector, false)
			parent := layers[1].open(t).Disk(layers[0].open(t).Disk(nil))
			leaf := layers[2]
			was, fileWas, diskWas := leaf.open(t), bytes.Clone(leaf.B), bytes.Clone(leaf.Model)
			logs := 0
			for step := range 12 {
				leaf.log.flush()
				before := bytes.Clone(leaf.B)
				for range rnd.IntN(4) + 1 {
					leaf.Change(rnd)
				}
				if rnd.IntN(2) == 0 {
					leaf.log.logSince(before, rnd.Int64N(256)*page)
				}
				now := leaf.open(t)
				disk := imagetest.ReadAll(t, now.Disk(parent))
				what := fmt.Sprintf("sectors of %d, seed %d, step %d", sector, seed, step)
				if !bytes.Equal(disk, leaf.Model) {
					t.Fatalf("%s: the disk is not the model's", what)
				}
				logs += now.Replayed
				imagetest.CheckMappings(t, now.Table)
				imagetest.CheckChanged(t, what, was.Table, now.Table, fileWas, leaf.B, diskWas, disk)
				was, fileWas, diskWas = now, bytes.Clone(leaf.B), disk
			}
			if logs == 0 {
				t.Errorf("seed %d: no log was replayed", seed)
			}
		}
	}
}

// TestLinkNamesTheParent: by its DataWriteGuid, with every locator.
func TestLinkNamesTheParent(t *testing.T) {
	layers := chain(rand.New(rand.NewPCG(1, 1)), 512, false)
	middle, leaf := layers[1].open(t), layers[2].open(t)
	locator := image.FileOffset(find(layers[2].B, itemLocator))
	want := []image.Locator{{Kind: "relative_path", Path: `.\middle.vhdx`, At: locator + 32}, {Kind: "absolute_win32_path", Path: `C:\vm\middle.vhdx`, At: locator + 44}}
	if !leaf.Link.Matches(middle.DataWrite) || leaf.Link.Matches(leaf.DataWrite) || fmt.Sprint(leaf.Link.Locators) != fmt.Sprint(want) {
		t.Errorf("%+v", leaf.Link)
	}
	if leaf.Info.Format != image.VHDXDifferencing || layers[0].open(t).Info.Format != image.VHDXDynamic {
		t.Error("formats")
	}
	if _, err := leaf.Disk(nil).ReadAt(make([]byte, 512), 0); !errors.Is(err, image.ErrParent) {
		t.Errorf("without a parent: %v", err)
	}
}

// TestLibvhdiReadsTheSameChain: a second reader that knows parents. It needs FUSE. Left out is what libvhdi 20210425 reads
// otherwise than [MS-VHDX] says: the parent in place of zeros for states 1 to 3, and zeros in place of the parent where a
// freed block left bits in the sector bitmap.
func TestLibvhdiReadsTheSameChain(t *testing.T) {
	imagetest.NeedTool(t, "vhdimount")
	imagetest.NeedTool(t, "fusermount")
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		layers := chain(rnd, 512, true)
		leaf := newLayer(layers[1].Virtual, 512, 3, layers[1], "middle.vhdx") // it reads no parent that is shorter
		for range 20 {
			leaf.Change(rnd)
		}
		dir, mnt := t.TempDir(), t.TempDir()
		for name, l := range map[string]*layer{"base.vhdx": layers[0], "middle.vhdx": layers[1], "leaf.vhdx": leaf} {
			if err := os.WriteFile(filepath.Join(dir, name), l.B, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("vhdimount", filepath.Join(dir, "leaf.vhdx"), mnt).CombinedOutput(); err != nil {
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
