package dir

import (
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// The durable steps everything is made of. journal/durable has the recipe for a
// file with one writer; here names are created exclusively, by several machines,
// and only below the root.

// publish makes a file appear whole and durable under a name that nothing has
// yet; ErrExists otherwise, and then what is there is durable too.
func (d *Dir) publish(rel string, write func(io.Writer) error) error {
	temp, err := d.writeTemp(write)
	if err != nil {
		return err
	}
	return d.publishTemp(temp, rel)
}

// publishTemp is publish for a finished temporary file, which it takes away.
func (d *Dir) publishTemp(temp, rel string) error {
	defer d.root.Remove(temp) // the name in tmp only; swept if this does not succeed
	d.hook(PointBeforePublish)
	err := d.inDir(path.Dir(rel), func() error { return d.linkNew(temp, rel) })
	if errors.Is(err, iofs.ErrExist) {
		if err := syncDir(d.root, path.Dir(rel)); err != nil {
			return err
		}
		return target.ErrExists
	}
	if err != nil {
		return err
	}
	d.hook(PointAfterPublish)
	return lost(syncDir(d.root, path.Dir(rel)))
}

// linkNew gives temp the name rel and never replaces. File systems without hard
// links have renameat2, or cannot hold a target.
func (d *Dir) linkNew(temp, rel string) error {
	err := d.root.Link(temp, rel)
	if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS) {
		return err
	}
	from, err := d.root.Open(path.Dir(temp))
	if err != nil {
		return err
	}
	defer from.Close() // read only
	to, err := d.root.Open(path.Dir(rel))
	if err != nil {
		return err
	}
	defer to.Close() // read only
	return unix.Renameat2(int(from.Fd()), path.Base(temp), int(to.Fd()), path.Base(rel), unix.RENAME_NOREPLACE)
}

// replace makes rel hold data, the old content or the new one, never a mixture.
func (d *Dir) replace(rel string, data []byte) error {
	temp, err := d.writeTemp(writeAll(data))
	if err != nil {
		return err
	}
	d.hook(PointBeforeReplace)
	if err := d.inDir(path.Dir(rel), func() error { return d.root.Rename(temp, rel) }); err != nil {
		_ = d.root.Remove(temp) // swept later if this does not succeed
		return err
	}
	d.hook(PointAfterReplace)
	return lost(syncDir(d.root, path.Dir(rel)))
}

// remove takes a name away durably; absent is made durably so.
func (d *Dir) remove(rel string) error {
	err := d.root.Remove(rel)
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	return lost(d.syncIfThere(path.Dir(rel)))
}

// syncIfThere makes the absence of a name durable: a directory that is not there
// has none.
func (d *Dir) syncIfThere(dir string) error {
	err := syncDir(d.root, dir)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil
	}
	return err
}

// writeTemp makes a synced file under tmp and returns its path.
func (d *Dir) writeTemp(write func(io.Writer) error) (string, error) {
	f, temp, err := d.createTemp()
	if err != nil {
		return "", err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = d.root.Remove(temp) // swept later if this does not succeed
		return "", err
	}
	return temp, nil
}

func (d *Dir) createTemp() (f *os.File, temp string, err error) {
	err = d.inDir(tempDir, func() (err error) {
		temp = d.tempName()
		f, err = d.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, defaultMode)
		return err
	})
	return f, temp, err
}

// inDir runs f, which makes a name in dir, with dir there and durable. If dir was
// removed behind our back, it is made again, once.
func (d *Dir) inDir(dir string, f func() error) error {
	if err := d.ensureDir(dir); err != nil {
		return err
	}
	err := f()
	if !errors.Is(err, iofs.ErrNotExist) {
		return err
	}
	d.forgetDir(dir)
	if err := d.ensureDir(dir); err != nil {
		return err
	}
	return f()
}

// ensureDir makes dir and its parents and syncs every name on the way once per
// process: another may have made one and died before it synced.
func (d *Dir) ensureDir(dir string) error {
	if dir == "." || d.isDurable(dir) {
		return nil
	}
	if err := d.ensureDir(path.Dir(dir)); err != nil {
		return err
	}
	if err := d.root.Mkdir(dir, 0o700); err != nil && !errors.Is(err, iofs.ErrExist) {
		return err
	}
	if err := syncDir(d.root, path.Dir(dir)); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.durable[dir] = true
	return nil
}

func (d *Dir) isDurable(dir string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.durable[dir]
}

// forgetDir drops what is known about dir and its parents.
func (d *Dir) forgetDir(dir string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ; dir != "."; dir = path.Dir(dir) {
		delete(d.mu.durable, dir)
	}
}

func syncDir(root *os.Root, dir string) error {
	f, err := root.Open(dir)
	if err != nil {
		return err
	}
	err = f.Sync()
	if e := f.Close(); err == nil {
		err = e
	}
	return err
}

func readDir(root *os.Root, dir string) ([]iofs.DirEntry, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	return f.ReadDir(-1)
}

// openFile opens a regular file; anything else is not ours and does not exist. It
// does not block on a FIFO somebody put there.
func (d *Dir) openFile(rel string, flag int) (*os.File, iofs.FileInfo, error) {
	f, err := d.root.OpenFile(rel, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, absent(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = target.ErrNotFound
	}
	if err != nil {
		_ = f.Close() // nothing was written
		return nil, nil, err
	}
	return f, info, nil
}

func links(info iofs.FileInfo) uint64 {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Nlink)
	}
	return 1
}
