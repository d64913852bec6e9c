package imagetest

import (
	"bytes"
	"math/rand/v2"
)

// VHDLayer is an image of a chain and what its disk must read, kept as bytes.
type VHDLayer struct {
	*VHD
	Model []byte // of this disk, all parents seen
	below []byte // of the parent's disk
}

// NewVHDLayer makes an empty one: see NewVHD.
func NewVHDLayer(virtual, blockSize int64, id byte, parent *VHDLayer, name string) *VHDLayer {
	if parent == nil {
		return &VHDLayer{NewVHD(virtual, blockSize, id, nil, ""), make([]byte, virtual), make([]byte, virtual)}
	}
	l := &VHDLayer{VHD: NewVHD(virtual, blockSize, id, parent.VHD, name), Model: make([]byte, virtual), below: make([]byte, virtual)}
	copy(l.below, parent.Model)
	copy(l.Model, l.below)
	return l
}

// Change does one random thing to the image and its model.
func (l *VHDLayer) Change(rnd *rand.Rand) {
	n := (rnd.Int64N(40) + 1) * vhdSector
	off := rnd.Int64N((l.Virtual-n)/vhdSector+1) * vhdSector
	block := off / l.BlockSize
	switch rnd.IntN(8) {
	case 0:
		for s := off; s < off+n; s += vhdSector {
			l.Forget(s)
			copy(l.Model[s:], l.below[s:s+vhdSector])
		}
	case 1:
		l.Free(block)
		end := min((block+1)*l.BlockSize, l.Virtual)
		copy(l.Model[block*l.BlockSize:end], l.below[block*l.BlockSize:end])
	case 2:
		l.Move(block)
	default:
		l.Put(off, bytes.Repeat([]byte{byte(rnd.IntN(255) + 1)}, int(n)))
	}
}

// Put writes to the image and its model.
func (l *VHDLayer) Put(off int64, data []byte) {
	l.Write(off, data)
	copy(l.Model[off:], data)
}

// VHDXLayer is an image of a chain and what its disk must read, kept as bytes.
type VHDXLayer struct {
	*VHDX
	Model []byte // of this disk, all parents seen
	below []byte // of the parent's disk
	Plain bool   // without what libvhdi 20210425 reads otherwise than [MS-VHDX] says
}

// NewVHDXLayer makes an empty one, its blocks of 1 MiB: see NewVHDX.
func NewVHDXLayer(virtual, sector int64, id byte, parent *VHDXLayer, name string) *VHDXLayer {
	if parent == nil {
		return &VHDXLayer{NewVHDX(virtual, mebibyte, sector, id, nil, ""), make([]byte, virtual), make([]byte, virtual), false}
	}
	l := &VHDXLayer{NewVHDX(virtual, mebibyte, sector, id, parent.VHDX, name), make([]byte, virtual), make([]byte, virtual), parent.Plain}
	copy(l.below, parent.Model)
	copy(l.Model, l.below)
	return l
}

// Change does one random thing to the image and its model.
func (l *VHDXLayer) Change(rnd *rand.Rand) {
	n := (rnd.Int64N(40) + 1) * l.Sector
	off := rnd.Int64N((l.Virtual-n)/l.Sector+1) * l.Sector
	block := off / l.BlockSize
	start, end := block*l.BlockSize, min((block+1)*l.BlockSize, l.Virtual)
	kind := rnd.IntN(9)
	if l.Plain && kind == 1 {
		kind = 0
	}
	switch kind {
	case 0:
		if state, _ := l.Get(block); l.Plain && state == vhdxPartial {
			clear(l.Bits(block))
		}
		l.Set(block, 0, 0)
		copy(l.Model[start:end], l.below[start:end])
	case 1:
		l.Set(block, uint64(1+rnd.IntN(3)), 0)
		clear(l.Model[start:end])
	case 2:
		l.Move(block)
	default:
		if state, _ := l.Get(block); state >= 1 && state <= 3 {
			clear(l.Model[start:end])
		}
		l.Put(off, bytes.Repeat([]byte{byte(rnd.IntN(255) + 1)}, int(n)))
	}
}

// Put writes to the image and its model.
func (l *VHDXLayer) Put(off int64, data []byte) {
	l.Write(off, data)
	copy(l.Model[off:], data)
}

// Layer is an image of a chain in either format.
type Layer interface {
	Bytes() []byte // of the file; the caller's
	Put(off int64, data []byte)
	Change(rnd *rand.Rand)
	Disk() []byte                    // what it must read; the layer's
	Over(id byte, name string) Layer // a new one over it, which it is called there
	Link(parent Layer, name string)  // it lies over parent from now on, which is called so
}

// Layer is l as one of either format.
func (l *VHDLayer) Layer() Layer { return vhdLayer{l} }

// Layer is l as one of either format.
func (l *VHDXLayer) Layer() Layer { return vhdxLayer{l} }

type vhdLayer struct{ *VHDLayer }

func (l vhdLayer) Bytes() []byte { return l.File() }
func (l vhdLayer) Disk() []byte  { return l.Model }
func (l vhdLayer) Over(id byte, name string) Layer {
	return NewVHDLayer(l.Virtual, l.BlockSize, id, l.VHDLayer, name).Layer()
}

func (l vhdLayer) Link(parent Layer, name string) {
	l.Reparent(parent.(vhdLayer).VHD, Created)
	l.Locate(0, "W2ru", `.\`+name)
	l.Locate(1, "W2ku", "")
	l.Locate(2, "MacX", "")
	l.Rename(name)
}

type vhdxLayer struct{ *VHDXLayer }

func (l vhdxLayer) Bytes() []byte { return bytes.Clone(l.B) }
func (l vhdxLayer) Disk() []byte  { return l.Model }
func (l vhdxLayer) Over(id byte, name string) Layer {
	return NewVHDXLayer(l.Virtual, l.Sector, id, l.VHDXLayer, name).Layer()
}

func (l vhdxLayer) Link(parent Layer, name string) {
	l.Locate("parent_linkage", GUIDText(parent.(vhdxLayer).DataWrite), "relative_path", `.\`+name)
}
