package restore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/vhdx"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// output lays a disk out in a file. Blocks that nobody writes read as zeros.
type output interface {
	io.WriterAt // offsets are of the disk, in its order
	// flush brings all that was written so far into the file; the caller syncs it.
	flush() error
	// finish makes the file a whole image.
	finish() error
}

// begin lays the format over the partial, which holds the disk up to the cursor. One that was interrupted is read back first:
// only what is in the file itself is believed, and what was cut or written since begins anew.
func (e *export) begin(ctx context.Context) (err error) {
	if e.cursor.Done > 0 {
		held, err := e.held(ctx)
		if err != nil {
			return fmt.Errorf("read back: %w", err)
		}
		if !held {
			if err := e.anew(); err != nil {
				return err
			}
		}
	}
	switch e.opts.Format {
	case FormatVHD:
		e.out = fixed{e.file, e.d}
		return e.linear(image.ReplicaSize(e.d.size))
	case FormatVHDX:
		return e.dynamic()
	}
	e.out = plain{e.file}
	return e.linear(e.d.size)
}

// anew starts over, durably before the file is touched.
func (e *export) anew() error {
	e.cursor = cursor{Of: e.id(), path: e.cursor.path}
	return errors.Join(e.cursor.save(), e.file.Truncate(0))
}

// held says whether the partial holds what the cursor says.
func (e *export) held(ctx context.Context) (bool, error) {
	var r io.ReaderAt = e.file
	if e.opts.Format == FormatVHDX {
		info, err := e.file.Stat()
		if err != nil {
			return false, err
		}
		i, err := vhdx.Open(e.file, info.Size())
		if err != nil {
			return false, notDamage(err)
		}
		r = i.Disk(nil)
	}
	var sum checksum.Sum
	page := make([]byte, readBack)
	for at := int64(0); at < e.cursor.Done; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		p := page[:min(readBack, e.cursor.Done-at)]
		n, err := r.ReadAt(p[:max(0, min(int64(len(p)), e.d.size-at))], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, notDamage(err)
		}
		clear(p[n:])
		sum = checksum.Update(sum, p)
		at += int64(len(p))
	}
	return sum == e.cursor.sum, nil
}

// readBack is what is read at once, in bytes.
const readBack = 1 << 20

// notDamage is the error of a read that says nothing about what is in the file.
func notDamage(err error) error {
	if e := (*image.Error)(nil); errors.As(err, &e) {
		return nil
	}
	return err
}

// linear gives a file that is the disk its size. What lies behind the cursor goes first: a block of zeros is left out when it
// is written. Of a proven one only the end can be missing.
func (e *export) linear(size int64) error {
	if !e.cursor.Proven {
		return errors.Join(e.file.Truncate(min(e.cursor.Done, e.d.size)), e.file.Truncate(size))
	}
	if err := e.file.Truncate(size); err != nil {
		return err
	}
	return errors.Join(e.out.finish(), e.file.Sync())
}

// dynamic begins a VHDX, or goes on with it: which block lies where is in its own table.
func (e *export) dynamic() error {
	p := e.d.plan
	n := vhdx.New{VirtualSize: e.d.size, ID: diskID(p), Content: uuid.NewSHA1(diskID(p), []byte(p.Point.String()+p.UUID+p.Disk.Sum))}
	if e.cursor.Done > 0 {
		w, err := vhdx.Resume(e.file, n, min(e.cursor.Done, e.d.size))
		if !errors.Is(err, image.ErrInvalid) {
			e.out = dynamic{w}
			return err
		}
		if err := e.anew(); err != nil {
			return err
		}
	}
	w, err := vhdx.Create(e.file, n)
	e.out = dynamic{w}
	return err
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
