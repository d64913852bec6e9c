package segment

import (
	"bytes"
	"runtime"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// repair makes the checksums of header, frame headers, index and trailer right where they can be found, so that the fuzzer gets behind them.
func repair(b []byte) {
	if len(b) < headerFixed+sumLen+trailerLen || len(b)%Alignment != 0 {
		return
	}
	t := b[len(b)-trailerLen:]
	n := uint64(le.Uint32(b[12:]))
	if n >= headerFixed+sumLen && n <= uint64(len(b)-trailerLen) {
		resum(b, int(n))
		copy(t[40:48], b[n-sumLen:n])
	}
	at, length := le.Uint64(t[16:]), le.Uint64(t[24:])
	if end := uint64(len(b)); at < end && length <= end-at && length >= indexFixed {
		index := b[at : at+length]
		frames := uint64(le.Uint32(index[4:]))
		for i := range min(frames, (length-indexFixed)/frameEntryLen) {
			repairFrame(b, index[indexFixed+i*frameEntryLen:])
		}
		le.PutUint64(t[32:], uint64(checksum.Of(index)))
	}
	le.PutUint64(t[56:], uint64(checksum.Of(t[:56])))
}

func repairFrame(b, entry []byte) {
	f, ok := decodeFrameEntry(entry)
	if !ok || f.offset < 0 || f.offset > int64(len(b)-f.length()) {
		return
	}
	h := b[f.offset:][:f.headerLen()]
	if f.codec == codecZstd {
		le.PutUint64(h[32:], uint64(checksum.Of(b[f.offset:][f.headerLen():f.length()])))
	}
	resum(h, len(h))
}

// FuzzOpen reads anything: no panic, one of our errors, and no memory that the file does not account for.
func FuzzOpen(f *testing.F) {
	for _, level := range levels {
		b := readGolden(f, "v1-"+string(level)+".hex")
		f.Add(b, false)
		f.Add(b, true)
	}
	f.Add([]byte{}, false)
	f.Fuzz(func(t *testing.T, b []byte, fix bool) {
		b = bytes.Clone(b)
		if fix {
			repair(b)
		}
		if err := openAndVerify(b); err != nil {
			if !known(err) {
				t.Fatalf("%T %v", err, err)
			}
			return
		}
		// What verifies is what a writer would have made of its content.
		r := reopen(t, b)
		again := reopen(t, rewrite(t, r))
		if !sameChanges(t, r, again) {
			t.Fatal("a second writing differs")
		}
	})
}

func rewrite(t *testing.T, r *Reader) []byte {
	var buf bytes.Buffer
	w := newWriter(t, &buf, r.Header(), Off)
	for e := range r.All() {
		if e.Zero {
			if err := w.Zero(e.Range); err != nil {
				t.Fatal(err)
			}
			continue
		}
		f, err := r.Frame(e.Frame)
		if err != nil {
			t.Fatal(err)
		}
		put(t, w, int64(e.Range.Start), f.Payload[e.Offset:][:e.Range.Bytes()])
		f.Release()
	}
	done(t, w, &buf)
	return buf.Bytes()
}

func sameChanges(t *testing.T, a, b *Reader) bool {
	collect := func(r *Reader) (map[extent.DiskBlock]checksum.Sum, extent.Set[extent.DiskBlock]) {
		sums, zeros := map[extent.DiskBlock]checksum.Sum{}, extent.Set[extent.DiskBlock]{}
		for c, err := range r.Changes() {
			if err != nil {
				t.Fatal(err)
			}
			if c.Sums == nil {
				zeros.Add(c.Range)
			}
			for i, s := range c.Sums {
				sums[c.Range.Start+extent.DiskBlock(i)] = s
			}
		}
		return sums, zeros
	}
	x, xz := collect(a)
	y, yz := collect(b)
	for k, v := range x {
		if y[k] != v {
			return false
		}
	}
	return len(x) == len(y) && xz.Blocks() == yz.Blocks()
}

// FuzzWriter writes what the fuzzer says, and reads it back.
func FuzzWriter(f *testing.F) {
	f.Add([]byte{1, 3, 0, 0, 2, 5, 1, 200}, uint8(1))
	f.Add([]byte{0, 255, 1, 255, 0, 255}, uint8(0))
	f.Add([]byte{2, 0, 0, 1, 1, 0}, uint8(4))
	f.Fuzz(func(t *testing.T, ops []byte, level uint8) {
		var buf bytes.Buffer
		w := newWriter(t, &buf, testHeader(1<<20), levels[int(level)%len(levels)])
		want, at := disk{}, int64(0)
		for ; len(ops) > 1 && at < 3000; ops = ops[2:] {
			n := int64(ops[1])
			switch ops[0] % 3 {
			case 0:
				p := pattern(int(ops[1]), int(n))
				put(t, w, at, p)
				for i := range n {
					want[extent.DiskBlock(at+i)] = p[i*block:][:block]
				}
			case 1:
				zero(t, w, at, n)
			}
			at += n
		}
		done(t, w, &buf)
		got, _ := readAll(t, reopen(t, buf.Bytes()))
		if len(got) != len(want) {
			t.Fatalf("%d blocks, want %d", len(got), len(want))
		}
		for b, p := range want {
			if !bytes.Equal(got[b], p) {
				t.Fatalf("block %d", b)
			}
		}
	})
}

// An index that claims more than the file holds is refused before anything is allocated for it.
func TestClaimsAllocateNothing(t *testing.T) {
	b := sample(t, Off)
	trailer := b[len(b)-trailerLen:]
	le.PutUint64(trailer[24:], 1<<40)
	le.PutUint64(trailer[56:], uint64(checksum.Of(trailer[:56])))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 100 {
		if err := openAndVerify(b); !known(err) {
			t.Fatal(err)
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 100*(64<<10) {
		t.Fatalf("%d bytes for 100 refusals", n)
	}
}

// A compressed frame that would grow past what its header says is refused by the decoder, not by memory running out.
func TestDecompressStopsAtThePayload(t *testing.T) {
	enc, err := encoders[Fastest].open()
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(make([]byte, MaxPayload), nil)
	out := make([]byte, block)
	if err := decompress(out, enc.EncodeAll(out, nil)); err != nil { // the decoder exists now
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 10 {
		if err := decompress(out, bomb); err == nil {
			t.Fatal("accepted")
		}
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Fatalf("%d bytes allocated for ten bombs", n)
	}
	if err := decompress(make([]byte, 2*block), enc.EncodeAll(make([]byte, block), nil)); err == nil {
		t.Fatal("accepted too little")
	}
}
