package checksum

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// Errors of the methods of Table.
var (
	// ErrBroken: a write or sync went wrong, so the file may hold less than the
	// memory. Everything but Close refuses; close it, open it again and redo.
	ErrBroken = errors.New("checksum table is out of use after an error")
	// ErrRange: blocks outside the table, or checksums that do not fit a range.
	ErrRange = errors.New("range does not fit the checksum table")
	// ErrOrder: the changes of an epoch are not in increasing order.
	ErrOrder = errors.New("changes are not in increasing order")
	// ErrInvariant: Check found the table contradicting itself.
	ErrInvariant = errors.New("checksum table contradicts itself")
)

// Entry is what the table knows of a block. An unknown entry equals nothing.
type Entry struct {
	Sum   Sum
	Known bool
}

// Table is the checksum table of one disk: the CRC of every block of the
// virtual disk as of Position. Its methods may be called concurrently; those
// that change it take turns.
type Table struct {
	path string
	f    storage
	hook func(point string)

	// unknown has a bit for every unknown entry below blocks. It is changed under
	// update only: before an entry becomes unknown, after one becomes known.
	unknown extent.Bitmap[extent.DiskBlock]

	// update makes changes take turns. It is held across reads, writes and syncs
	// of the file: nobody on a guest's path waits for it.
	update struct {
		sync.Mutex
		header  header // as on disk, but for a resize not yet committed
		window  window
		watches []*Watch
		sum     Sum  // checksum of all entries, unknown ones as 0
		summed  bool // sum is valid
	}

	// mu guards what readers see. One pread or pwrite happens under it, so that no
	// reader sees half an entry; never a sync. Taken after update.
	mu struct {
		sync.RWMutex
		blocks   extent.DiskBlock
		position uint64
		side     extent.Bitmap[extent.DiskBlock] // may list blocks whose entry is not 0: the entry counts
		broken   error
	}
}

// CreateTable makes a table of the given number of blocks, all unknown, at
// position 0. It is durable, as a whole, when the function returns. It returns
// os.ErrExist if there is a file at path.
func CreateTable(path string, blocks extent.DiskBlock) (*Table, error) {
	return CreateTableIn(durable.OS{}, path, blocks)
}

// CreateTableIn is CreateTable on another file system.
func CreateTableIn(tree durable.Tree, path string, blocks extent.DiskBlock) (*Table, error) {
	if blocks < 0 || blocks > maxBlocks {
		return nil, fmt.Errorf("creating checksum table %s: %w: %d blocks", path, ErrRange, int64(blocks))
	}
	h := header{blocks: blocks}
	rand.Read(h.id[:]) // never returns an error, says crypto/rand
	if err := createFile(tree, path, h); err != nil {
		return nil, fmt.Errorf("creating checksum table: %w", err)
	}
	return OpenTableIn(tree, path)
}

// OpenTable opens the table at path and reads it once, in a stream, to learn
// which entries are unknown. It returns ErrMagic, ErrVersion, ErrChecksum or
// ErrTruncated if the file is no table that can be used.
func OpenTable(path string) (*Table, error) { return OpenTableIn(durable.OS{}, path) }

// OpenTableIn is OpenTable on another file system.
func OpenTableIn(tree durable.Tree, path string) (*Table, error) {
	f, err := tree.Edit(path)
	if err != nil {
		return nil, fmt.Errorf("opening checksum table: %w", err)
	}
	t, err := open(path, disk{f, tree, path})
	if err != nil {
		return nil, fmt.Errorf("opening checksum table %s: %w", path, errors.Join(err, f.Close()))
	}
	return t, nil
}

