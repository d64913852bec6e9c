package restore

import (
	"errors"
	"io"
	"os"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
)

// output lays a disk out in a file. Blocks that nobody writes read as zeros.
type output interface {
	io.WriterAt // offsets are of the disk, in its order
	// flush brings all that was written so far into the file; the caller syncs it.
	flush() error
	// finish makes the file a whole image.
	finish() error
}

// output opens the layout of the export's format over its partial, which holds the disk up to the cursor.
func (e *export) output(f *os.File) (output, error) {
	switch e.opts.Format {
	case FormatVHD:
		return fixed{f, e.d}, f.Truncate(image.ReplicaSize(e.d.size))
	case FormatVHDX:
		return e.dynamic(f)
	}
	return plain{f}, f.Truncate(e.d.size)
}

// dynamic begins a VHDX, or goes on with it: which block lies where is in its own table.
func (e *export) dynamic(f *os.File) (output, error) {
	p := e.d.plan
	n := vhdx.New{VirtualSize: e.d.size, ID: diskID(p), Content: uuid.NewSHA1(diskID(p), []byte(p.Point.String()+p.UUID+p.Disk.Sum))}
	if e.cursor.Done > 0 {
		w, err := vhdx.Resume(f, n, min(e.cursor.Done, e.d.size))
		if !errors.Is(err, image.ErrInvalid) {
			return dynamic{w}, err
		}
		e.cursor = cursor{Of: e.id(), path: e.cursor.path} // somebody was at it: from the start
		if err := errors.Join(e.cursor.save(), f.Truncate(0)); err != nil {
			return nil, err
		}
	}
	w, err := vhdx.Create(f, n)
	return dynamic{w}, err
}

// plain is a raw disk.
type plain struct{ *os.File }

func (plain) flush() error { return nil }

func (plain) finish() error { return nil }

// fixed is a fixed VHD.
type fixed struct {
	*os.File
	d *Disk
}

func (fixed) flush() error { return nil }

func (f fixed) finish() error {
	padded := image.PaddedSize(f.d.size)
	footer := image.FixedFooter(padded, diskID(f.d.plan), f.d.plan.Time)
	_, err := f.WriteAt(footer[:], padded)
	return err
}

// dynamic is a VHDX.
type dynamic struct{ *vhdx.Writer }

func (d dynamic) flush() error { return d.Flush() }

func (d dynamic) finish() error { return d.Flush() }

// diskID is the same for every export of a disk.
func diskID(p Plan) [16]byte {
	if id, err := uuid.Parse(p.Disk.ID); err == nil {
		return id
	}
	return uuid.NewSHA1(uuid.NameSpaceURL, []byte(p.VM+"/"+p.Disk.ID))
}
