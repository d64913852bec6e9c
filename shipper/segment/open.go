package segment

import (
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// readHeader returns the header's length in the file.
func (r *Reader) readHeader(size int64) (int, error) {
	b := make([]byte, min(size, 1024))
	if err := readFull(r.r, b, 0, "header"); err != nil {
		return 0, err
	}
	if len(b) < headerFixed {
		if m := min(len(b), len(headerMagic)); string(b[:m]) != headerMagic[:m] {
			return 0, bad(ErrMagic, "header", 0, "found %q", b[:m])
		}
		return 0, bad(ErrTruncated, "header", 0, "%d bytes", len(b))
	}
	n, err := headerLength(b)
	if err != nil {
		return 0, err
	}
	if int64(n) > size {
		return 0, bad(ErrTruncated, "header", 0, "%d of %d bytes", size, n)
	}
	if n > len(b) {
		b = make([]byte, n)
		if err := readFull(r.r, b, 0, "header"); err != nil {
			return 0, err
		}
	}
	b = b[:n]
	if r.head, err = decodeHeader(b); err != nil {
		return 0, err
	}
	r.trail.headerSum = checksum.Sum(le.Uint64(b[n-sumLen:]))
	return n, nil
}

// readTail reads trailer, padding and index, and returns the index.
func (r *Reader) readTail(size int64) ([]byte, error) {
	tail := make([]byte, min(size, tailGuess))
	if err := readFull(r.r, tail, size-int64(len(tail)), "trailer"); err != nil {
		return nil, err
	}
	t, err := decodeTrailer(tail[len(tail)-trailerLen:], size)
	if err != nil {
		return nil, err
	}
	if t.headerSum != r.trail.headerSum {
		return nil, bad(ErrMalformed, "trailer", size-trailerLen, "belongs to another header")
	}
	r.trail = t
	if need := size - t.index; need > int64(len(tail)) {
		tail = make([]byte, need)
		if err := readFull(r.r, tail, t.index, "index"); err != nil {
			return nil, err
		}
	} else {
		tail = tail[int64(len(tail))-need:]
	}
	index, pad := tail[:t.indexLen:t.indexLen], tail[t.indexLen:len(tail)-trailerLen]
	if checksum.Of(index) != t.indexSum {
		return nil, bad(ErrChecksum, "index", t.index, "")
	}
	if !checksum.IsZero(pad) {
		return nil, bad(ErrChecksum, "padding", t.index+t.indexLen, "not zero")
	}
	return index, nil
}

// parseIndex takes the index apart and checks that the frames in it fill the file between first and the index.
func (r *Reader) parseIndex(b []byte, first int64) error {
	if string(b[:4]) != indexMagic {
		return bad(ErrMalformed, "index", r.trail.index, "found %q", b[:4])
	}
	rest := uint64(len(b) - indexFixed)
	frames, data, zeros := uint64(le.Uint32(b[4:])), le.Uint64(b[8:]), le.Uint64(b[16:])
	if frames > rest || data > rest || zeros > rest || frames*frameEntryLen+data*dataEntryLen+zeros*zeroEntryLen != rest {
		return bad(ErrMalformed, "index", r.trail.index, "%d frames, %d and %d extents in %d bytes", frames, data, zeros, len(b))
	}
	b = b[indexFixed:]
	r.data, r.zeros = b[frames*frameEntryLen:][:data*dataEntryLen], b[frames*frameEntryLen+data*dataEntryLen:]
	r.frames = make([]frameEntry, 0, frames)
	payload, extents := int64(0), int64(0)
	for i := range int(frames) {
		f, ok := decodeFrameEntry(b[i*frameEntryLen:])
		if !ok || f.offset != first || f.end() > r.trail.index {
			return bad(ErrMalformed, "index", r.trail.index, "entry of frame %d", i)
		}
		f.first, first = extents, f.end()
		extents += int64(f.extents)
		payload += int64(f.payload())
		r.frames = append(r.frames, f)
	}
	if first != r.trail.index || extents != int64(data) || payload != r.trail.payload {
		return bad(ErrMalformed, "index", r.trail.index, "frames do not add up")
	}
	return nil
}

// checkExtents walks all extents once: in order, disjoint, within bounds, as many blocks in a frame as the frame says.
func (r *Reader) checkExtents() error {
	for i, f := range r.frames {
		n := int64(0)
		for _, d := range r.frameExtents(f) {
			n += d.Len()
		}
		if n != int64(f.blocks) {
			return bad(ErrMalformed, "index", r.trail.index, "%d blocks in the extents of frame %d, %d in the frame", n, i, f.blocks)
		}
	}
	next, limit := extent.DiskBlock(0), r.head.diskBlocks()
	for e := range r.All() {
		end := limit
		if e.Zero {
			end = maxBlock
		}
		if e.Range.Start < next || e.Range.End <= e.Range.Start || e.Range.End > end {
			return bad(ErrMalformed, "index", r.trail.index, "extent %v after block %d", e.Range, next)
		}
		next = e.Range.End
	}
	return nil
}
