package sim

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// translated says whether an image of this name has a block table.
func translated(name string) bool {
	return path.Ext(name) == ".vhdx" || strings.HasPrefix(name, "dyn")
}

// hypervisor writes to a translated image on behalf of a guest: it knows what the file is to become, and writes what differs
// from that sector by sector in any order, each write a request of its own: data before table and table before data, and
// everything may happen between two of them. When something else became of the file, it repairs it.
type hypervisor struct {
	busy sync.Mutex // held over a guest's turn, its requests included

	mu struct { // guards all below; no I/O under it
		sync.Mutex
		tables tables
		disk   []byte // what the guest sees when no step is left
		of     *Image // that the steps lead to what the file is to become
		steps  []request
	}
}

// tables is an image in memory by its format's writer. A slot is a place in the file that a block may have.
type tables interface {
	file() []byte // may be read until the next change
	block() int64 // bytes
	slots() (first, size int64)
	place(block, slot int64) // it lies there from now on; 0: nowhere
	slot(block int64) int64  // where it lies; 0: nowhere
	bytes() *[]byte
	write(off int64, data []byte) // whole sectors of blocks that have a place
	forget(off int64) bool        // a sector reads as zeros though its block has a place; false: the format cannot
	resize(size int64)
}

type dynamicVHD struct{ *imagetest.VHD }

const (
	sector         = 512
	vhdHeaderAt    = 512
	vhdHeaderSize  = 1024
	vhdTableAt     = vhdHeaderAt + vhdHeaderSize
	vhdBlock       = 64 * kib
	vhdAbsent      = 0xffffffff
	mostTranslated = 4 * mib // virtual bytes that an image may grow to
	mostFile       = 9 * mib // bytes that its file may: slots are used again
)

func (v dynamicVHD) file() []byte   { return append(v.B, v.Footer...) }
func (v dynamicVHD) bytes() *[]byte { return &v.B }
func (v dynamicVHD) block() int64   { return v.BlockSize }

func (v dynamicVHD) slots() (first, size int64) {
	first = (vhdTableAt + mostTranslated/vhdBlock*4 + sector - 1) &^ (sector - 1)
	return first, sector + vhdBlock
}

func (v dynamicVHD) entry(block int64) []byte { return v.B[vhdTableAt+4*block:] }

func (v dynamicVHD) slot(block int64) int64 {
	if s := binary.BigEndian.Uint32(v.entry(block)); s != vhdAbsent {
		return int64(s) * sector
	}
	return 0
}

func (v dynamicVHD) place(block, slot int64) {
	s := uint32(vhdAbsent)
	if slot != 0 {
		s = uint32(slot / sector)
	}
	binary.BigEndian.PutUint32(v.entry(block), s)
}

func (v dynamicVHD) write(off int64, data []byte) { v.Write(off, data) }

func (v dynamicVHD) forget(off int64) bool {
	v.Forget(off)
	return true
}

func (v dynamicVHD) resize(size int64) {
	binary.BigEndian.PutUint64(v.Footer[48:], uint64(size))
	v.Virtual = size
	v.Seal(v.B[vhdHeaderAt:][:vhdHeaderSize])
}

type dynamicVHDX struct {
	*imagetest.VHDX
	absent *uint64 // state of the next block without a place: 0 to 3 all read as zeros
}

func (v dynamicVHDX) file() []byte   { return v.B }
func (v dynamicVHDX) bytes() *[]byte { return &v.B }
func (v dynamicVHDX) block() int64   { return v.BlockSize }

func (v dynamicVHDX) slots() (first, size int64) { return imagetest.VHDXData, v.BlockSize }

const vhdxFull = 6

func (v dynamicVHDX) slot(block int64) int64 {
	if state, at := v.Get(block); state == vhdxFull {
		return at
	}
	return 0
}

func (v dynamicVHDX) place(block, slot int64) {
	if slot != 0 {
		v.Set(block, vhdxFull, slot)
		return
	}
	v.Set(block, *v.absent, 0)
	*v.absent = (*v.absent + 1) % 4
}

