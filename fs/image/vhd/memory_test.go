package vhd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// hostile is a dynamic image whose header claims what it is told, its table at 1536, in a sparse file.
func hostile(size, virtual int64, blockSize, entries uint32, table []byte) imagetest.Sparse {
	be := binary.BigEndian
	b := imagetest.NewVHD(4096, 4096, 1, nil, "").B[:512+headerSize]
	be.PutUint64(b[48:], uint64(virtual))
	be.PutUint32(b[64:], checksum(b[:512], 64))
	h := b[512:]
	be.PutUint32(h[offEntries:], entries)
	be.PutUint32(h[offBlockSize:], blockSize)
	be.PutUint32(h[offChecksum:], checksum(h, offChecksum))
	return imagetest.Sparse{Size: size, Parts: map[int64][]byte{0: b, 1536: table, size - 512: b[:512]}}
}

// TestMemoryIsBoundedByTheFile: images whose claims would take more memory than the file has bytes are refused before it is
// taken: a table beyond all measure in a sparse file, and blocks that all lie on one, each with a bitmap of its own.
func TestMemoryIsBoundedByTheFile(t *testing.T) {
	const blocks = 1 << 15
	same := bytes.Repeat([]byte{0, 0, 0x10, 0}, blocks) // all at sector 4096
	bits := bytes.Repeat([]byte{0x55}, 64<<10)
	overlaid := hostile(300<<20, blocks*256<<20, 256<<20, blocks, same)
	overlaid.Parts[4096*sectorSize] = bits
	for _, c := range []struct {
		what  string
		file  imagetest.Sparse
		field string
		limit uint64
	}{
		{"a table of 260 MiB in a sparse file", hostile(1<<30, 65<<20*512, 512, 65<<20, nil), "max table entries", 1 << 20},
		{"one entry more than the largest disk has", hostile(1<<30, 2040<<30+512<<10, 512<<10, 4_177_921, nil), "max table entries", 1 << 20},
		{"blocks one on the other", overlaid, "block table entry 1", 16 << 20},
	} {
		err := imagetest.CheckMemory(t, c.what, c.limit, func() error { _, err := Open(c.file, c.file.Size); return err })
		e := (*image.Error)(nil)
		if !errors.Is(err, image.ErrInvalid) || !errors.As(err, &e) || e.Field != c.field {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}
