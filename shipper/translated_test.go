package shipper

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"path"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/journal"
)

// comparedSource is a disk and its image, as a comparison takes them.
type comparedSource struct {
	*journal.Disk
	image *modelImage
}

func (c comparedSource) ReadAt(p []byte, off int64) (int, error) { return c.image.ReadAt(p, off) }

// readTranslated is the virtual disk of an image file as the readers of the formats have it (they are held against qemu
// elsewhere); nil if the file contradicts itself just now: then no point may have it.
func readTranslated(file []byte) []byte {
	i, err := formats.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil
	}
	disk := make([]byte, i.Info.VirtualSize)
	if n, err := i.Disk.ReadAt(disk, 0); n != len(disk) || err != nil && err != io.EOF {
		return nil
	}
	return disk
}

// hypervisor writes to a translated image. What an operation changes in the file it
// writes sector by sector in any order, each write tracked: data before table and
// table before data, and everything may happen between two of them.
type hypervisor struct {
	name  string
	image writer
	disk  []byte // what the disk holds when no step is left
	most  int64  // bytes
	steps []step
}

// step is one write to the file.
type step struct {
	off  int64
	data []byte
}

// writer is an image that its format's writer of fs/image/imagetest makes.
type writer interface {
	file() []byte
	blockSize() int64
	write(off int64, data []byte) // whole sectors
	move(block int64)
	at(block int64) int64        // where its data lies in the file, 0: nowhere
	place(block int64, at int64) // it lies there from now on; 0: nowhere, its content is zeros
	resize(size int64)
}

type vhdWriter struct{ *imagetest.VHD }

const vhdTableAt = 512 + 1024 // imagetest's

func (w vhdWriter) file() []byte                 { return w.File() }
func (w vhdWriter) blockSize() int64             { return w.BlockSize }
func (w vhdWriter) write(off int64, data []byte) { w.Write(off, data) }
func (w vhdWriter) move(block int64)             { w.Move(block) }
func (w vhdWriter) at(block int64) int64 {
	if s := binary.BigEndian.Uint32(w.B[vhdTableAt+4*block:]); s != 0xffffffff {
		return int64(s) * 512
	}
	return 0
}

func (w vhdWriter) place(block, at int64) {
	s := uint32(0xffffffff)
	if at != 0 {
		s = uint32(at / 512)
	}
	binary.BigEndian.PutUint32(w.B[vhdTableAt+4*block:], s)
}

func (w vhdWriter) resize(size int64) {
	binary.BigEndian.PutUint64(w.Footer[48:], uint64(size))
	w.Virtual = size
	w.Seal(w.B[512:][:1024])
}

type vhdxWriter struct{ *imagetest.VHDX }

func (w vhdxWriter) file() []byte                 { return bytes.Clone(w.B) }
func (w vhdxWriter) blockSize() int64             { return w.BlockSize }
func (w vhdxWriter) write(off int64, data []byte) { w.Write(off, data) }
func (w vhdxWriter) move(block int64)             { w.Move(block) }
func (w vhdxWriter) at(block int64) int64 {
	if state, at := w.Get(block); state == 6 {
		return at
	}
	return 0
}

func (w vhdxWriter) place(block, at int64) {
	if at == 0 {
		w.Set(block, 2, 0)
		return
	}
	w.Set(block, 6, at)
}

func (w vhdxWriter) resize(size int64) {
	w.Virtual = size
	binary.LittleEndian.PutUint64(w.B[imagetest.VHDXMetadata+64*kib+8:], uint64(size))
}

// newHypervisor makes a disk of size bytes that may grow to most.
func newHypervisor(t testing.TB, name string, size, most int64) (*hypervisor, *modelImage) {
	t.Helper()
	h := &hypervisor{name: name, disk: make([]byte, size), most: most}
	if path.Ext(name) == ".vhdx" {
		h.image = vhdxWriter{imagetest.NewVHDX(most, mib, 512, 1, nil, "")}
	} else {
		h.image = vhdWriter{imagetest.NewVHD(most, 64*kib, 1, nil, "")}
	}
	h.image.resize(size)
	m := &modelImage{name: name, translated: true}
	m.mu.data = h.image.file()
	if got := m.bytes(); len(got) != int(size) {
		t.Fatalf("a new image of %d bytes has %d", size, len(got))
	}
	return h, m
}