func (v dynamicVHDX) write(off int64, data []byte) { v.Write(off, data) }

func (v dynamicVHDX) forget(int64) bool { return false }

func (v dynamicVHDX) resize(size int64) {
	v.Virtual = size
	const sizeItem = 64*kib + 8 // of the metadata: behind the file parameters
	binary.LittleEndian.PutUint64(v.B[imagetest.VHDXMetadata+sizeItem:], uint64(size))
}

// newHypervisor makes the image of a disk. What it holds has a place, in an order that the inode says.
func newHypervisor(name string, ino uint64, content []byte) *hypervisor {
	h := &hypervisor{}
	id := byte(1 + ino%250)
	if path.Ext(name) == ".vhdx" {
		h.mu.tables = dynamicVHDX{imagetest.NewVHDX(mostTranslated, mib, sector, id, nil, ""), new(uint64)}
	} else {
		h.mu.tables = dynamicVHD{imagetest.NewVHD(mostTranslated, vhdBlock, id, nil, "")}
	}
	h.mu.disk = bytes.Clone(content)
	h.mu.tables.resize(int64(len(content)))
	size := h.mu.tables.block()
	blocks := rand.New(rand.NewPCG(ino, 1)).Perm((len(content) + int(size) - 1) / int(size))
	for _, b := range blocks {
		off := int64(b) * size
		if part := content[off:min(off+size, int64(len(content)))]; !allZero(part) {
			h.writeLocked(nil, off, part)
		}
	}
	return h
}

// clone is the same for a copy of the image.
func (h *hypervisor) clone() *hypervisor {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	c := &hypervisor{}
	c.mu.disk = bytes.Clone(h.mu.disk)
	switch t := h.mu.tables.(type) {
	case dynamicVHD:
		w := *t.VHD
		w.B, w.Footer = bytes.Clone(w.B), bytes.Clone(w.Footer)
		c.mu.tables = dynamicVHD{&w}
	case dynamicVHDX:
		w, absent := *t.VHDX, *t.absent
		w.B = bytes.Clone(w.B)
		c.mu.tables = dynamicVHDX{&w, &absent}
	}
	return c
}

// freeLocked is a place for a block: a free one, or one at the end of the file; 0: there is none.
func (h *hypervisor) freeLocked(d *dice) int64 {
	t := h.mu.tables
	first, size := t.slots()
	end := int64(len(*t.bytes()))
	used := map[int64]bool{}
	for b := range mostTranslated / t.block() {
		used[t.slot(b)] = true
	}
	var free []int64
	for at := first; at+size <= end; at += size {
		if !used[at] {
			free = append(free, at)
		}
	}
	switch {
	case len(free) > 0 && (end+size > mostFile || d == nil || d.draw(2) == 0):
		i := 0
		if d != nil {
			i = d.draw(len(free))
		}
		return free[i]
	case end+size > mostFile:
		return 0
	}
	*t.bytes() = append(*t.bytes(), make([]byte, size)...)
	return end
}

// writeLocked writes whole sectors. A block that has no place gets one, which is emptied first.
func (h *hypervisor) writeLocked(d *dice, off int64, data []byte) {
	t := h.mu.tables
	for len(data) > 0 {
		b := off / t.block()
		n := min(int64(len(data)), (b+1)*t.block()-off)
		if t.slot(b) == 0 {
			at := h.freeLocked(d)
			if at == 0 {
				return
			}
			_, size := t.slots()
			h.emptyLocked(at, size)
			t.place(b, at)
		}
		t.write(off, data[:n])
		copy(h.mu.disk[off:], data[:n])
		off, data = off+n, data[n:]
	}
}

// emptyLocked makes a slot read as zeros, by the bitmap alone where there is one.
func (h *hypervisor) emptyLocked(at, size int64) {
	if _, bits := h.mu.tables.(dynamicVHD); bits {
		size = sector
	}
	clear((*h.mu.tables.bytes())[at:][:size])
}

