package stamp

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
)

// Image is an image read into what the oracle needs of it: a few bytes a block.
type Image struct{ blocks []version }

// version is the content of a block. id is 0 without a good stamp.
type version struct {
	id    uint64
	hash  uint64
	wrong string // a stamp that lies or is torn; only wrong if the content is not that of the beginning
}

// seed makes hashes comparable within this process, which is where they stay.
var seed = maphash.MakeSeed()

// readAhead is how many bytes are read at a time.
const readAhead = 1 << 20

// ReadImage reads size bytes, a multiple of BlockSize, of disk number disk.
func ReadImage(r io.ReaderAt, size int64, disk int) (Image, error) {
	if size%BlockSize != 0 {
		return Image{}, fmt.Errorf("image of %d bytes: not a multiple of %d", size, BlockSize)
	}
	im := Image{blocks: make([]version, 0, size/BlockSize)}
	buf := make([]byte, readAhead)
	for off := int64(0); off < size; off += readAhead {
		p := buf[:min(readAhead, size-off)]
		if n, err := r.ReadAt(p, off); n < len(p) {
			return Image{}, fmt.Errorf("read %d bytes at %d of disk %d: %w", len(p), off, disk, err)
		}
		for ; len(p) > 0; p = p[BlockSize:] {
			im.blocks = append(im.blocks, judge(p[:BlockSize], disk, int64(len(im.blocks))))
		}
	}
	return im, nil
}

func judge(p []byte, disk int, block int64) version {
	v := version{hash: maphash.Bytes(seed, p)}
	s, err := Parse(p)
	switch {
	case errors.Is(err, ErrNone):
	case err != nil:
		v.wrong = err.Error()
	case s.Disk != uint32(disk) || s.Block != block:
		v.wrong = fmt.Sprintf("holds a block of elsewhere: %v", s)
	default:
		v.id = s.ID
	}
	return v
}

// Differences counts the blocks in which two images of the same size differ, -1 if the sizes do.
func (im Image) Differences(other Image) int {
	if len(im.blocks) != len(other.blocks) {
		return -1
	}
	n := 0
	for i := range im.blocks {
		if im.blocks[i].hash != other.blocks[i].hash {
			n++
		}
	}
	return n
}