func open(path string, f storage) (*Table, error) {
	t := &Table{path: path, f: f}
	// A process that was killed may have left in the page cache what is not on the
	// disk. A position that is read here counts as durable.
	if err := f.Datasync(); err != nil {
		return nil, err
	}
	slots := make([]byte, entriesStart)
	n, err := f.ReadAt(slots, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	h, err := decodeSlots(slots[:n])
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if want := entriesStart + int64(h.blocks)*entrySize; size < want {
		return nil, fmt.Errorf("%w: %d bytes, expected %d for %d blocks", ErrTruncated, size, want, int64(h.blocks))
	}
	t.update.header = h
	t.mu.blocks, t.mu.position = h.blocks, h.position
	if err := t.loadSide(); err != nil {
		return nil, err
	}
	return t, t.loadUnknown()
}

func (t *Table) loadSide() error {
	p, err := t.f.LoadSide()
	if err != nil || p == nil {
		return err
	}
	blocks, err := decodeSide(p, t.update.header.id)
	if err != nil {
		return err
	}
	for _, b := range blocks {
		if b < 0 || b >= maxBlocks {
			return fmt.Errorf("%w: side list names block %d", ErrChecksum, int64(b))
		}
		t.mu.side.Set(single(b))
	}
	return nil
}

func (t *Table) loadUnknown() error {
	return t.scan(extent.Range[extent.DiskBlock]{End: t.mu.blocks}, func(start extent.DiskBlock, raw []byte) {
		for run := range zeroRuns(start, raw) {
			t.unknown.Set(run)
		}
		t.clearListed(extent.Range[extent.DiskBlock]{Start: start, End: start + extent.DiskBlock(len(raw)/entrySize)})
	})
}

// clearListed takes the blocks of r whose checksum is known to be 0 out of unknown.
func (t *Table) clearListed(r extent.Range[extent.DiskBlock]) {
	for run := range t.mu.side.Ranges(r, 0) {
		t.unknown.Clear(run)
	}
}

// scan calls f with the raw entries of r, a large piece at a time.
func (t *Table) scan(r extent.Range[extent.DiskBlock], f func(start extent.DiskBlock, raw []byte)) error {
	buf := make([]byte, min(r.Len()*entrySize, 1<<20))
	for !r.Empty() {
		raw := buf[:min(r.Len()*entrySize, int64(len(buf)))]
		if err := t.readRaw(r.Start, raw); err != nil {
			return err
		}
		f(r.Start, raw)
		r.Start += extent.DiskBlock(len(raw) / entrySize)
	}
	return nil
}

// readRaw reads the entries from start on. There may be fewer than raw has
// room for, where the file ends in the middle of a page: the rest is zeros.
func (t *Table) readRaw(start extent.DiskBlock, raw []byte) error {
	n, err := t.f.ReadAt(raw, entriesStart+int64(start)*entrySize)
	if errors.Is(err, io.EOF) {
		clear(raw[n:])
		return nil
	}
	return err
}

// Hook has f called at the named points of an update, with locks held: the
// seam for crash tests. Set it before the first use.
func (t *Table) Hook(f func(point string)) { t.hook = f }

func (t *Table) reached(point string) {
	if t.hook != nil {
		t.hook(point)
	}
}

// Blocks returns the number of blocks of the disk, including a resize that a
// Commit has begun and not finished.
func (t *Table) Blocks() extent.DiskBlock {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.blocks
}

// Position returns the newest epoch that is in the table durably, 0 for none.
func (t *Table) Position() uint64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.position
}

// Unknown returns the live set of blocks whose entry is unknown: read only.
func (t *Table) Unknown() *extent.Bitmap[extent.DiskBlock] { return &t.unknown }

// UnknownCount returns how many entries are unknown.
func (t *Table) UnknownCount() int64 { return t.unknown.Count() }

// Close closes the file. It does not sync: what a method promised is durable
// already.
func (t *Table) Close() error {
	t.update.Lock()
	defer t.update.Unlock()
	t.fail(os.ErrClosed)
	if err := t.f.Close(); err != nil {
		return fmt.Errorf("closing checksum table %s: %w", t.path, err)
	}
	return nil
}

// fail takes the table out of use and returns why. Caller holds update.
func (t *Table) fail(err error) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.broken == nil {
		t.mu.broken = fmt.Errorf("%s: %w: %w", t.path, ErrBroken, err)
	}
	return t.mu.broken
}

// Err is why the table is out of use (ErrBroken), nil while it is not.
func (t *Table) Err() error { return t.broken() }

func (t *Table) broken() error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.mu.broken
}

// entryBuffers hold the raw bytes of one piece of Entries.
var entryBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// Entries appends the entries of r to dst. After a failed update it returns
// ErrBroken and no entry: a stale entry would make a capture leave out a block
// that the target does not hold.
func (t *Table) Entries(r extent.Range[extent.DiskBlock], dst []Entry) ([]Entry, error) {
	buf := entryBuffers.Get().(*[32 << 10]byte)
	defer entryBuffers.Put(buf)
	for piece := range r.Split(int64(len(buf)) / entrySize) {
		raw := buf[:piece.Len()*entrySize]
		var err error
		if dst, err = t.entriesPiece(piece, raw, dst); err != nil {
			return dst, err
		}
	}
	return dst, nil
}

func (t *Table) entriesPiece(r extent.Range[extent.DiskBlock], raw []byte, dst []Entry) ([]Entry, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.mu.broken != nil {
		return dst, t.mu.broken
	}
	if r.Start < 0 || r.End > t.mu.blocks {
		return dst, fmt.Errorf("reading %s: %w: blocks %v of %d", t.path, ErrRange, r, int64(t.mu.blocks))
	}
	if err := t.readRaw(r.Start, raw); err != nil {
		return dst, fmt.Errorf("reading checksum table %s: %w", t.path, err)
	}
	for i := 0; i < len(raw); i += entrySize {
		s := Sum(binary.LittleEndian.Uint64(raw[i:]))
		known := s != 0 || t.mu.side.Test(r.Start+extent.DiskBlock(i/entrySize))
		dst = append(dst, Entry{s, known})
	}
	return dst, nil
}
