package vhdx

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/vhdrelay/vhdrelay/fs/image"
)

// Where a Writer puts the parts, and how it cuts the disk. Any reader finds them by the headers.
const (
	newLog      = mebibyte
	newMetadata = 2 * mebibyte
	newTable    = 3 * mebibyte
	newSector   = 512
	newPhysical = 4096

	tableMost    = mebibyte // of the block table, if a block size does
	maxBlockSize = 256 * mebibyte
	creatorAt    = 8 // of the file identifier, UTF-16
	creator      = "vhdrelay"
)

// Flags of a metadata item that describes the disk and not the file.
const flagItemVirtualDisk = 2

// WriterFile is what a Writer makes the image in.
type WriterFile interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Truncate(size int64) error
}

// New says what a new image is. The ids are in the order of their text.
type New struct {
	// VirtualSize in bytes is rounded up to whole sectors of 512 bytes.
	VirtualSize int64
	ID          [16]byte // of the virtual disk
	Content     [16]byte // of what is in it: the DataWriteGuid, and the FileWriteGuid
}

// Size is the size of the virtual disk: what was asked for in whole sectors.
func (n New) Size() int64 { return (n.VirtualSize + newSector - 1) / newSector * newSector }

// BlockSize is the smallest with which the block table takes at most 1 MiB.
func (n New) BlockSize() int64 {
	size := int64(mebibyte)
	for size < maxBlockSize && (n.Size()+size-1)/size*entrySize > tableMost {
		size *= 2
	}
	return size
}

// Writer makes a dynamic VHDX, its blocks in the order of the disk one behind the other and each only if something was
// written to it: so the same content gives the same file, and one that was interrupted goes on. Parts of a block that were
// not written are holes of the file and read as zeros. The log is empty.
//
// It is for one goroutine. After an error it is of no use.
type Writer struct {
	f     WriterFile
	n     New
	block int64
	ratio int64
	table []byte // as in the file; small by BlockSize
	fresh bool   // the table is not in the file as it is here
	last  int64  // block that was written last
	end   int64  // of the file
}

// Create begins an image in an empty file.
func Create(f WriterFile, n New) (*Writer, error) {
	w, err := beginWriter(f, n)
	if err != nil {
		return nil, err
	}
	for _, part := range n.head(w.tableSize()) {
		if _, err := f.WriteAt(part.b, part.at); err != nil {
			return nil, err
		}
	}
	w.fresh = true
	if err := f.Truncate(w.end); err != nil {
		return nil, err
	}
	return w, w.Flush()
}

// Resume goes on with an image of which the first done bytes of the disk were written, flushed and synced. What came later is
// forgotten. An *image.Error around image.ErrInvalid says that the file is not what Create and Flush left.
func Resume(f WriterFile, n New, done int64) (*Writer, error) {
	w, err := beginWriter(f, n)
	if err != nil {
		return nil, err
	}
	if got, err := f.ReadAt(w.table, newTable); got < len(w.table) {
		return nil, errors.Join(fail("block table", newTable, fmt.Sprintf("%d bytes", got), fmt.Sprintf("%d bytes", len(w.table)), image.ErrInvalid), err)
	}
	kept := (done + w.block - 1) / w.block
	for i := range w.blocks() {
		e := w.entry(i)
		switch got := binary.LittleEndian.Uint64(e); {
		case i >= kept:
			clear(e)
		case got == stateFull|uint64(w.end):
			w.last, w.end = i, w.end+w.block
		case got != 0:
			return nil, fail(fmt.Sprintf("block table entry %d", i), image.FileOffset(newTable+w.index(i)*entrySize), fmt.Sprintf("%#x", got),
				fmt.Sprintf("0 or a block at %d", w.end), image.ErrInvalid)
		}
	}
	w.fresh = true
	return w, f.Truncate(w.end)
}

func beginWriter(f WriterFile, n New) (*Writer, error) {
	if n.VirtualSize <= 0 || n.VirtualSize > maxVirtual {
		return nil, fmt.Errorf("a VHDX of %d bytes: %w: at least 1 and at most 64 TiB", n.VirtualSize, image.ErrInvalid)
	}
	w := &Writer{f: f, n: n, block: n.BlockSize(), last: -1}
	w.ratio = sectorsPerChunk * newSector / w.block
	w.table = make([]byte, (w.index(w.blocks()-1)+1)*entrySize)
	w.end = newTable + w.tableSize()
	return w, nil
}

func (w *Writer) blocks() int64 { return (w.n.Size() + w.block - 1) / w.block }

// index is which entry of the table is a block's: behind each chunk comes one for a sector bitmap, which stays empty.
func (w *Writer) index(block int64) int64 { return block + block/w.ratio }

func (w *Writer) entry(block int64) []byte { return w.table[w.index(block)*entrySize:][:entrySize] }

func (w *Writer) tableSize() int64 { return roundUp(int64(len(w.table))) }

func roundUp(n int64) int64 { return (n + mebibyte - 1) / mebibyte * mebibyte }

