package image

import (
	"errors"
	"fmt"
	"io"
)

// Parent is the virtual disk that a differencing image lies over. Past its end it reads as zeros.
type Parent interface {
	io.ReaderAt
	Size() int64 // bytes
}

// Disk reads the virtual disk of an image. It is safe for concurrent use if the readers below it are.
type Disk struct {
	t      *Table
	file   io.ReaderAt
	parent Parent
}

// NewDisk returns the virtual disk that t describes over file. parent may be nil: then only what needs no parent can be read.
func NewDisk(t *Table, file io.ReaderAt, parent Parent) *Disk { return &Disk{t, file, parent} }

// Size is the size of the virtual disk in bytes.
func (d *Disk) Size() int64 { return d.t.VirtualSize }

// ReadAt reads len(p) bytes of the virtual disk at off, as io.ReaderAt says. ErrParent: the bytes are the parent's, which
// was not given.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("reading the disk at %d: %w", off, ErrInvalid)
	}
	n := 0
	for e := range d.t.Extents(DiskOffset(off), int64(len(p))) {
		part := p[n : n+int(e.Len)]
		if err := d.read(e, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (d *Disk) read(e Extent, p []byte) error {
	switch e.From {
	case FromFile:
		return readFull(d.file, p, int64(e.File))
	case FromParent:
		return d.readParent(p, int64(e.Disk))
	}
	clear(p)
	return nil
}

func (d *Disk) readParent(p []byte, off int64) error {
	if d.parent == nil {
		return fmt.Errorf("reading the disk at %d: %w", off, ErrParent)
	}
	n := min(max(d.parent.Size()-off, 0), int64(len(p)))
	clear(p[n:])
	return readFull(d.parent, p[:n], off)
}

func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("reading %d bytes at %d: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	return err
}

// ReadField reads n bytes at off of a file of size bytes that an image says are there. It takes no memory for what
// cannot be. Errors are *Error around ErrTruncated or the error of the read.
func ReadField(r io.ReaderAt, size int64, field string, off FileOffset, n int64) ([]byte, error) {
	e := &Error{Field: field, Offset: off, Expected: fmt.Sprintf("%d bytes there", n), Err: ErrTruncated}
	if off < 0 || n < 0 || int64(off) > size || n > size-int64(off) {
		e.Found = fmt.Sprintf("a file of %d bytes", size)
		return nil, e
	}
	b := make([]byte, n)
	got, err := r.ReadAt(b, int64(off))
	if int64(got) == n {
		return b, nil
	}
	e.Found = fmt.Sprintf("%d bytes", got)
	if err != nil && !errors.Is(err, io.EOF) {
		e.Found, e.Err = "unreadable", err
	}
	return nil, e
}
