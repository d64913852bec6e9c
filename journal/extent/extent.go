// Package extent is the interval algebra every room shares: coordinates that
// do not mix, half-open ranges, sorted sets, and the concurrent bitmap that a
// change set is made of.
//
// It is a leaf: it imports nothing of this module and does no I/O. A crash
// leaves nothing of it; whoever keeps a Bitmap decides what must be durable.
package extent

// Sizes in bytes and in blocks. They are part of formats and of the protocol
// between the rooms: never change them.
const (
	BlockSize       = 4096    // unit of change tracking and of checksums
	ChunkSize       = 1 << 20 // unit of checksum comparison
	RegionSize      = 4 << 20 // unit of the activity log
	BlocksPerChunk  = ChunkSize / BlockSize
	BlocksPerRegion = RegionSize / BlockSize
)

// FileBlock is the number of a 4 KiB block of an image file.
type FileBlock int64

// DiskBlock is the number of a 4 KiB block of the virtual disk that a guest
// sees. Only fs/image converts between FileBlock and DiskBlock.
type DiskBlock int64

// Block is any block number; the type parameter keeps coordinates apart.
type Block interface{ ~int64 }

// Kind says what a Change does to the image file.
type Kind uint8

// The kinds of change. The zero value is a write.
const (
	Write    Kind = iota
	Discard       // punch a hole; reads as zeros, length unchanged
	Zero          // zero a range, allocated or not
	Truncate      // set the size of the file to Off
)

// String returns the lower-case name of the kind.
func (k Kind) String() string {
	switch k {
	case Write:
		return "write"
	case Discard:
		return "discard"
	case Zero:
		return "zero"
	case Truncate:
		return "truncate"
	}
	return "unknown"
}

// Change is one operation that alters bytes of an image file. Off and Len are
// bytes of the file. For Truncate, Off is the new size and Len is 0.
type Change struct {
	Kind     Kind
	Off, Len int64
}

// Blocks returns the blocks the change touches, rounded outward. For a
// Truncate that depends on the size before, so it returns the empty range at
// the new size.
func (c Change) Blocks() Range[FileBlock] {
	return Cover[FileBlock](c.Off, c.Len)
}

// Pass is what a tracker hands out at the begin of a change and takes back at
// its end. Opaque to everybody else; it holds a pointer, so it never allocates.
type Pass interface{}
