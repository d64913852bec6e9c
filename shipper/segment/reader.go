package segment

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Extent is a run of changed blocks. A data extent lies in one frame only.
type Extent struct {
	Range  extent.Range[extent.DiskBlock]
	Zero   bool // all zeros: Frame and Offset mean nothing
	Frame  int  // number of the frame that holds the blocks
	Offset int  // bytes into that frame's payload
}

// Reader reads a segment from anything that can be read at an offset: a file of the spool, or a log blob. It is safe for
// concurrent use if that is. It holds the index; everything else is read when it is asked for.
type Reader struct {
	r      io.ReaderAt
	head   Header
	trail  trailer
	frames []frameEntry
	data   []byte // tables of the index, encoded
	zeros  []byte
}

// tailGuess is how much of the end Open reads at once. The index of most segments is in it, and over a network the second
// read costs more than the bytes.
const tailGuess = 32 << 10

// Open reads and checks header, index and trailer of a segment of size bytes. Two reads as a rule, four at most. The errors are
// *Error around ErrMagic, ErrVersion, ErrChecksum, ErrTruncated or ErrMalformed, or around what r returned.
func Open(r io.ReaderAt, size int64) (*Reader, error) {
	sr := &Reader{r: r}
	n, err := sr.readHeader(size)
	if err != nil {
		return nil, err
	}
	if size%Alignment != 0 {
		return nil, bad(ErrTruncated, "trailer", size, "size %d is no multiple of %d", size, Alignment)
	}
	index, err := sr.readTail(size)
	if err != nil {
		return nil, err
	}
	if err := sr.parseIndex(index, int64(n)); err != nil {
		return nil, err
	}
	return sr, sr.checkExtents()
}

// Header returns what the segment is of.
func (r *Reader) Header() Header { return r.head }

// Size returns the bytes of the whole file.
func (r *Reader) Size() int64 { return r.trail.size }

// Frames returns the number of frames.
func (r *Reader) Frames() int { return len(r.frames) }

// PayloadBytes returns the bytes in all frames, uncompressed.
func (r *Reader) PayloadBytes() int64 { return r.trail.payload }

// Extents returns a new slice of all extents in the order of their blocks. A segment of scattered writes has one per block: All is
// the way to look at them without 48 bytes for each.
func (r *Reader) Extents() []Extent {
	list := make([]Extent, 0, len(r.data)/dataEntryLen+len(r.zeros)/zeroEntryLen)
	for e := range r.All() {
		list = append(list, e)
	}
	return list
}

// All yields all extents in the order of their blocks, from memory.
func (r *Reader) All() iter.Seq[Extent] {
	return func(yield func(Extent) bool) {
		zeros := r.zeros
		for i, f := range r.frames {
			off := 0
			for _, d := range r.frameExtents(f) {
				for ; len(zeros) > 0 && decodeZero(zeros).Start < d.Start; zeros = zeros[zeroEntryLen:] {
					if !yield(Extent{Range: decodeZero(zeros), Zero: true}) {
						return
					}
				}
				if !yield(Extent{Range: d, Frame: i, Offset: off}) {
					return
				}
				off += int(d.Bytes())
			}
		}
		for ; len(zeros) > 0; zeros = zeros[zeroEntryLen:] {
			if !yield(Extent{Range: decodeZero(zeros), Zero: true}) {
				return
			}
		}
	}
}

