package shipper

import (
	"bytes"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
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
