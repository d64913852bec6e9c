package restore

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// Formats of an export.
const (
	FormatVHD  = "vhd"  // fixed: whole MiB, padded with zeros, and the footer
	FormatRaw  = "raw"  // exactly the virtual disk
	FormatVHDX = "vhdx" // dynamic: whole sectors, blocks of zeros left out
)

// DefaultSyncBytes is how much of the disk is exported between two cursors: what
// an interruption costs.
const DefaultSyncBytes = 256 << 20

// Failpoints of an export, named after the gap they sit in.
const (
	PointCursor = "export: data synced, cursor not"
	PointProven = "export: proven, not renamed"
	PointNamed  = "export: renamed, cursor not removed"
)

// ExportOptions of an export. Zero values are the defaults.
type ExportOptions struct {
	Format    string // FormatVHD, FormatRaw or FormatVHDX
	Force     bool   // replace what has the name, and drop an unfinished export of something else
	Progress  Progress
	SyncBytes int64
	Hook      func(point string) error // failpoints; an error is a crash there
}

func (o ExportOptions) withDefaults() (ExportOptions, error) {
	if o.Format == "" {
		o.Format = FormatVHD
	}
	if o.Format != FormatVHD && o.Format != FormatRaw && o.Format != FormatVHDX {
		return o, fmt.Errorf("%w: %q, only %s, %s and %s can", ErrFormat, o.Format, FormatVHD, FormatRaw, FormatVHDX)
	}
	if o.SyncBytes == 0 {
		o.SyncBytes = DefaultSyncBytes
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if o.Hook == nil {
		o.Hook = func(string) error { return nil }
	}
	return o, nil
}

// Export writes the disk to a file. The data grows in path + PartialSuffix,
// sparse, and gets its name when it is whole, durable and equal to the record's
// CRC-64; else the error is ErrDiffers and nothing is left. An interrupted
// export goes on where it was; ErrOtherExport if what is unfinished is another
// point or disk, ErrExists if path is there, both unless Force.
func (d *Disk) Export(ctx context.Context, path string, opts ExportOptions) error {
	opts, err := opts.withDefaults()
	if err != nil {
		return err
	}
	e, err := d.newExport(path, opts, false)
	if err != nil {
		return err
	}
	defer e.close()
	if err := e.fill(ctx); err != nil {
		return err
	}
	if err := e.name(); err != nil {
		return err
	}
	return e.forget()
}

// export is one output being written.
type export struct {
	d       *Disk
	opts    ExportOptions
	path    string
	file    *os.File // the partial; nil if the output has its name already
	out     output   // over file
	cursor  cursor
	pending int64 // bytes since the last cursor
}

// newExport decides what to do about what is there. othersNamed: the first disk
// of the same export has its name and its cursor; so had this one, and lost the
// cursor already.
func (d *Disk) newExport(path string, opts ExportOptions, othersNamed bool) (*export, error) {
	e := &export{d: d, opts: opts, path: path}
	c, found, err := loadCursor(beside(path, CursorSuffix))
	if err != nil && !(opts.Force && errors.Is(err, ErrCursor)) {
		return nil, err
	}
	ours := found && c.Of == e.id()
	partial, err := exists(beside(path, PartialSuffix))
	if err != nil {
		return nil, err
	}
	final, err := exists(path)
	if err != nil {
		return nil, err
	}
	switch {
	case final && !partial && (ours && c.Proven || othersNamed && !found):
		// A crash came between the rename and the removal of the cursor.
		e.cursor = cursor{Of: e.id(), Proven: true, path: beside(path, CursorSuffix)}
		return e, nil
	case final && !opts.Force:
		return nil, fmt.Errorf("%s: %w", path, ErrExists)
	case (found || partial) && !ours && !opts.Force:
		return nil, fmt.Errorf("%s: %w: %s; remove it, or use force", beside(path, PartialSuffix), ErrOtherExport, describe(c, found))
	case ours && partial:
		e.cursor = c
	default:
		e.cursor = cursor{Of: e.id(), path: beside(path, CursorSuffix)}
	}
	return e, e.open()
}

func describe(c cursor, known bool) string {
	if !known {
		return "unknown"
	}
	return fmt.Sprintf("%s of %s/%s as %s", c.Of.Point, c.Of.VM, c.Of.DiskID, c.Of.Format)
}

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, iofs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

func (e *export) id() exportID {
	p := e.d.plan
	return exportID{VM: p.VM, Point: p.Point, UUID: p.UUID, DiskID: p.Disk.ID, Sum: p.Disk.Sum, Size: e.d.size, Format: e.opts.Format}
}

// open locks the partial, so that two exports of one output do not mix. The
// cursor is written before the file is touched: a partial always has one.
func (e *export) open() error {
	if e.cursor.Done == 0 {
		if err := e.cursor.save(); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(beside(e.path, PartialSuffix), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = ErrBusy
	}
	if err == nil && e.cursor.Done == 0 {
		err = f.Truncate(0)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Close())
	}
	e.file = f
	return nil
}

func (e *export) close() {
	if e.file != nil {
		e.file.Close() // after a success it was synced; after an error nobody relies on it
	}
}

// fill writes what is missing and proves the whole.
func (e *export) fill(ctx context.Context) error {
	if e.file != nil {
		if err := e.begin(ctx); err != nil {
			return fmt.Errorf("%s: %w", e.file.Name(), err)
		}
	}
	if e.cursor.Proven {
		e.opts.Progress(e.d.size, e.d.size)
		return nil
	}
	if err := e.d.VerifySegments(ctx); err != nil {
		return err
	}
	if err := e.d.stream(ctx, e.cursor.Done, e.write); err != nil {
		return err
	}
	if err := e.d.compare(e.cursor.sum); err != nil {
		return errors.Join(err, e.discard())
	}
	if err := e.out.finish(); err != nil {
		return err
	}
	e.cursor.Proven = true
	return e.sync()
}

// write takes one run, in order.
func (e *export) write(r *run) error {
	if r.data != nil {
		if err := e.writeData(r.data[:min(r.n, e.d.size-r.off)], r.off); err != nil {
			return err
		}
	}
	e.cursor.sum = extend(e.cursor.sum, r)
	e.cursor.Done = r.off + r.n
	e.opts.Progress(min(e.cursor.Done, e.d.size), e.d.size)
	if e.pending += r.n; e.pending < e.opts.SyncBytes {
		return nil
	}
	e.pending = 0
	return e.sync()
}

// writeData leaves blocks of zeros out: the file is new, they are holes. Blocks
// that an interrupted run wrote beyond its cursor hold the same bytes.
func (e *export) writeData(p []byte, off int64) error {
	for len(p) > 0 {
		n := 0
		for n < len(p) && !checksum.IsZero(p[n:min(n+extent.BlockSize, len(p))]) {
			n = min(n+extent.BlockSize, len(p))
		}
		if n > 0 {
			if _, err := e.out.WriteAt(p[:n], off); err != nil {
				return err
			}
		} else {
			n = min(extent.BlockSize, len(p))
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// sync makes the data durable, then the cursor that says so.
func (e *export) sync() error {
	if err := e.out.flush(); err != nil {
		return err
	}
	if err := e.file.Sync(); err != nil {
		return err
	}
	if err := e.opts.Hook(PointCursor); err != nil {
		return err
	}
	return e.cursor.save()
}

// name gives the proven file its name.
func (e *export) name() error {
	if e.file == nil {
		return nil
	}
	if err := e.opts.Hook(PointProven); err != nil {
		return err
	}
	if err := e.rename(); err != nil {
		return err
	}
	return durable.OS{}.SyncDir(filepath.Dir(e.path))
}

func (e *export) rename() error {
	if e.opts.Force {
		return os.Rename(beside(e.path, PartialSuffix), e.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, beside(e.path, PartialSuffix), unix.AT_FDCWD, e.path, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%s: %w", e.path, ErrExists)
	case !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS):
		return err
	}
	// A file system without RENAME_NOREPLACE (NFS): a link refuses a name that is taken.
	if err := os.Link(beside(e.path, PartialSuffix), e.path); err != nil {
		if errors.Is(err, iofs.ErrExist) {
			return fmt.Errorf("%s: %w", e.path, ErrExists)
		}
		return err
	}
	return os.Remove(beside(e.path, PartialSuffix))
}

// forget removes the cursor of a finished export.
func (e *export) forget() error {
	if err := e.opts.Hook(PointNamed); err != nil {
		return err
	}
	return durable.Remove(e.cursor.path)
}

// discard removes what must not be resumed.
func (e *export) discard() error {
	return errors.Join(os.Remove(beside(e.path, PartialSuffix)), durable.Remove(e.cursor.path))
}
