package segment

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

const block = extent.BlockSize

var levels = []Level{Off, Fastest, Default, Better, Best}

// disk is the oracle: what a sequence of changes leaves, by block.
type disk map[extent.DiskBlock][]byte

func testHeader(blocks int64) Header {
	return Header{
		VM: "web01", Disk: "os.vhd", Generation: 1, Epoch: 12, Previous: 10, VirtualSize: blocks * block,
		EpochUUID: [16]byte{0: 0xe0, 15: 1}, UUID: [16]byte{0: 0x5e, 15: 2},
	}
}

func dataRange(start, n int64) extent.Range[extent.DiskBlock] {
	return extent.Range[extent.DiskBlock]{Start: extent.DiskBlock(start), End: extent.DiskBlock(start + n)}
}

func newWriter(t testing.TB, w *bytes.Buffer, h Header, level Level) *Writer {
	t.Helper()
	sw, err := NewWriter(w, h, level)
	if err != nil {
		t.Fatal(err)
	}
	return sw
}

func put(t testing.TB, w *Writer, start int64, payload []byte) {
	t.Helper()
	if err := w.Data(extent.DiskBlock(start), payload, checksum.Blocks(nil, payload)); err != nil {
		t.Fatal(err)
	}
}

func zero(t testing.TB, w *Writer, start, n int64) {
	t.Helper()
	if err := w.Zero(dataRange(start, n)); err != nil {
		t.Fatal(err)
	}
}

// done closes w and checks what Info says about the file.
func done(t testing.TB, w *Writer, buf *bytes.Buffer) Info {
	t.Helper()
	info, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != int64(buf.Len()) || info.Size%Alignment != 0 {
		t.Fatalf("size %d, file of %d bytes", info.Size, buf.Len())
	}
	if sum := checksum.Of(buf.Bytes()); sum != info.Sum {
		t.Fatalf("checksum %016x, file has %016x", info.Sum, sum)
	}
	return info
}

func reopen(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// random returns n blocks; about half of them compress.
func random(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n*block)
	for i := int64(0); i < n; i++ {
		b := p[i*block : (i+1)*block]
		if rng.IntN(2) == 0 {
			for j := 0; j < len(b); j += 8 {
				le.PutUint64(b[j:], rng.Uint64())
			}
		} else {
			copy(b, bytes.Repeat([]byte{byte(rng.Uint32()), 7, 9}, 700))
		}
	}
	return p
}

// writeRandom fills w with a random mixture and returns what a reader must find.
func writeRandom(t *testing.T, rng *rand.Rand, w *Writer, blocks int64) (disk, []extent.Range[extent.DiskBlock]) {
	want, zeros := disk{}, []extent.Range[extent.DiskBlock]{}
	for at := int64(rng.IntN(3)); at < blocks; {
		n := min(1+rng.Int64N(1<<uint(rng.IntN(11))), blocks-at)
		if rng.IntN(4) == 0 {
			zero(t, w, at, n)
			zeros = append(zeros, dataRange(at, n))
		} else {
			p := random(rng, n)
			put(t, w, at, p)
			for i := range n {
				want[extent.DiskBlock(at+i)] = p[i*block : (i+1)*block]
			}
		}
		at += n + rng.Int64N(2)*rng.Int64N(5)
	}
	return want, zeros
}

// readAll reads every frame, and checks that extents, changes and frames say the same.
func readAll(t *testing.T, r *Reader) (disk, extent.Set[extent.DiskBlock]) {
	t.Helper()
	got, zeros := disk{}, extent.Set[extent.DiskBlock]{}
	frames := map[int]*Frame{}
	for _, e := range r.Extents() {
		if e.Zero {
			zeros.Add(e.Range)
			continue
		}
		f := frames[e.Frame]
		if f == nil {
			var err error
			if f, err = r.Frame(e.Frame); err != nil {
				t.Fatal(err)
			}
			frames[e.Frame] = f
		}
		if !slices.Contains(f.Extents, e) {
			t.Fatalf("extent %+v is not in its frame", e)
		}
		for b := e.Range.Start; b < e.Range.End; b++ {
			off := e.Offset + int(b-e.Range.Start)*block
			got[b] = f.Payload[off : off+block]
		}
	}
	for c, err := range r.Changes() {
		if err != nil {
			t.Fatal(err)
		}
		if c.Sums == nil && !zeros.Contains(c.Range) {
			t.Fatalf("change %v is not zero", c.Range)
		}
		for i, s := range c.Sums {
			if checksum.Block(got[c.Range.Start+extent.DiskBlock(i)]) != s {
				t.Fatalf("checksum of block %d", c.Range.Start+extent.DiskBlock(i))
			}
		}
	}
	return got, zeros
}