// changeLocked is one thing that the guest, or the hypervisor by itself, does to the image.
func (h *hypervisor) changeLocked(w *world, d *dice) {
	t, size := h.mu.tables, int64(len(h.mu.disk))
	whole := int(size / t.block())
	pick := func() int64 { return int64(d.draw(whole)) }
	switch k := d.draw(14); {
	case k < 2 && whole > 0:
		w.struck("translated: block freed")
		h.dropLocked(pick())
	case k < 3 && whole > 0:
		w.struck("translated: block moved")
		h.moveLocked(d, pick())
	case k < 5 && whole > 1:
		w.struck("translated: blocks swapped")
		h.swapLocked(pick(), pick())
	case k < 7:
		h.trimLocked(w, d)
	case k < 8 && d.draw(5) == 0:
		w.struck("translated: resized")
		h.resizeLocked(d, sector*int64(1+d.draw(mostTranslated/sector)))
	default:
		off := int64(d.draw(int(size/sector))) * sector
		n := min(size-off, []int64{sector, sector * int64(1+d.draw(40)), 4096 * int64(1+d.draw(30))}[d.draw(3)])
		data := make([]byte, n)
		if d.draw(8) != 0 {
			fill(data, uint64(d.draw(1<<30)))
		}
		h.writeLocked(d, off, data)
	}
}

// dropLocked makes a block zeros by its entry alone.
func (h *hypervisor) dropLocked(b int64) {
	h.mu.tables.place(b, 0)
	size := h.mu.tables.block()
	clear(h.mu.disk[b*size : (b+1)*size])
}

// moveLocked gives a block another place.
func (h *hypervisor) moveLocked(d *dice, b int64) {
	t := h.mu.tables
	from := t.slot(b)
	if from == 0 {
		return
	}
	if to := h.freeLocked(d); to != 0 {
		_, size := t.slots()
		copy((*t.bytes())[to:to+size], (*t.bytes())[from:from+size])
		t.place(b, to)
	}
}

// swapLocked exchanges the places of two blocks, and nothing else changes.
func (h *hypervisor) swapLocked(a, b int64) {
	t := h.mu.tables
	x, y := t.slot(a), t.slot(b)
	t.place(a, y)
	t.place(b, x)
	size := t.block()
	at, bt := h.mu.disk[a*size:(a+1)*size], h.mu.disk[b*size:(b+1)*size]
	was := bytes.Clone(at)
	copy(at, bt)
	copy(bt, was)
}

// trimLocked makes some sectors zeros by their bits, or a block by its entry.
func (h *hypervisor) trimLocked(w *world, d *dice) {
	t, size := h.mu.tables, int64(len(h.mu.disk))
	off := int64(d.draw(int(size/sector))) * sector
	for n := int64(1 + d.draw(60)); n > 0 && off < size; n, off = n-1, off+sector {
		if !t.forget(off) {
			if b := off / t.block(); (b+1)*t.block() <= size {
				w.struck("translated: block trimmed")
				h.dropLocked(b)
			}
			return
		}
		clear(h.mu.disk[off:min(off+sector, size)])
	}
	w.struck("translated: sectors trimmed")
}

// resizeLocked makes the disk larger, by zeros, or smaller.
func (h *hypervisor) resizeLocked(d *dice, size int64) {
	t, was := h.mu.tables, int64(len(h.mu.disk))
	t.resize(size)
	if size <= was {
		h.mu.disk = slices.Clone(h.mu.disk[:size])
		return
	}
	h.mu.disk = append(h.mu.disk, make([]byte, size-was)...)
	for b := (was + t.block() - 1) / t.block(); b*t.block() < size; b++ { // what may be left from when it was larger
		t.place(b, 0)
	}
	if b := was / t.block(); was%t.block() != 0 && t.slot(b) != 0 {
		h.writeLocked(d, was, make([]byte, min((b+1)*t.block(), size)-was))
	}
}

