package segment

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// sample is small, with everything in it: two extents in a frame, a zero extent between, one at the end, two frames.
func sample(t testing.TB, level Level) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := newWriter(t, &buf, testHeader(16), level)
	put(t, w, 1, pattern(1, 2))
	zero(t, w, 4, 3)
	put(t, w, 8, pattern(8, 1))
	w.flush()
	put(t, w, 9, pattern(9, 1))
	zero(t, w, 20, 1000)
	done(t, w, &buf)
	return buf.Bytes()
}

// pattern is the content of golden blocks: compressible, and different in each.
func pattern(first, n int) []byte {
	p := make([]byte, n*block)
	for i := range p {
		p[i] = byte(first + i/block + i%block/16)
	}
	return p
}

func openAndVerify(b []byte) error {
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	for _, err := range r.Changes() {
		if err != nil {
			return err
		}
	}
	return r.Verify()
}

func known(err error) bool {
	var e *Error
	for _, s := range []error{ErrMagic, ErrVersion, ErrChecksum, ErrTruncated, ErrMalformed} {
		if errors.Is(err, s) {
			return errors.As(err, &e)
		}
	}
	return false
}

func TestEveryFlippedBitIsFound(t *testing.T) {
	for _, level := range []Level{Off, Fastest} {
		b := sample(t, level)
		for i := range b {
			if i > 1000 && i < len(b)-1000 && i%13 != 0 {
				continue // payload, for the most part
			}
			b[i] ^= 1 << (i % 8)
			if err := openAndVerify(b); !known(err) {
				t.Fatalf("%s: bit flipped in byte %d of %d: %v", level, i, len(b), err)
			}
			b[i] ^= 1 << (i % 8)
		}
		if err := openAndVerify(b); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEveryTruncationIsTruncated(t *testing.T) {
	b := sample(t, Off)
	for n := range b {
		if err := openAndVerify(b[:n]); !errors.Is(err, ErrTruncated) {
			t.Fatalf("%d of %d bytes: %v", n, len(b), err)
		}
	}
	longer := append(bytes.Clone(b), make([]byte, Alignment)...)
	if err := openAndVerify(longer); !errors.Is(err, ErrTruncated) {
		t.Fatalf("longer: %v", err)
	}
	if _, err := Open(bytes.NewReader(b[:len(b)-1]), int64(len(b))); !errors.Is(err, ErrTruncated) {
		t.Fatalf("shorter than said: %v", err)
	}
}

// resum sets the checksum at the end of b[:n] right again.
func resum(b []byte, n int) { le.PutUint64(b[n-sumLen:], uint64(checksum.Of(b[:n-sumLen]))) }

func TestErrorsAreDistinct(t *testing.T) {
	headerLen := func(b []byte) int { return int(le.Uint32(b[12:])) }
	cases := []struct {
		name  string
		spoil func(b []byte)
		want  error
	}{
		{"magic", func(b []byte) { b[0] = 'X' }, ErrMagic},
		{"newer version", func(b []byte) { le.PutUint16(b[8:], Version+1); resum(b, headerLen(b)) }, ErrVersion},
		{"newer version with another checksum", func(b []byte) { le.PutUint16(b[8:], Version+1) }, ErrVersion},
		{"version 0", func(b []byte) { le.PutUint16(b[8:], 0); resum(b, headerLen(b)) }, ErrMalformed},
		{"header flags", func(b []byte) { b[10] = 1; resum(b, headerLen(b)) }, ErrMalformed},
		{"header length", func(b []byte) { le.PutUint32(b[12:], 1<<31) }, ErrMalformed},
		{"name length", func(b []byte) { le.PutUint16(b[80:], 4000); resum(b, headerLen(b)) }, ErrMalformed},
		{"virtual size", func(b []byte) { b[79] = 0x80; resum(b, headerLen(b)) }, ErrMalformed},
		{"header", func(b []byte) { b[16]++ }, ErrChecksum},
		{"another header", func(b []byte) { b[16]++; resum(b, headerLen(b)) }, ErrMalformed},
		{"trailer magic", func(b []byte) { b[len(b)-trailerLen] = 'X' }, ErrTruncated},
		{"trailer", func(b []byte) { b[len(b)-1]++ }, ErrChecksum},
		{"index", func(b []byte) { b[le.Uint64(b[len(b)-trailerLen+16:])+9]++ }, ErrChecksum},
	}
	for _, c := range cases {
		b := sample(t, Off)
		c.spoil(b)
		if err := openAndVerify(b); !errors.Is(err, c.want) || !known(err) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// forge applies spoil to the index and makes every checksum above it right again: what is refused now is refused for what it says.
func forge(b []byte, spoil func(index []byte)) []byte {
	b = bytes.Clone(b)
	t := b[len(b)-trailerLen:]
	index := b[le.Uint64(t[16:]):][:le.Uint64(t[24:])]
	spoil(index)
	le.PutUint64(t[32:], uint64(checksum.Of(index)))
	le.PutUint64(t[56:], uint64(checksum.Of(t[:56])))
	return b
}

func TestForgedIndexIsMalformed(t *testing.T) {
	const frame0, frame1 = indexFixed, indexFixed + frameEntryLen
	const data0 = indexFixed + 2*frameEntryLen
	const data2, zero0 = data0 + 2*dataEntryLen, data0 + 3*dataEntryLen
	put32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	put64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	cases := map[string]func([]byte){
		"magic":                  func(b []byte) { b[0] = 'X' },
		"frames":                 put32(4, 1<<31),
		"data extents":           put64(8, 1<<63),
		"zero extents":           put64(16, 1<<62),
		"frame offset":           put64(frame1, 7),
		"frame beyond the index": put32(frame1+8, 1<<20),
		"no extents":             put32(frame0+12, 0),
		"more extents":           put32(frame0+12, 3),
		"no blocks":              put32(frame0+16, 0),
		"too many blocks":        put32(frame0+16, maxFrameBlocks+1),
		"codec":                  put32(frame0+20, 2),
		"codec of stored":        put32(frame0+20, codecZstd),
		"extent order":           put64(data2, 0),
		"extent past the disk":   put64(data2, 16),
		"extent length":          put32(data0+8, 3),
		"empty extent":           put32(data0+8, 0),
		"zero over data":         put64(zero0, 2),
		"zero overflow":          put64(zero0+8, 1<<63-1),
		"zero negative":          put64(zero0, 1<<63),
	}
	b := sample(t, Off)
	for name, spoil := range cases {
		if err := openAndVerify(forge(b, spoil)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := openAndVerify(forge(b, func([]byte) {})); err != nil {
		t.Fatal(err)
	}
}

// A frame whose header agrees with itself but not with the index, or whose payload does not decompress, is malformed.
func TestForgedFrameIsMalformed(t *testing.T) {
	spoilHeader := func(f frameEntry, spoil func(h []byte)) func([]byte) {
		return func(b []byte) {
			h := b[f.offset:][:f.headerLen()]
			spoil(h)
			resum(h, len(h))
		}
	}
	for _, level := range []Level{Off, Fastest} {
		b := sample(t, level)
		f := reopen(t, b).frames[0]
		stored := func(b []byte) []byte { return b[f.offset+int64(f.headerLen()):][:f.stored] }
		cases := map[string]func([]byte){
			"magic":  spoilHeader(f, func(h []byte) { h[0] = 'X' }),
			"extent": spoilHeader(f, func(h []byte) { h[frameFixed]++ }),
			"offset": spoilHeader(f, func(h []byte) { h[24]++ }),
			"blocks": spoilHeader(f, func(h []byte) { h[16]++ }),
			"payload": func(b []byte) {
				p := stored(b)
				p[0] ^= 0xff
				spoilHeader(f, func(h []byte) { le.PutUint64(h[32:], uint64(checksum.Of(p))) })(b)
			},
		}
		for name, spoil := range cases {
			c := bytes.Clone(b)
			spoil(c)
			if err := openAndVerify(c); !errors.Is(err, ErrMalformed) {
				t.Errorf("%s, %s: %v", level, name, err)
			}
		}
	}
}

// What zstd gives back is held against the block checksums, too.
func TestWrongBlockBehindZstdIsAChecksumError(t *testing.T) {
	var buf bytes.Buffer
	w := newWriter(t, &buf, testHeader(4), Fastest)
	p := pattern(0, 2)
	sums := checksum.Blocks(nil, p)
	sums[1]++
	if err := w.Data(0, p, sums); err != nil {
		t.Fatal(err)
	}
	done(t, w, &buf)
	var e *Error
	if err := openAndVerify(buf.Bytes()); !errors.Is(err, ErrChecksum) || !errors.As(err, &e) || e.Detail != "disk block 1" {
		t.Fatal(err)
	}
}

type reader func(p []byte, off int64) (int, error)

func (r reader) ReadAt(p []byte, off int64) (int, error) { return r(p, off) }

// Fail the k-th read, for every k: the error comes out as it is, and is not called corruption.
func TestReadErrorsComeThrough(t *testing.T) {
	var buf bytes.Buffer
	h := testHeader(200000)
	h.VM = string(make([]byte, MaxName)) // a header that takes two reads
	w := newWriter(t, &buf, h, Fastest)
	p := random(rand.New(rand.NewPCG(7, 7)), 1)
	for b := int64(0); b < 6000; b += 2 { // an index that takes two reads
		put(t, w, b, p)
	}
	done(t, w, &buf)
	for _, injected := range []error{errInjected, io.EOF, nil} {
		for k := 1; ; k++ {
			n := 0
			err := verifyFrom(reader(func(p []byte, off int64) (int, error) {
				if n++; n == k {
					return 0, injected
				}
				return bytes.NewReader(buf.Bytes()).ReadAt(p, off)
			}), int64(buf.Len()))
			if n < k {
				if err != nil || k < 8 {
					t.Fatal(k, err)
				}
				break
			}
			want := injected
			switch injected {
			case io.EOF:
				want = ErrTruncated
			case nil:
				want = io.ErrNoProgress
			}
			if !errors.Is(err, want) {
				t.Fatalf("read %d: %v, want %v", k, err, want)
			}
		}
	}
}

func verifyFrom(r io.ReaderAt, size int64) error {
	sr, err := Open(r, size)
	if err != nil {
		return err
	}
	for _, err := range sr.Changes() {
		if err != nil {
			return err
		}
	}
	return sr.Verify()
}

func TestChangesStopWhenTold(t *testing.T) {
	r := reopen(t, sample(t, Off))
	for n := range 6 {
		seen := 0
		for range r.Changes() {
			if seen++; seen > n {
				break
			}
		}
		if seen != min(n+1, len(r.Extents())) {
			t.Fatalf("%d of %d", seen, n)
		}
	}
	var first extent.DiskBlock = -1
	for e := range r.All() {
		if e.Range.Start <= first {
			t.Fatal("order")
		}
		first = e.Range.Start
	}
}
