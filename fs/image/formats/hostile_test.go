package formats

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// counted counts the bytes that are read: a bound of them is a bound of the time that needs no clock.
type counted struct {
	io.ReaderAt
	bytes int64
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.bytes += int64(len(p))
	return c.ReaderAt.ReadAt(p, off)
}

// cost is what it took to open an image: bytes of memory, those given back included, and bytes read.
type cost struct{ memory, read int64 }

// open opens and probes an image, and demands an answer: the image, or an error that says what is wrong with it.
func open(t *testing.T, what string, r io.ReaderAt, size int64) (i *Image, c cost) {
	t.Helper()
	var before, after runtime.MemStats
	counter := &counted{ReaderAt: r}
	runtime.ReadMemStats(&before)
	i, err := Open(counter, size)
	runtime.ReadMemStats(&after)
	if e := (*image.Error)(nil); err != nil && (!errors.As(err, &e) || e.Field == "" || e.Expected == "") {
		t.Errorf("%s: %v", what, err)
	}
	if _, probed := Probe("a.vhd", r, size); err == nil && i.Link == nil && probed != nil {
		t.Errorf("%s opens, and is no image: %v", what, probed)
	}
	return i, cost{int64(after.TotalAlloc - before.TotalAlloc), counter.bytes}
}

// bases are good images of every kind, some of them qemu's.
func bases(t *testing.T) map[string][]byte {
	all := map[string][]byte{}
	for _, name := range []string{"vhd/testdata/qemu-dynamic", "vhd/testdata/qemu-empty", "vhdx/testdata/qemu-dynamic", "vhdx/testdata/qemu-fixed", "vhdx/testdata/new"} {
		all[name] = imagetest.Golden(t, "../"+name+".hex")
	}
	vhd, vhdx := imagetest.NewVHD(1<<20, 64<<10, 1, nil, ""), imagetest.NewVHDX(5<<20, 1<<20, 512, 1, nil, "")
	child, xchild := imagetest.NewVHD(1<<20, 64<<10, 2, vhd, "a.vhd"), imagetest.NewVHDX(5<<20, 1<<20, 512, 2, vhdx, "a.vhdx")
	for _, off := range []int64{0, 128 << 10, 512 << 10} {
		child.Write(off, make([]byte, 4096))
		xchild.Write(off, make([]byte, 4096))
	}
	all["a differencing VHD"], all["a differencing VHDX"] = child.File(), xchild.B
	return all
}

// few is what an answer may take beside the image's own: errors, numbers, a footer that is read twice.
const few = 64 << 10

// TestTruncatedImagesTakeNoMore: wherever a file ends, there is an answer at once, and it takes no more memory and no more
// reading than the whole one does.
func TestTruncatedImagesTakeNoMore(t *testing.T) {
	for name, b := range bases(t) {
		file := imagetest.Sparse{Size: int64(len(b)), Parts: map[int64][]byte{0: b}}
		i, whole := open(t, name, file, file.Size)
		if i == nil {
			t.Fatalf("%s does not open", name)
		}
		opened := 0
		for _, size := range cuts(int64(len(b))) {
			what := fmt.Sprintf("%s, its first %d bytes", name, size)
			cut := imagetest.Sparse{Size: size, Parts: map[int64][]byte{0: b[:size]}}
			i, c := open(t, what, cut, size)
			if c.memory > whole.memory+few || c.read > whole.read+few {
				t.Errorf("%s: %+v, the whole takes %+v", what, c, whole)
			}
			if i != nil {
				opened++
				read := make([]byte, 4096)
				if _, err := i.Disk.ReadAt(read, 0); i.Link == nil && err != nil {
					t.Errorf("%s opens, and its disk does not read: %v", what, err)
				}
			}
		}
		t.Logf("%s: %+v; %d of %d cuts open", name, whole, opened, len(cuts(int64(len(b)))))
	}
}

// cuts are sizes below n: all near the start, where the headers are, then around every boundary that a format knows.
func cuts(n int64) (sizes []int64) {
	for s := int64(0); s < n; {
		for _, at := range []int64{s - 1, s, s + 1} {
			if at >= 0 && at < n {
				sizes = append(sizes, at)
			}
		}
		switch {
		case s < 8<<10:
			s += 512
		case s < 512<<10:
			s += 16 << 10
		default:
			s += 256 << 10
		}
	}
	return sizes
}

// TestMemoryIsWhatTheHeaderClaims: a table of many entries takes so many bytes an entry, and nothing where the file ends
// before it.
func TestMemoryIsWhatTheHeaderClaims(t *testing.T) {
	const perEntry = 64
	vhd, vhdx := imagetest.NewVHD(2040<<30, 2<<20, 1, nil, ""), imagetest.NewVHDX(4000<<30, 32<<20, 512, 1, nil, "")
	for _, c := range []struct {
		name    string
		file    []byte
		headers int
		entries int64
	}{
		{"a dynamic VHD of 2,040 GiB", vhd.File(), 1536, 2040 << 30 / (2 << 20)},
		{"a VHDX of 4,000 GiB", vhdx.B, imagetest.VHDXTable, 4000 << 30 / (32 << 20)},
	} {
		i, whole := open(t, c.name, imagetest.Sparse{Size: int64(len(c.file)), Parts: map[int64][]byte{0: c.file}}, int64(len(c.file)))
		if i == nil || i.Table.Blocks() != c.entries {
			t.Fatalf("%s: %d entries, or none", c.name, c.entries)
		}
		if most := c.entries*perEntry + 1<<20; whole.memory > most {
			t.Errorf("%s takes %d bytes, at most %d", c.name, whole.memory, most)
		}
		_, cut := open(t, c.name, imagetest.Sparse{Size: int64(c.headers), Parts: map[int64][]byte{0: c.file[:c.headers]}}, int64(c.headers))
		if cut.memory > 1<<20 {
			t.Errorf("%s without its table takes %d bytes", c.name, cut.memory)
		}
		t.Logf("%s: %d bytes an entry; without its table %+v", c.name, whole.memory/c.entries, cut)
	}
}