// errOrder: a block before the last one was written to.
var errOrder = errors.New("vhdx: blocks are written in the order of the disk")

// WriteAt writes bytes of the disk. No block before the last one that was written to may be new.
func (w *Writer) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(p)) > w.n.Size() {
		return 0, fmt.Errorf("writing %d bytes at %d of a disk of %d: %w", len(p), off, w.n.Size(), image.ErrInvalid)
	}
	done := 0
	for done < len(p) {
		block, in := off/w.block, off%w.block
		part := p[done:min(len(p), done+int(w.block-in))]
		at, err := w.allocate(block)
		if err != nil {
			return done, err
		}
		if n, err := w.f.WriteAt(part, at+in); err != nil {
			return done + n, err
		}
		done += len(part)
		off += int64(len(part))
	}
	return done, nil
}

// allocate is where a block lies, at the end of the file if it is new.
func (w *Writer) allocate(block int64) (at int64, err error) {
	e := w.entry(block)
	if got := binary.LittleEndian.Uint64(e); got != 0 {
		return int64(got >> 20 << 20), nil
	}
	if block < w.last {
		return 0, errOrder
	}
	at = w.end
	if err := w.f.Truncate(at + w.block); err != nil {
		return 0, err
	}
	w.last, w.end, w.fresh = block, at+w.block, true
	binary.LittleEndian.PutUint64(e, stateFull|uint64(at))
	return at, nil
}

// Flush writes the block table. The file is a whole image then, of what was written so far.
func (w *Writer) Flush() error {
	if !w.fresh {
		return nil
	}
	_, err := w.f.WriteAt(w.table, newTable)
	w.fresh = err != nil
	return err
}

// piece is bytes and where they lie in the file.
type piece struct {
	at int64
	b  []byte
}

// head is everything before the blocks but the log, which is zeros, and the block table.
func (n New) head(table int64) []piece {
	id := append([]byte(signature), make([]byte, 512-len(signature))...)
	for i, u := range utf16.Encode([]rune(creator)) {
		binary.LittleEndian.PutUint16(id[creatorAt+2*i:], u)
	}
	regions := n.regions(table)
	return []piece{
		{0, id}, {headerAt, n.header(1)}, {otherHeaderAt, n.header(2)},
		{regionAt, regions}, {otherRegionAt, regions}, {newMetadata, n.metadata()},
	}
}

// header is one of the two, with no log to replay.
func (n New) header(sequence uint64) []byte {
	le := binary.LittleEndian
	b := make([]byte, headerSize)
	copy(b, "head")
	le.PutUint64(b[offSequence:], sequence)
	content := swapped(n.Content)
	copy(b[offFileWrite:], content[:])
	copy(b[offDataWrite:], content[:])
	le.PutUint16(b[offLogVersion:], logVersion)
	le.PutUint16(b[offVersion:], version)
	le.PutUint32(b[offLogLength:], newMetadata-newLog)
	le.PutUint64(b[offLogOffset:], newLog)
	le.PutUint32(b[4:], checksum(b))
	return b
}

func (n New) regions(table int64) []byte {
	le := binary.LittleEndian
	b := make([]byte, tableSize)
	copy(b, "regi")
	le.PutUint32(b[8:], 2)
	for i, r := range []struct {
		id         guid
		at, length int64
	}{{regionTable, newTable, table}, {regionMetadata, newMetadata, newTable - newMetadata}} {
		e := b[16+i*tableEntry:]
		copy(e, r.id[:])
		le.PutUint64(e[16:], uint64(r.at))
		le.PutUint32(e[24:], uint32(r.length))
		le.PutUint32(e[28:], flagRegionRequired)
	}
	le.PutUint32(b[4:], checksum(b))
	return b
}

// metadata is the table of items and the items, all of which every reader must know.
func (n New) metadata() []byte {
	le := binary.LittleEndian
	b := make([]byte, tableSize)
	copy(b, "metadata")
	id := swapped(n.ID)
	for i, it := range []struct {
		id    guid
		flags uint32
		b     []byte
	}{
		{itemParameters, flagItemRequired, le.AppendUint32(le.AppendUint32(nil, uint32(n.BlockSize())), 0)},
		{itemSize, flagItemRequired | flagItemVirtualDisk, le.AppendUint64(nil, uint64(n.Size()))},
		{itemID, flagItemRequired | flagItemVirtualDisk, id[:]},
		{itemLogical, flagItemRequired | flagItemVirtualDisk, le.AppendUint32(nil, newSector)},
		{itemPhysical, flagItemRequired | flagItemVirtualDisk, le.AppendUint32(nil, newPhysical)},
	} {
		e := b[32+i*tableEntry:]
		copy(e, it.id[:])
		le.PutUint32(e[16:], uint32(len(b)))
		le.PutUint32(e[20:], uint32(len(it.b)))
		le.PutUint32(e[24:], it.flags)
		le.PutUint16(b[10:], uint16(i+1))
		b = append(b, it.b...)
	}
	return b
}