// begin turns what the writer changed into steps.
func (h *hypervisor) begin(r *rig, rng *rand.Rand) {
	was, now := r.images[h.name].content(), h.image.file()
	differs := func(at int) bool {
		return at >= len(was) || !bytes.Equal(was[at:min(at+512, len(was))], now[at:at+512])
	}
	for at := 0; at < len(now); {
		if !differs(at) {
			at += 512
			continue
		}
		start, most := at, 512*(1+rng.IntN(100))
		for at < len(now) && at-start < most && differs(at) {
			at += 512
		}
		h.steps = append(h.steps, step{int64(start), now[start:at]})
	}
	rng.Shuffle(len(h.steps), func(i, k int) { h.steps[i], h.steps[k] = h.steps[k], h.steps[i] })
}

// do takes n steps, all if n is negative; then the disk is what it should be.
func (h *hypervisor) do(r *rig, n int) {
	r.t.Helper()
	for ; n != 0 && len(h.steps) > 0; n-- {
		s := h.steps[0]
		h.steps = h.steps[1:]
		r.write(h.name, s.off, s.data...)
	}
	if len(h.steps) > 0 {
		return
	}
	if diff := firstDifference(r.images[h.name].bytes(), h.disk); diff != "" {
		r.t.Fatalf("the test's image %s: %s", h.name, diff)
	}
}

// put writes whole sectors.
func (h *hypervisor) put(off int64, data []byte) {
	h.image.write(off, data)
	copy(h.disk[off:], data)
}

// drop makes a block zeros by its entry alone.
func (h *hypervisor) drop(block int64) {
	h.image.place(block, 0)
	size := h.image.blockSize()
	clear(h.disk[min(block*size, int64(len(h.disk))):min((block+1)*size, int64(len(h.disk)))])
}

// swap exchanges the places of two blocks in the table, and nothing else changes.
func (h *hypervisor) swap(a, b int64) {
	x, y := h.image.at(a), h.image.at(b)
	h.image.place(a, y)
	h.image.place(b, x)
	size := h.image.blockSize()
	at, bt := h.disk[a*size:(a+1)*size], h.disk[b*size:(b+1)*size]
	was := bytes.Clone(at)
	copy(at, bt)
	copy(bt, was)
}

func (h *hypervisor) resize(size int64) {
	h.image.resize(size)
	if was := int64(len(h.disk)); size < was {
		h.disk = h.disk[:size:size]
	} else {
		h.disk = append(h.disk, make([]byte, size-was)...)
		for b := was / h.image.blockSize(); b*h.image.blockSize() < size; b++ { // as a hypervisor would
			if b*h.image.blockSize() >= was {
				h.image.place(b, 0)
			}
		}
		if rest := was % h.image.blockSize(); rest > 0 && h.image.at(was/h.image.blockSize()) != 0 {
			h.image.write(was, make([]byte, min(h.image.blockSize()-rest, size-was)))
		}
	}
}

// change begins one random operation.
func (h *hypervisor) change(r *rig, rng *rand.Rand, value byte) {
	h.do(r, -1)
	size, block := int64(len(h.disk)), h.image.blockSize()
	whole := size / block
	switch n := rng.IntN(12); {
	case n < 2 && whole > 0:
		h.drop(rng.Int64N(whole))
	case n < 4 && whole > 0:
		h.image.move(rng.Int64N(whole))
	case n < 6 && whole > 0:
		h.swap(rng.Int64N(whole), rng.Int64N(whole))
	case n < 7:
		h.resize(512 * (1 + rng.Int64N(h.most/512)))
	default:
		off := rng.Int64N(size/512) * 512
		n := min(size-off, []int64{512, 8 * kib, 80 * kib, 600 * kib}[rng.IntN(4)])
		data := bytes.Repeat([]byte{value}, int(n))
		if rng.IntN(5) == 0 {
			clear(data)
		}
		h.put(off, data)
	}
	h.begin(r, rng)
}