func TestRoundTrip(t *testing.T) {
	for seed := range uint64(5) {
		level := levels[seed]
		rng := rand.New(rand.NewPCG(seed, 1))
		t.Logf("seed %d level %s", seed, level)
		var buf bytes.Buffer
		h := testHeader(4000)
		w := newWriter(t, &buf, h, level)
		want, zeros := writeRandom(t, rng, w, 4000)
		info := done(t, w, &buf)
		r := reopen(t, buf.Bytes())
		if r.Header() != h || r.Size() != info.Size || r.PayloadBytes() != info.PayloadBytes {
			t.Fatalf("header %+v", r.Header())
		}
		got, gotZeros := readAll(t, r)
		if len(got) != len(want) || int64(len(want))*block != info.PayloadBytes {
			t.Fatalf("%d blocks, want %d", len(got), len(want))
		}
		for b, p := range want {
			if !bytes.Equal(got[b], p) {
				t.Fatalf("block %d differs", b)
			}
		}
		all := extent.Of(zeros...)
		if !slices.Equal(gotZeros.Ranges(), all.Ranges()) || info.ChangedBytes != info.PayloadBytes+all.Blocks()*block {
			t.Fatalf("zeros %v, want %v", gotZeros.Ranges(), zeros)
		}
		if err := r.Verify(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEmptySegment(t *testing.T) {
	var buf bytes.Buffer
	info := done(t, newWriter(t, &buf, testHeader(0), Fastest), &buf)
	r := reopen(t, buf.Bytes())
	if info.Size != Alignment || len(r.Extents()) != 0 || r.Frames() != 0 || r.Verify() != nil {
		t.Fatalf("%+v", info)
	}
}

func TestZeroExtentsOfAnyLength(t *testing.T) {
	var buf bytes.Buffer
	w := newWriter(t, &buf, testHeader(10), Off)
	zero(t, w, 3, 2)
	zero(t, w, 5, 1)               // a neighbour: one extent
	zero(t, w, 7, 1<<40)           // far beyond the disk: what a shrink cut off
	zero(t, w, 7+1<<40, 0)         // nothing
	zero(t, w, int64(maxBlock), 0) // the end of the world
	info := done(t, w, &buf)
	want := []Extent{{Range: dataRange(3, 3), Zero: true}, {Range: dataRange(7, 1<<40), Zero: true}}
	if got := reopen(t, buf.Bytes()).Extents(); !slices.Equal(got, want) {
		t.Fatalf("extents %+v", got)
	}
	if info.Size != Alignment || info.ChangedBytes != (3+1<<40)*block {
		t.Fatalf("%+v", info)
	}
}

func TestFramesAreCutAtFourMiB(t *testing.T) {
	var buf bytes.Buffer
	w := newWriter(t, &buf, testHeader(5000), Off)
	p := random(rand.New(rand.NewPCG(1, 1)), 2500)
	put(t, w, 10, p[:100*block])
	put(t, w, 110, p[100*block:]) // neighbours: as if it were one
	done(t, w, &buf)
	want := []Extent{
		{Range: dataRange(10, 1024)},
		{Range: dataRange(1034, 1024), Frame: 1},
		{Range: dataRange(2058, 452), Frame: 2},
	}
	if got := reopen(t, buf.Bytes()).Extents(); !slices.Equal(got, want) {
		t.Fatalf("extents %+v", got)
	}
}

func TestIncompressibleIsStored(t *testing.T) {
	noise := make([]byte, MaxPayload)
	rng := rand.New(rand.NewPCG(3, 3))
	for i := 0; i < len(noise); i += 8 {
		le.PutUint64(noise[i:], rng.Uint64())
	}
	for _, level := range levels {
		var buf bytes.Buffer
		w := newWriter(t, &buf, testHeader(4096), level)
		put(t, w, 0, noise)
		put(t, w, 1024, make([]byte, MaxPayload))
		info := done(t, w, &buf)
		if level == Off && info.StoredBytes != 2*MaxPayload || level != Off && (info.StoredBytes > MaxPayload+4096 || info.StoredBytes <= MaxPayload) {
			t.Errorf("%s: stored %d", level, info.StoredBytes)
		}
		r := reopen(t, buf.Bytes())
		if r.frames[0].codec != codecStored || (r.frames[1].codec == codecZstd) != (level != Off) {
			t.Errorf("%s: codecs %d %d", level, r.frames[0].codec, r.frames[1].codec)
		}
		if err := r.Verify(); err != nil {
			t.Error(level, err)
		}
	}
}

// The budget of DESIGN §8 is for the whole state disk; the segment's own part is the larger one. The worst case is every
// second block changed: one extent a block.
func TestOffWritesAtMostTwoPercentMore(t *testing.T) {
	p := random(rand.New(rand.NewPCG(4, 4)), 1)
	for _, step := range []int64{1, 2} {
		var buf bytes.Buffer
		w := newWriter(t, &buf, testHeader(20000), Off)
		for b := int64(0); b < 20000; b += step {
			put(t, w, b, p)
		}
		info := done(t, w, &buf)
		ratio := float64(info.Size) / float64(info.PayloadBytes)
		t.Logf("every %d. block: %.4f bytes per byte of payload", step, ratio)
		if ratio > 1.01 {
			t.Errorf("every %d. block: %.4f", step, ratio)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	sums := make([]checksum.Sum, 4)
	cases := []struct {
		name string
		do   func(w *Writer) error
		want error
	}{
		{"behind the cursor", func(w *Writer) error { return w.Data(4, make([]byte, block), sums[:1]) }, ErrOrder},
		{"zero behind the cursor", func(w *Writer) error { return w.Zero(dataRange(4, 3)) }, ErrOrder},
		{"negative", func(w *Writer) error { return w.Zero(dataRange(-1, 3)) }, ErrOrder},
		{"past the disk", func(w *Writer) error { return w.Data(9, make([]byte, 2*block), sums[:2]) }, ErrBounds},
		{"past the world", func(w *Writer) error { return w.Zero(dataRange(int64(maxBlock), 1)) }, ErrBounds},
		{"reversed", func(w *Writer) error { return w.Zero(extent.Range[extent.DiskBlock]{Start: 9, End: 8}) }, ErrBounds},
		{"half a block", func(w *Writer) error { return w.Data(6, make([]byte, block/2), sums[:1]) }, ErrPayload},
		{"a checksum too few", func(w *Writer) error { return w.Data(6, make([]byte, 2*block), sums[:1]) }, ErrPayload},
	}
	for _, c := range cases {
		var buf bytes.Buffer
		w := newWriter(t, &buf, testHeader(10), Off)
		put(t, w, 4, make([]byte, block))
		if err := c.do(w); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
		put(t, w, 5, make([]byte, block)) // a refused call changes nothing
		if info := done(t, w, &buf); info.PayloadBytes != 2*block || info.ChangedBytes != 2*block {
			t.Errorf("%s: %+v", c.name, info)
		}
		if err := w.Zero(dataRange(8, 1)); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

func TestNewWriterRefuses(t *testing.T) {
	long, negative := testHeader(1), testHeader(1)
	long.VM = string(make([]byte, MaxName+1))
	negative.VirtualSize = -1
	for _, c := range []struct {
		h     Header
		level Level
		want  error
	}{{long, Off, ErrName}, {negative, Off, ErrBounds}, {testHeader(1), "ultra", ErrLevel}, {testHeader(1), "", ErrLevel}} {
		if _, err := NewWriter(&bytes.Buffer{}, c.h, c.level); !errors.Is(err, c.want) {
			t.Errorf("%v, want %v", err, c.want)
		}
	}
}

func TestUUIDIsMadeWhenMissing(t *testing.T) {
	var a, b bytes.Buffer
	h := testHeader(1)
	h.UUID = [16]byte{}
	x, y := done(t, newWriter(t, &a, h, Off), &a), done(t, newWriter(t, &b, h, Off), &b)
	if x.UUID == y.UUID || x.UUID != uuid.UUID(reopen(t, a.Bytes()).Header().UUID).String() {
		t.Fatal(x.UUID, y.UUID)
	}
}

func TestLongNames(t *testing.T) {
	h := testHeader(1)
	h.VM, h.Disk = string(bytes.Repeat([]byte("v"), MaxName)), string(bytes.Repeat([]byte("d"), MaxName))
	var buf bytes.Buffer
	done(t, newWriter(t, &buf, h, Off), &buf)
	if reopen(t, buf.Bytes()).Header() != h {
		t.Fatal("header")
	}
}

// failing fails the k-th write, and every one after it.
type failing struct {
	k    int
	seen int
}

var errInjected = errors.New("injected")

func (f *failing) Write(p []byte) (int, error) {
	if f.seen++; f.seen >= f.k {
		return 0, errInjected
	}
	return len(p), nil
}

func TestWriteFailureIsSticky(t *testing.T) {
	payload := random(rand.New(rand.NewPCG(5, 5)), 1500)
	sums := checksum.Blocks(nil, payload)
	run := func(f *failing) error {
		w, err := NewWriter(f, testHeader(4000), Off)
		if err != nil {
			return err
		}
		err = w.Data(0, payload, sums)
		if err == nil {
			err = w.Data(1500, payload, sums)
		}
		if err != nil {
			if again := w.Zero(dataRange(3500, 1)); !errors.Is(again, errInjected) {
				t.Fatalf("after a failure: %v", again)
			}
		}
		_, closed := w.Close()
		if err != nil && !errors.Is(closed, errInjected) {
			t.Fatalf("close after a failure: %v", closed)
		}
		return closed
	}
	for k := 1; ; k++ {
		f := &failing{k: k}
		err := run(f)
		if f.seen < k {
			if err != nil || k < 8 {
				t.Fatalf("k %d: %v", k, err)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("write %d failed and nobody said so: %v", k, err)
		}
	}
}

func TestFramesInParallel(t *testing.T) {
	var buf bytes.Buffer
	w := newWriter(t, &buf, testHeader(6000), Fastest)
	put(t, w, 0, random(rand.New(rand.NewPCG(6, 6)), 6000))
	done(t, w, &buf)
	r := reopen(t, buf.Bytes())
	errs := make(chan error)
	for i := range r.Frames() * 2 {
		go func() {
			f, err := r.Frame(i % r.Frames())
			if err == nil {
				f.Release()
				f.Release()
			}
			errs <- err
		}()
	}
	for range r.Frames() * 2 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
