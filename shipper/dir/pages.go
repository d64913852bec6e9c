package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Properties implements target.Target. What it returns is durable.
func (d *Dir) Properties(ctx context.Context, name, snapshot string) (target.Properties, error) {
	var out target.Properties
	err := d.run(ctx, "Properties", name, func(rel string) (err error) {
		if snapshot != "" {
			out, err = d.snapshotProperties(rel, snapshot)
			return err
		}
		return d.observe(ctx, rel, func(a *access) error {
			if err := syncDir(d.root, side(rel)); err != nil {
				return err
			}
			etag, err := a.seen()
			out = target.Properties{Size: a.info.Size(), ETag: etag, Sequence: a.Sequence, Leased: a.leased()}
			return err
		})
	})
	if err != nil {
		return target.Properties{}, err
	}
	return out, nil
}

// PutPages implements target.Target.
func (d *Dir) PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g target.Guard) error {
	return d.run(ctx, "PutPages", name, func(rel string) error {
		if err := target.CheckPut(off, len(data)); err != nil {
			return err
		}
		if checksum.Of(data) != sum {
			return target.ErrChecksum
		}
		return d.change(ctx, rel, off, int64(len(data)), g, func(f *os.File) error {
			return writeDurably(f, data, off)
		})
	})
}

// ClearPages implements target.Target.
func (d *Dir) ClearPages(ctx context.Context, name string, off, n int64, g target.Guard) error {
	return d.run(ctx, "ClearPages", name, func(rel string) error {
		return d.change(ctx, rel, off, n, g, func(f *os.File) error { return punch(ctx, f, off, n) })
	})
}

// change does a guarded change of pages; once it has begun, an error leaves the
// range torn.
func (d *Dir) change(ctx context.Context, rel string, off, n int64, g target.Guard, do func(*os.File) error) error {
	return d.shared(ctx, rel, func(a *access) error {
		if err := a.guard(g); err != nil {
			return err
		}
		if err := target.CheckPages(off, n, a.info.Size()); err != nil {
			return err
		}
		if err := a.dirty(); err != nil {
			return err
		}
		d.hook(PointBeforePut)
		return lost(do(a.file))
	})
}

// writeDurably writes and syncs the range alone. Each put has a file of its own,
// so an error of its write-back is reported to it and not to a neighbour.
func writeDurably(f *os.File, data []byte, off int64) error {
	for len(data) > 0 {
		n, err := unix.Pwritev2(int(f.Fd()), [][]byte{data}, off, unix.RWF_DSYNC)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
			return writeAndSync(f, data, off)
		case err != nil:
			return &os.PathError{Op: "write", Path: f.Name(), Err: err}
		case n == 0:
			return &os.PathError{Op: "write", Path: f.Name(), Err: io.ErrShortWrite}
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

func writeAndSync(f *os.File, data []byte, off int64) error {
	if _, err := f.WriteAt(data, off); err != nil {
		return err
	}
	return f.Sync()
}

// punch frees the range, or writes zeros where the file system cannot.
func punch(ctx context.Context, f *os.File, off, n int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		err = writeZeros(ctx, f, off, n)
	}
	if err != nil {
		return fmt.Errorf("punch: %w", err)
	}
	return f.Sync()
}

func writeZeros(ctx context.Context, f *os.File, off, n int64) error {
	zeros := make([]byte, min(n, 1<<20))
	for end := off + n; off < end; {
		if err := ctx.Err(); err != nil {
			return err
		}
		written, err := f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(written)
	}
	return nil
}

// ReadPages implements target.Target. It takes no lock: what is read while it is
// written has no promise.
func (d *Dir) ReadPages(ctx context.Context, name, snapshot string, off int64, p []byte) error {
	return d.run(ctx, "ReadPages", name, func(rel string) error {
		return d.reading(rel, snapshot, off, int64(len(p)), func(f *os.File) error {
			_, err := f.ReadAt(p, off)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF // it was as long a moment ago
			}
			return err
		})
	})
}

// reading opens a blob or snapshot and checks the range.
func (d *Dir) reading(rel, snapshot string, off, n int64, do func(*os.File) error) error {
	data := rel
	if snapshot != "" {
		var err error
		if data, err = snapshotPath(rel, snapshot); err != nil {
			return err
		}
	}
	f, info, err := d.openFile(data, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer f.Close() // read only
	if err := target.CheckWithin(off, n, info.Size()); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	return do(f)
}

// Ranges implements target.Target, in the blocks of the file system.
func (d *Dir) Ranges(ctx context.Context, name, snapshot string, off, n int64) ([]target.ByteRange, error) {
	var out []target.ByteRange
	err := d.run(ctx, "Ranges", name, func(rel string) error {
		return d.reading(rel, snapshot, off, n, func(f *os.File) (err error) {
			out, err = dataRanges(ctx, f, off, n)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// dataRanges asks the file system; one that keeps no holes says that everything
// is data.
func dataRanges(ctx context.Context, f *os.File, off, n int64) ([]target.ByteRange, error) {
	var out []target.ByteRange
	for at, end := off, off+n; at < end; {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, syscall.ENXIO) || err == nil && start >= end {
			break // only a hole is left
		}
		if err != nil {
			return nil, err
		}
		if at, err = f.Seek(start, unix.SEEK_HOLE); err != nil {
			return nil, err
		}
		out = append(out, target.ByteRange{Off: start, Len: min(at, end) - start})
	}
	return out, nil
}

// Resize implements target.Target.
func (d *Dir) Resize(ctx context.Context, name string, size int64, g target.Guard) error {
	return d.run(ctx, "Resize", name, func(rel string) error {
		if err := target.CheckSize(size); err != nil {
			return err
		}
		return d.exclusive(ctx, rel, func(a *access) error {
			if err := a.guard(g); err != nil {
				return err
			}
			if err := a.dirty(); err != nil {
				return err
			}
			if err := a.file.Truncate(size); err != nil {
				return lost(err)
			}
			return lost(a.file.Sync())
		})
	})
}
