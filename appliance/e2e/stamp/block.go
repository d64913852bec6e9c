package stamp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// BlockSize is the size of a stamped block in bytes.
const BlockSize = 4096

// Where the fields of a stamp are, little endian. The checksum is the CRC-32C of the block with the field itself zero.
const (
	offMagic  = 0  // 8 bytes
	offID     = 8  // 8
	offSeq    = 16 // 8
	offBlock  = 24 // 8
	offFirst  = 32 // 8
	offCount  = 40 // 4
	offWriter = 44 // 4
	offDisk   = 48 // 4
	offSum    = 52 // 4
	offFill   = 64
	fillEnd   = offFill + 1024 // pseudo-random bytes up to here, then zeros: the block compresses to about a quarter
)

var magic = [8]byte{'v', 'r', 's', 't', 'a', 'm', 'p', '1'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrNone says a block carries no stamp, ErrSum that it carries one and is not what was written.
var (
	ErrNone = errors.New("no stamp")
	ErrSum  = errors.New("stamped block with a wrong checksum")
)

// Stamp is what a block says about itself.
type Stamp struct {
	ID     uint64 // of the write, from 1, unique in all histories of a run
	Seq    uint64 // of the write among its writer's
	Block  int64  // number of this block on its disk
	First  int64  // the write's first block
	Count  uint32 // and how many it has
	Writer uint32
	Disk   uint32
}

// String names the write and the block.
func (s Stamp) String() string {
	return fmt.Sprintf("write %d (writer %d, its %dth, disk %d, blocks %d+%d), block %d", s.ID, s.Writer, s.Seq, s.Disk, s.First, s.Count, s.Block)
}

// Put fills p, BlockSize long, with the block.
func (s Stamp) Put(p []byte) {
	_ = p[BlockSize-1]
	clear(p[:BlockSize])
	copy(p[offMagic:], magic[:])
	binary.LittleEndian.PutUint64(p[offID:], s.ID)
	binary.LittleEndian.PutUint64(p[offSeq:], s.Seq)
	binary.LittleEndian.PutUint64(p[offBlock:], uint64(s.Block))
	binary.LittleEndian.PutUint64(p[offFirst:], uint64(s.First))
	binary.LittleEndian.PutUint32(p[offCount:], s.Count)
	binary.LittleEndian.PutUint32(p[offWriter:], s.Writer)
	binary.LittleEndian.PutUint32(p[offDisk:], s.Disk)
	fill(p[offFill:fillEnd], s.ID<<20^uint64(s.Block))
	binary.LittleEndian.PutUint32(p[offSum:], crc32.Checksum(p[:BlockSize], castagnoli))
}

// fill is splitmix64: as fast as memory, and another sequence for every seed.
func fill(p []byte, seed uint64) {
	for ; len(p) >= 8; p = p[8:] {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		binary.LittleEndian.PutUint64(p, z^z>>31)
	}
}

// Parse reads the stamp of a block. The error is ErrNone or wraps ErrSum.
func Parse(p []byte) (Stamp, error) {
	if len(p) != BlockSize || [8]byte(p[offMagic:offMagic+8]) != magic {
		return Stamp{}, ErrNone
	}
	s := Stamp{
		ID:     binary.LittleEndian.Uint64(p[offID:]),
		Seq:    binary.LittleEndian.Uint64(p[offSeq:]),
		Block:  int64(binary.LittleEndian.Uint64(p[offBlock:])),
		First:  int64(binary.LittleEndian.Uint64(p[offFirst:])),
		Count:  binary.LittleEndian.Uint32(p[offCount:]),
		Writer: binary.LittleEndian.Uint32(p[offWriter:]),
		Disk:   binary.LittleEndian.Uint32(p[offDisk:]),
	}
	if sum(p) != binary.LittleEndian.Uint32(p[offSum:]) {
		return s, fmt.Errorf("%w: %v", ErrSum, s)
	}
	return s, nil
}

func sum(p []byte) uint32 {
	var zero [4]byte
	c := crc32.Checksum(p[:offSum], castagnoli)
	c = crc32.Update(c, castagnoli, zero[:])
	return crc32.Update(c, castagnoli, p[offSum+4:])
}