// stepsLocked turns what differs between the file and what it is to become into requests.
func (h *hypervisor) stepsLocked(d *dice, img *Image) {
	h.mu.of, h.mu.steps = img, nil
	img.mu.Lock()
	defer img.mu.Unlock()
	was, now := img.mu.data, h.mu.tables.file()
	const stride = 64 * kib
	for at := 0; at < len(now); at += stride {
		end := min(at+stride, len(now))
		if end > len(was) || !bytes.Equal(was[at:end], now[at:end]) {
			h.runsLocked(d, was, now, at, end)
		}
	}
	d.shuffle(len(h.mu.steps), func(i, k int) { h.mu.steps[i], h.mu.steps[k] = h.mu.steps[k], h.mu.steps[i] })
	if len(was) > len(now) { // only something else can have made it longer
		h.mu.steps = append([]request{{Change: extent.Change{Kind: extent.Truncate, Off: int64(len(now))}}}, h.mu.steps...)
	}
}

// runsLocked adds the sectors of now[at:end] that differ, in runs.
func (h *hypervisor) runsLocked(d *dice, was, now []byte, at, end int) {
	differs := func(at int) bool { return at+sector > len(was) || !bytes.Equal(was[at:at+sector], now[at:at+sector]) }
	for at < end {
		if !differs(at) {
			at += sector
			continue
		}
		start, most := at, sector*(1+d.draw(128))
		for at < end && at-start < most && differs(at) {
			at += sector
		}
		r := request{Change: extent.Change{Kind: extent.Write, Off: int64(start), Len: int64(at - start)}, data: bytes.Clone(now[start:at])}
		if at <= len(was) && allZero(r.data) && d.draw(2) == 0 {
			r.Kind, r.data = []extent.Kind{extent.Zero, extent.Discard}[d.draw(2)], nil
		}
		h.mu.steps = append(h.mu.steps, r)
	}
}

// next is the next request to an image; false: there is none.
func (h *hypervisor) next(d *dice, img *Image) (request, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.of != img {
		h.stepsLocked(d, img)
	}
	if len(h.mu.steps) == 0 {
		return request{}, false
	}
	r := h.mu.steps[0]
	h.mu.steps = h.mu.steps[1:]
	return r, true
}

// begin changes what the file is to become.
func (h *hypervisor) begin(w *world, d *dice, img *Image) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.changeLocked(w, d)
	h.stepsLocked(d, img)
}

// file is the image when all is written.
func (h *hypervisor) file() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.mu.tables.file())
}

// holds is what the guest sees when all is written.
func (h *hypervisor) holds() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.mu.disk)
}

// operate is a turn of a guest at a translated disk: some of the steps that are left, or all, or those of something new.
func (w *world) operate(d *dice, m *machine, t *tracked) {
	h := t.image.hypervisor()
	if !h.busy.TryLock() {
		return // another guest's turn
	}
	defer h.busy.Unlock()
	n := 1 + d.draw(12)
	if d.draw(3) == 0 {
		n = 1 << 20
	}
	for began := false; n > 0 && !w.copied(m.name, t.image.name) && m.p.life.isAlive() && m.tracked(t.image.name) == t; n-- {
		r, left := h.next(d, t.image)
		if left {
			w.issue(m, t, r.Change, r.data)
			m.p.life.pause(d.draw(10 * turn))
			continue
		}
		if began {
			return
		}
		began = true
		h.begin(w, d, t.image)
	}
}

// complete brings the images to what they are to become.
func (w *world) complete(m *machine) {
	d := newDice(w.seed, 8)
	for _, t := range m.all() {
		if !translated(t.image.name) {
			continue
		}
		h := t.image.hypervisor()
		h.busy.Lock()
		for m.p.life.isAlive() {
			r, left := h.next(d, t.image)
			if !left {
				break
			}
			w.issue(m, t, r.Change, r.data)
		}
		h.busy.Unlock()
		if !bytes.Equal(h.holds(), t.image.content()) && m.p.life.isAlive() {
			w.fail("the simulation's own image %s/%s does not read as its guest left it", m.name, t.image.name)
		}
	}
}