// Changes yields what a checksum table needs, in the order of the blocks: ranges with their checksums, nil for zeros. It reads the
// headers of the frames only. The slices may be kept. After an error nothing more comes.
func (r *Reader) Changes() iter.Seq2[checksum.Change, error] {
	return func(yield func(checksum.Change, error) bool) {
		at, sums := -1, []checksum.Sum(nil)
		for e := range r.All() {
			c := checksum.Change{Range: e.Range}
			if !e.Zero {
				if e.Frame != at {
					var err error
					if sums, err = r.Sums(e.Frame); err != nil {
						yield(checksum.Change{}, err)
						return
					}
					at = e.Frame
				}
				n := e.Range.Len()
				c.Sums, sums = sums[:n:n], sums[n:]
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// Sums reads the block checksums of frame i, in the order of its payload.
func (r *Reader) Sums(i int) ([]checksum.Sum, error) {
	f := r.frames[i]
	b := make([]byte, f.headerLen())
	if err := readFull(r.r, b, f.offset, part(i)); err != nil {
		return nil, err
	}
	if err := checkFrameHeader(b, f, r.extentBytes(f), part(i)); err != nil {
		return nil, err
	}
	return frameSums(make([]checksum.Sum, 0, f.blocks), b, f), nil
}

// Frame is the payload of some extents. Release gives its memory back; until then nobody else touches it.
type Frame struct {
	Extents []Extent
	Sums    []checksum.Sum // one per block of Payload
	Payload []byte
	buf     []byte
}

// Release returns the frame's memory to the pool; Payload must not be used afterwards. A frame that is merely dropped leaks
// nothing. Release may be called twice, not concurrently.
func (f *Frame) Release() {
	putBuffer(f.buf)
	f.buf, f.Payload = nil, nil
}

// Frame reads frame i with one read and verifies everything in it: its header, the stored bytes, and after decompression the
// checksum of every block.
func (r *Reader) Frame(i int) (*Frame, error) {
	f := r.frames[i]
	frame := &Frame{buf: getBuffer(f.length())}
	err := r.fill(frame, i, f)
	if err == nil {
		err = frame.verify(part(i), f.offset)
	}
	if err != nil {
		frame.Release()
		return nil, err
	}
	return frame, nil
}

// fill reads f into the frame's buffer, and decompresses it into another that takes the place of the first.
func (r *Reader) fill(frame *Frame, i int, f frameEntry) error {
	raw := frame.buf[:f.length()]
	if err := readFull(r.r, raw, f.offset, part(i)); err != nil {
		return err
	}
	head, stored := raw[:f.headerLen()], raw[f.headerLen():]
	if err := checkFrameHeader(head, f, r.extentBytes(f), part(i)); err != nil {
		return err
	}
	frame.Extents, frame.Payload = r.extentsOf(i), stored
	frame.Sums = frameSums(make([]checksum.Sum, 0, f.blocks), head, f)
	if f.codec == codecStored {
		if checksum.CombineBlocks(frame.Sums) != frameSum(head) {
			return bad(ErrMalformed, part(i), f.offset, "block checksums do not combine to the frame's")
		}
		return nil
	}
	if checksum.Of(stored) != frameSum(head) {
		return bad(ErrChecksum, part(i), f.offset, "compressed bytes")
	}
	compressed := frame.buf
	defer putBuffer(compressed)
	frame.buf = getBuffer(f.payload())
	frame.Payload = frame.buf[:f.payload()]
	if err := decompress(frame.Payload, stored); err != nil {
		return bad(ErrMalformed, part(i), f.offset, "zstd: %v", err)
	}
	return nil
}

func (f *Frame) verify(part string, off int64) error {
	n := 0
	for _, e := range f.Extents {
		for b := e.Range.Start; b < e.Range.End; b++ {
			if checksum.Block(f.Payload[n*extent.BlockSize:(n+1)*extent.BlockSize]) != f.Sums[n] {
				return bad(ErrChecksum, part, off, "disk block %d", b)
			}
			n++
		}
	}
	return nil
}

// Verify reads the whole segment and checks everything in it.
func (r *Reader) Verify() error {
	for i := range r.frames {
		f, err := r.Frame(i)
		if err != nil {
			return err
		}
		f.Release()
	}
	return nil
}

func (r *Reader) extentBytes(f frameEntry) []byte {
	return r.data[f.first*dataEntryLen : (f.first+int64(f.extents))*dataEntryLen]
}

// frameExtents yields the ranges of f with their number in it.
func (r *Reader) frameExtents(f frameEntry) iter.Seq2[int, extent.Range[extent.DiskBlock]] {
	return func(yield func(int, extent.Range[extent.DiskBlock]) bool) {
		b := r.extentBytes(f)
		for i := 0; i < f.extents && yield(i, decodeData(b[i*dataEntryLen:])); i++ {
		}
	}
}

func (r *Reader) extentsOf(i int) []Extent {
	list, off := make([]Extent, 0, r.frames[i].extents), 0
	for _, d := range r.frameExtents(r.frames[i]) {
		list = append(list, Extent{Range: d, Frame: i, Offset: off})
		off += int(d.Bytes())
	}
	return list
}

func part(i int) string { return fmt.Sprintf("frame %d", i) }

// readFull fills p or says why not; a file that ends too early is truncated.
func readFull(r io.ReaderAt, p []byte, off int64, part string) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF):
		return bad(ErrTruncated, part, off, "%d of %d bytes", n, len(p))
	case err == nil:
		err = io.ErrNoProgress
	}
	return &Error{Part: part, Offset: off, Err: err}
}
