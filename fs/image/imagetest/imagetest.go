// Package imagetest holds every reader of a translated image format against two things: what qemu reads, and what the
// differences between two moments of one image must name. It is for tests.
package imagetest

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Open opens an image that needs no parent.
type Open func(r io.ReaderAt, size int64) (*image.Table, *image.Disk, error)

// NeedTool skips the test, with the reason, if a program is not installed.
func NeedTool(t testing.TB, name string) {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("%s is not installed: %v", name, err)
	}
}

// Run runs a program and returns what it printed; that it fails is fatal.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// QEMU is an image that qemu makes and writes.
type QEMU struct {
	Driver  string // vpc or vhdx
	Options string // of qemu-img create -o
	Size    int64  // bytes asked for
	Open    Open
}

// Check makes the image and changes it rounds times with ops random writes, zeroes and discards each. After each round it
// demands that our reader has qemu's bytes, that the two mappings agree, and that Changed names every block that differs.
func (q QEMU) Check(t *testing.T, seed uint64, rounds, ops int) {
	t.Helper()
	NeedTool(t, "qemu-img")
	NeedTool(t, "qemu-io")
	dir := t.TempDir()
	name := filepath.Join(dir, "disk.img")
	Run(t, "qemu-img", "create", "-q", "-f", q.Driver, "-o", q.Options, name, fmt.Sprint(q.Size))
	rnd := rand.New(rand.NewPCG(seed, 0))
	was := q.load(t, name)
	for round := range rounds {
		q.change(t, name, rnd, ops, was.table.VirtualSize)
		now := q.load(t, name)
		raw := filepath.Join(dir, "disk.raw")
		Run(t, "qemu-img", "convert", "-t", "unsafe", "-f", q.Driver, "-O", "raw", name, raw)
		want, err := os.ReadFile(raw)
		if err != nil {
			t.Fatal(err)
		}
		if at := firstDifference(now.disk, want); at >= 0 {
			t.Fatalf("seed %d, round %d: qemu reads something else at byte %d; sizes %d and %d", seed, round, at, len(now.disk), len(want))
		}
		CheckMappings(t, now.table)
		CheckChanged(t, fmt.Sprintf("seed %d, round %d", seed, round), was.table, now.table, was.file, now.file, was.disk, now.disk)
		was = now
	}
}

type moment struct {
	table      *image.Table
	file, disk []byte
}

func (q QEMU) load(t *testing.T, name string) moment {
	t.Helper()
	file, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	table, disk, err := q.Open(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return moment{table, file, ReadAll(t, disk)}
}

func (q QEMU) change(t *testing.T, name string, rnd *rand.Rand, ops int, size int64) {
	t.Helper()
	args := []string{"-f", q.Driver, "-d", "unmap", "-t", "unsafe"}
	for range ops {
		n := (rnd.Int64N(128) + 1) * 512
		if rnd.IntN(4) == 0 {
			n = (rnd.Int64N(4000) + 1) * 512
		}
		off := rnd.Int64N(size-min(n, size)+1) / 512 * 512
		n = min(n, size-off)
		switch rnd.IntN(6) {
		case 0:
			args = append(args, "-c", fmt.Sprintf("write -q -z %d %d", off, n))
		case 1:
			args = append(args, "-c", fmt.Sprintf("discard -q %d %d", off, n))
		default:
			args = append(args, "-c", fmt.Sprintf("write -q -P %d %d %d", rnd.IntN(255)+1, off, n))
		}
	}
	Run(t, "qemu-io", append(args, name)...)
}

// ReadAll reads a whole virtual disk.
func ReadAll(t testing.TB, d image.Parent) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if n, err := d.ReadAt(b, 0); int64(n) != d.Size() || err != nil && err != io.EOF {
		t.Fatalf("reading the disk: %d of %d bytes, %v", n, d.Size(), err)
	}
	return b
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	if len(a) != len(b) {
		return min(len(a), len(b))
	}
	return -1
}

// Differing returns the blocks in which two byte strings differ; where one has ended, the other's blocks.
func Differing[B extent.Block](a, b []byte) extent.Set[B] {
	var s extent.Set[B]
	for off := 0; off < max(len(a), len(b)); off += extent.BlockSize {
		if !bytes.Equal(block(a, off), block(b, off)) {
			s.Add(extent.Cover[B](int64(off), 1))
		}
	}
	return s
}

func block(b []byte, off int) []byte { return b[min(off, len(b)):min(off+extent.BlockSize, len(b))] }

// CheckChanged demands that Changed, told which blocks of the file differ, names all blocks of the disk that differ.
func CheckChanged(t testing.TB, what string, was, now *image.Table, fileWas, fileNow, diskWas, diskNow []byte) {
	t.Helper()
	got := now.Changed(was, Differing[extent.FileBlock](fileWas, fileNow))
	want := Differing[extent.DiskBlock](diskWas, diskNow)
	want = want.Intersect(extent.Of(now.Disk()))
	if missed := want.Subtract(got); !missed.Empty() {
		t.Fatalf("%s: missed %v", what, missed.Ranges())
	}
	if beyond := got.Subtract(extent.Of(now.Disk())); !beyond.Empty() {
		t.Fatalf("%s: past the end: %v", what, beyond.Ranges())
	}
}

// CheckMappings demands that extents cover the disk once, that both mappings lead back where they came from, and that
// nothing of the metadata is taken for data.
func CheckMappings(t testing.TB, table *image.Table) {
	t.Helper()
	at, fromFile := image.DiskOffset(0), int64(0)
	var data extent.Set[extent.FileBlock]
	for e := range table.Extents(0, table.VirtualSize) {
		if e.Disk != at || e.Len <= 0 {
			t.Fatalf("an extent at %d of %d bytes, expected at %d", e.Disk, e.Len, at)
		}
		at += image.DiskOffset(e.Len)
		if e.From != image.FromFile {
			continue
		}
		fromFile += e.Len
		disk := extent.Cover[extent.DiskBlock](int64(e.Disk), e.Len)
		files := extent.Cover[extent.FileBlock](int64(e.File), e.Len)
		data.Add(files)
		if !table.DiskBlocks(extent.Of(files)).Contains(disk) {
			t.Fatalf("file blocks %v carry disk blocks %v, the mapping says %v", files, disk, table.DiskBlocks(extent.Of(files)).Ranges())
		}
		if !table.FileBlocks(disk).Contains(files) {
			t.Fatalf("disk blocks %v lie in %v, the mapping says %v", disk, files, table.FileBlocks(disk).Ranges())
		}
	}
	if int64(at) != table.VirtualSize || fromFile != table.Allocated() {
		t.Fatalf("extents end at %d of %d; %d bytes from the file, allocated %d", at, table.VirtualSize, fromFile, table.Allocated())
	}
	if other := table.FileBlocks(table.Disk()).Subtract(data).Subtract(table.Metadata()); !other.Empty() {
		t.Fatalf("a read takes %v, neither data nor metadata", other.Ranges())
	}
}
