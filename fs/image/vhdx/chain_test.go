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

// layer is an image of a chain and what its disk must read, kept as bytes.
type layer struct {
	*writer
	model, below []byte // of this disk, all parents seen; of the parent's disk
	plain        bool   // without what libvhdi 20210425 reads otherwise than [MS-VHDX] says
}

func newLayer(virtual, sector int64, id byte, parent *layer, name string) *layer {
	if parent == nil {
		return &layer{newWriter(virtual, mebibyte, sector, id, nil, ""), make([]byte, virtual), make([]byte, virtual), false}
	}
	l := &layer{newWriter(virtual, mebibyte, sector, id, parent.writer, name), make([]byte, virtual), make([]byte, virtual), parent.plain}
	copy(l.below, parent.model)
	copy(l.model, l.below)
	return l
}

func (l *layer) change(rnd *rand.Rand) {
	n := (rnd.Int64N(40) + 1) * l.sector
	off := rnd.Int64N((l.virtual-n)/l.sector+1) * l.sector
	block := off / l.block
	start, end := block*l.block, min((block+1)*l.block, l.virtual)
	kind := rnd.IntN(9)
	if l.plain && kind == 1 {
		kind = 0
	}
	switch kind {
	case 0:
		if state, _ := l.get(block); l.plain && state == statePartial {
			clear(l.bits(block))
		}
		l.set(block, stateNotPresent, 0)
		copy(l.model[start:end], l.below[start:end])
	case 1:
		l.set(block, uint64(1+rnd.IntN(3)), 0)
		clear(l.model[start:end])
	case 2:
		l.move(block)
	default:
		if state, _ := l.get(block); state >= 1 && state <= 3 {
			clear(l.model[start:end])
		}
		data := bytes.Repeat([]byte{byte(rnd.IntN(255) + 1)}, int(n))
		l.write(off, data)
		copy(l.model[off:], data)
	}
}

// chain makes three images one over the other; the leaf is larger.
func chain(rnd *rand.Rand, sector int64, plain bool) []*layer {
	base := newLayer(3<<20, sector, 1, nil, "")
	base.plain = plain
	for range 15 {
		base.change(rnd)
	}
	middle := newLayer(3<<20, sector, 2, base, "base.vhdx")
	for range 15 {
		middle.change(rnd)
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
			was, fileWas, diskWas := leaf.open(t), bytes.Clone(leaf.b), bytes.Clone(leaf.model)
			logs := 0
			for step := range 12 {
				leaf.flush()
				before := bytes.Clone(leaf.b)
				for range rnd.IntN(4) + 1 {
					leaf.change(rnd)
				}
				if rnd.IntN(2) == 0 {
					leaf.logSince(before, rnd.Int64N(256)*page)
				}
				now := leaf.open(t)
				disk := imagetest.ReadAll(t, now.Disk(parent))
				what := fmt.Sprintf("sectors of %d, seed %d, step %d", sector, seed, step)
				if !bytes.Equal(disk, leaf.model) {
					t.Fatalf("%s: the disk is not the model's", what)
				}
				logs += now.Replayed
				imagetest.CheckMappings(t, now.Table)
				imagetest.CheckChanged(t, what, was.Table, now.Table, fileWas, leaf.b, diskWas, disk)
				was, fileWas, diskWas = now, bytes.Clone(leaf.b), disk
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
	want := []image.Locator{{Kind: "relative_path", Path: `.\middle.vhdx`}, {Kind: "absolute_win32_path", Path: `C:\vm\middle.vhdx`}}
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
		leaf := newLayer(layers[1].virtual, 512, 3, layers[1], "middle.vhdx") // it reads no parent that is shorter
		for range 20 {
			leaf.change(rnd)
		}
		dir, mnt := t.TempDir(), t.TempDir()
		for name, l := range map[string]*layer{"base.vhdx": layers[0], "middle.vhdx": layers[1], "leaf.vhdx": leaf} {
			if err := os.WriteFile(filepath.Join(dir, name), l.b, 0o600); err != nil {
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
			found = found || bytes.Equal(got, leaf.model)
		}
		if !found {
			t.Errorf("seed %d: %v is not the model's disk", seed, names)
		}
	}
}
