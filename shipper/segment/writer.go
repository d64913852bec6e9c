package segment

import (
	"fmt"
	"io"

	"github.com/google/uuid"
	"github.com/klauspost/compress/zstd"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Info is what a finished segment is known by.
type Info struct {
	UUID         string       // of the segment, in the usual text form
	Size         int64        // bytes of the file, a multiple of Alignment
	Sum          checksum.Sum // of the whole file
	ChangedBytes int64        // bytes of the disk that the extents cover, zero extents included
	PayloadBytes int64        // bytes in frames before compression
	StoredBytes  int64        // the same as stored
}

// Writer writes one segment from front to back. It is not safe for concurrent use. The first error of the writer below is
// sticky: every later call returns it, and the file is to be thrown away. Close must be called on success; a Writer that is
// merely dropped leaks nothing.
type Writer struct {
	w    io.Writer
	head Header
	enc  *zstd.Encoder // nil at level off
	err  error         // sticky

	size      int64        // bytes written
	sum       checksum.Sum // of those
	headerSum checksum.Sum
	next      extent.DiskBlock // the first block that may still be named
	frame     openFrame
	index     struct{ frames, data, zeros []byte }
	info      Info
}

// openFrame is the frame that Data fills.
type openFrame struct {
	buf     []byte // nil while there is none
	n       int    // bytes of payload in buf
	extents []byte // encoded
	last    extent.Range[extent.DiskBlock]
	sums    []checksum.Sum
}

// NewWriter writes the header to w. A header without a UUID gets a random one.
func NewWriter(w io.Writer, h Header, level Level) (*Writer, error) {
	if err := h.check(); err != nil {
		return nil, err
	}
	if err := level.Check(); err != nil {
		return nil, err
	}
	if h.UUID == ([16]byte{}) {
		h.UUID = uuid.New()
	}
	sw := &Writer{w: w, head: h}
	if level != Off {
		enc, err := encoders[level].open()
		if err != nil {
			return nil, fmt.Errorf("zstd encoder: %w", err)
		}
		sw.enc = enc
	}
	b := h.encode()
	sw.headerSum = checksum.Sum(le.Uint64(b[len(b)-sumLen:]))
	if sw.emit(b, checksum.Of(b)); sw.err != nil {
		return nil, sw.err
	}
	return sw, nil
}

// Data adds whole blocks from start on, with one checksum each. The blocks must lie after everything added before, and within
// the virtual disk rounded up to a block. The checksums are trusted, not computed again: they are what the capture compared
// with the table, and what every reader will hold the payload against. payload and sums may be reused after the return.
func (w *Writer) Data(start extent.DiskBlock, payload []byte, sums []checksum.Sum) error {
	n := extent.DiskBlock(len(sums))
	if len(payload) != len(sums)*extent.BlockSize {
		return fmt.Errorf("%w: %d bytes, %d checksums", ErrPayload, len(payload), len(sums))
	}
	if err := w.advance(extent.Range[extent.DiskBlock]{Start: start, End: start + n}, w.head.diskBlocks()); err != nil {
		return err
	}
	w.info.PayloadBytes += int64(len(payload))
	for len(payload) > 0 && w.err == nil {
		took := w.frame.add(start, payload, sums)
		start += extent.DiskBlock(took)
		sums, payload = sums[took:], payload[took*extent.BlockSize:]
		if w.frame.n == MaxPayload {
			w.flush()
		}
	}
	return w.err
}

// Zero adds blocks that are all zeros. A range may be of any length and may lie beyond the virtual disk: so a segment says what
// a shrink cut off. It must lie after everything added before.
func (w *Writer) Zero(r extent.Range[extent.DiskBlock]) error {
	if err := w.advance(r, maxBlock); err != nil || r.Empty() {
		return err
	}
	if z := w.index.zeros; len(z) > 0 {
		if last := decodeZero(z[len(z)-zeroEntryLen:]); last.End == r.Start {
			w.index.zeros, r.Start = z[:len(z)-zeroEntryLen], last.Start
		}
	}
	w.index.zeros = appendZero(w.index.zeros, r)
	return nil
}

// advance moves the cursor over r, or says why r may not come now.
func (w *Writer) advance(r extent.Range[extent.DiskBlock], limit extent.DiskBlock) error {
	switch {
	case w.err != nil:
		return w.err
	case r.Start < w.next:
		return fmt.Errorf("%w: %v, after block %d", ErrOrder, r, w.next)
	case r.End < r.Start || r.End > limit:
		return fmt.Errorf("%w: %v in a disk of %d blocks", ErrBounds, r, w.head.diskBlocks())
	}
	w.next = r.End
	w.info.ChangedBytes += r.Bytes()
	return nil
}

// Close writes what is left, index and trailer, and says what the file is. It does not sync: the spool does.
func (w *Writer) Close() (Info, error) {
	if w.err != nil {
		return Info{}, w.err
	}
	w.flush()
	putBuffer(w.frame.buf)
	w.frame.buf = nil
	w.finish()
	if w.err != nil {
		return Info{}, w.err
	}
	w.err = ErrClosed
	w.info.UUID, w.info.Size, w.info.Sum = uuid.UUID(w.head.UUID).String(), w.size, w.sum
	return w.info, nil
}

// finish writes index, padding and trailer.
func (w *Writer) finish() {
	x := &w.index
	head := make([]byte, 0, indexFixed)
	head = append(head, indexMagic...)
	head = le.AppendUint32(head, uint32(len(x.frames)/frameEntryLen))
	head = le.AppendUint64(head, uint64(len(x.data)/dataEntryLen))
	head = le.AppendUint64(head, uint64(len(x.zeros)/zeroEntryLen))
	t := trailer{index: w.size, headerSum: w.headerSum, payload: w.info.PayloadBytes}
	for _, part := range [][]byte{head, x.frames, x.data, x.zeros} {
		sum := checksum.Of(part)
		t.indexSum = checksum.Combine(t.indexSum, sum, int64(len(part)))
		t.indexLen += int64(len(part))
		w.emit(part, sum)
	}
	pad := padding(w.size)
	t.size = w.size + int64(pad) + trailerLen
	b := t.append(make([]byte, pad, pad+trailerLen))
	w.emit(b, checksum.Of(b))
}

// flush writes the open frame, if there is anything in it.
func (w *Writer) flush() {
	f := &w.frame
	if f.n == 0 || w.err != nil {
		return
	}
	payload := f.buf[:f.n]
	e := frameEntry{offset: w.size, stored: f.n, extents: len(f.extents) / dataEntryLen, blocks: len(f.sums), codec: codecStored}
	stored, sum := payload, checksum.CombineBlocks(f.sums)
	if w.enc != nil {
		spare := getBuffer(f.n)
		defer putBuffer(spare)
		if c, ok := compress(w.enc, spare, payload); ok {
			e.codec, e.stored = codecZstd, len(c)
			stored, sum = c, checksum.Of(c)
		}
	}
	// The header goes behind the payload, in the memory a full buffer has for it.
	head := appendFrameHeader(f.buf[f.n:f.n], e, f.extents, f.sums, sum)
	w.emit(head, checksum.Of(head))
	w.emit(stored, sum)
	w.index.frames = e.append(w.index.frames)
	w.index.data = append(w.index.data, f.extents...)
	w.info.StoredBytes += int64(e.stored)
	f.reset()
}

// emit writes p, whose checksum is known, and carries the file's checksum on without reading p again.
func (w *Writer) emit(p []byte, sum checksum.Sum) {
	if w.err != nil || len(p) == 0 {
		return
	}
	if _, err := w.w.Write(p); err != nil {
		w.err = fmt.Errorf("write segment at byte %d: %w", w.size, err)
		return
	}
	w.sum = checksum.Combine(w.sum, sum, int64(len(p)))
	w.size += int64(len(p))
}

// add takes as many blocks as fit and returns their number, at least 1.
func (f *openFrame) add(start extent.DiskBlock, payload []byte, sums []checksum.Sum) int {
	took := min(len(sums), maxFrameBlocks-len(f.sums))
	f.grow(f.n + took*extent.BlockSize)
	f.n += copy(f.buf[f.n:], payload[:took*extent.BlockSize])
	f.sums = append(f.sums, sums[:took]...)
	r := extent.Range[extent.DiskBlock]{Start: start, End: start + extent.DiskBlock(took)}
	if len(f.extents) > 0 && f.last.End == start {
		f.extents, r.Start = f.extents[:len(f.extents)-dataEntryLen], f.last.Start
	}
	f.extents, f.last = appendData(f.extents, r), r
	return took
}

// grow makes room for n bytes: what the first call needs, then a whole frame at once.
func (f *openFrame) grow(n int) {
	if n <= len(f.buf) {
		return
	}
	if f.buf != nil {
		n = frameBuffer
	}
	b := getBuffer(n)
	copy(b, f.buf[:f.n])
	putBuffer(f.buf)
	f.buf = b
}

func (f *openFrame) reset() { f.n, f.extents, f.sums = 0, f.extents[:0], f.sums[:0] }
