package checksum

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
)

// powerFile is a storage that knows what of it is durable. A power cut keeps
// what was synced and, of each sector written since, either content; a header
// may be torn even inside its sector.
type powerFile struct {
	now     []byte // what reads see
	durable []byte
	side    []byte
	pending []pendingWrite // since the last sync, in order
	ops     int            // every write, truncate, sync and side list counts
	failAt  int            // the operation that fails; 0 for none
	trace   []string
}

type pendingWrite struct {
	off  int64
	p    []byte
	size int64 // of a truncate, if p is nil
}

const sector = 512

var errInjected = errors.New("injected")

func (f *powerFile) step(what string) error {
	f.ops++
	f.trace = append(f.trace, what)
	if f.ops == f.failAt {
		return errInjected
	}
	return nil
}

func (f *powerFile) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(f.now)) {
		return 0, io.EOF
	}
	n := copy(p, f.now[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *powerFile) WriteAt(p []byte, off int64) (int, error) {
	what := "entries"
	if off < entriesStart {
		what = "header"
	}
	if err := f.step(what); err != nil {
		return 0, err
	}
	for at := 0; at < len(p); { // sector by sector: a power cut tears between them
		n := min(sector-int((off+int64(at))%sector), len(p)-at)
		f.pending = append(f.pending, pendingWrite{off: off + int64(at), p: bytes.Clone(p[at : at+n])})
		at += n
	}
	f.now = written(f.now, p, off)
	return len(p), nil
}

func written(file, p []byte, off int64) []byte {
	file = resized(file, max(int64(len(file)), off+int64(len(p))))
	copy(file[off:], p)
	return file
}

func resized(file []byte, size int64) []byte {
	if size <= int64(len(file)) {
		return file[:size:size]
	}
	return append(slices.Clip(file), make([]byte, size-int64(len(file)))...)
}

func (f *powerFile) Truncate(size int64) error {
	if err := f.step("truncate"); err != nil {
		return err
	}
	f.pending = append(f.pending, pendingWrite{size: size})
	f.now = resized(f.now, size)
	return nil
}

func (f *powerFile) Datasync() error {
	if err := f.step("sync"); err != nil {
		return err
	}
	f.durable, f.pending = bytes.Clone(f.now), nil
	return nil
}

func (f *powerFile) SaveSide(p []byte) error {
	if err := f.step("side list"); err != nil {
		return err
	}
	f.side = bytes.Clone(p)
	return nil
}

func (f *powerFile) LoadSide() ([]byte, error) { return f.side, nil }
func (f *powerFile) Size() (int64, error)      { return int64(len(f.now)), nil }
func (f *powerFile) Close() error              { return nil }

// cut returns what a power cut now may leave.
func (f *powerFile) cut(r *rand.Rand) *powerFile {
	file := bytes.Clone(f.durable)
	keep := r.IntN(3) // 0: all, 1: none, 2: any
	for _, w := range f.pending {
		switch {
		case keep == 1 || keep == 2 && r.IntN(2) == 0:
		case w.p == nil:
			file = resized(file, w.size)
		default:
			file = written(file, w.p, w.off)
			if w.off%slotSize == 0 && w.off < entriesStart && r.IntN(2) == 0 {
				clear(file[w.off+r.Int64N(headerSize):][:headerSize]) // torn inside the sector
			}
		}
	}
	if len(file) < len(f.durable) && keep != 0 { // a file system never loses synced size to a lost write
		file = resized(file, int64(len(f.durable)))
	}
	return &powerFile{now: file, durable: bytes.Clone(file), side: bytes.Clone(f.side)}
}

// kill returns what the death of the process alone leaves: everything written.
func (f *powerFile) kill() *powerFile {
	c := *f
	c.now, c.durable = bytes.Clone(f.now), bytes.Clone(f.durable)
	c.pending = slices.Clone(f.pending)
	c.ops, c.failAt, c.trace = 0, 0, nil
	return &c
}
