package dir

import (
	"context"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	formatFile = ownDir + "/format"
	lockFile   = ownDir + "/lock"
	tempDir    = ownDir + "/tmp"

	format      = "vhdrelay directory target 1\n" // never change; a new layout gets a new number
	sweepAfter  = 24 * time.Hour
	defaultMode = 0o600
)

// Options of Open.
type Options struct {
	// Create makes an empty or missing directory a target, and sweeps what a
	// crash left. Writers set it once they know that nothing should be there yet.
	Create bool
	Now    func() time.Time   // for snapshot ids; nil: time.Now
	Hook   func(point string) // failpoints, see the Point constants; may be nil
}

// Failpoints, named after the gap they sit in.
const (
	PointBeforePublish = "dir: after temporary file synced, before it has its name"
	PointAfterPublish  = "dir: after file has its name, before directory synced"
	PointBeforeReplace = "dir: after temporary file synced, before rename"
	PointAfterReplace  = "dir: after rename, before directory synced"
	PointBeforePut     = "dir: after guard checked, before pages written"
	PointBeforeData    = "dir: after blob state written, before blob made"
	PointBeforeSidecar = "dir: after blob removed, before its state removed"
)

// Points lists them all.
func Points() []string {
	return []string{PointBeforePublish, PointAfterPublish, PointBeforeReplace, PointAfterReplace, PointBeforePut, PointBeforeData, PointBeforeSidecar}
}

// Dir is a directory target. It holds the directory open: an unmount in between
// is refused by the kernel, or leads nowhere else.
type Dir struct {
	root *os.Root
	path string
	opts Options

	owner owner

	mu struct {
		sync.Mutex // never held during I/O
		blobs      map[string]*blob
		durable    map[string]bool // directories whose whole chain of names this process has synced
	}
}

var _ target.Target = (*Dir)(nil)

// Path is the directory of a dir:// URL: "dir:///mnt/nas" is /mnt/nas.
func Path(rawURL string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "", err
	}
	if u.Scheme != "dir" || u.Host != "" || !path.IsAbs(u.Path) {
		return "", fmt.Errorf("%q is no dir:///absolute/path", rawURL)
	}
	return filepath.Clean(u.Path), nil
}

// Open opens the target at an absolute path. ErrNoContainer if there is no
// directory, or an empty one and Options.Create is not set: an empty mount point
// must not look like an empty target. target.ErrVersion.
func Open(dir string, opts Options) (*Dir, error) {
	d, err := open(dir, opts)
	if err != nil {
		return nil, target.Refused("Open", dir, err)
	}
	return d, nil
}

func open(dir string, opts Options) (*Dir, error) {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Create {
		if err := makeRoot(dir); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, iofs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", target.ErrNoContainer, err)
	}
	if err != nil {
		return nil, err
	}
	d := &Dir{root: root, path: dir, opts: opts}
	d.mu.blobs, d.mu.durable = map[string]*blob{}, map[string]bool{}
	if err := d.prepare(); err != nil {
		_ = root.Close() // nothing was written through it
		return nil, err
	}
	return d, nil
}

func makeRoot(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parent, err := os.OpenRoot(filepath.Dir(dir))
	if err != nil {
		return err
	}
	defer parent.Close() // read only
	return syncDir(parent, ".")
}

// prepare checks the format and, for a writer, makes what is missing.
func (d *Dir) prepare() error {
	found, err := d.root.ReadFile(formatFile)
	switch {
	case err == nil && string(found) != format:
		return fmt.Errorf("%w: %s says %.60q, this program knows %q", target.ErrVersion, formatFile, found, format)
	case err != nil && !errors.Is(err, iofs.ErrNotExist):
		return err
	case err != nil:
		if err := d.adopt(); err != nil {
			return err
		}
	}
	if d.opts.Create {
		return d.sweep()
	}
	return nil
}

// adopt is for a directory without the format file: made a target if it is empty
// and may be, used as it is if something was copied there.
func (d *Dir) adopt() error {
	entries, err := readDir(d.root, ".")
	if err != nil {
		return err
	}
	if !d.opts.Create {
		if len(entries) == 0 {
			return fmt.Errorf("%w: %s is empty and was never a target", target.ErrNoContainer, d.path)
		}
		return nil
	}
	if err := d.ensureDir(tempDir); err != nil {
		return err
	}
	err = d.publish(formatFile, writeAll([]byte(format)))
	if errors.Is(err, target.ErrExists) {
		return nil // another writer was faster
	}
	return err
}

// sweep removes temporary files nobody can still be writing.
func (d *Dir) sweep() error {
	if err := d.ensureDir(tempDir); err != nil {
		return err
	}
	entries, err := readDir(d.root, tempDir)
	if err != nil {
		return err
	}
	if err := d.sweepDead(entries); err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || strings.HasSuffix(e.Name(), ownerSuffix) || d.opts.Now().Sub(info.ModTime()) < sweepAfter {
			continue // gone already, or in use
		}
		if err := d.sweepOne(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// Close lets go of the directory.
func (d *Dir) Close() error {
	d.disown()
	return d.root.Close()
}

// String is the target's URL.
func (d *Dir) String() string { return (&url.URL{Scheme: "dir", Path: d.path}).String() }

func (d *Dir) hook(point string) {
	if d.opts.Hook != nil {
		d.opts.Hook(point)
	}
}

// unsure marks an error after which the change may have happened.
type unsure struct{ error }

func (u unsure) Unwrap() error { return u.error }

// lost marks err, if there is one.
func lost(err error) error {
	if err == nil {
		return nil
	}
	return unsure{err}
}

// run is the frame of every method: context, name, and what an error means.
func (d *Dir) run(ctx context.Context, method, name string, f func(rel string) error) error {
	err := ctx.Err()
	var rel string
	if err == nil {
		rel, err = relative(name)
	}
	if err == nil {
		err = f(rel)
	}
	if err == nil {
		return nil
	}
	if errors.Is(err, target.ErrNotFound) && d.gone() {
		err = fmt.Errorf("%w: %s is not there any more", target.ErrNoContainer, d.path)
	}
	if u := (unsure{}); errors.As(err, &u) {
		return target.Lost(method, name, err)
	}
	return target.Refused(method, name, err)
}

// gone: the directory was removed below us. It is asked only when something was
// not found, so that a lost target does not read as an empty one.
func (d *Dir) gone() bool {
	info, err := d.root.Stat(".")
	return err != nil || links(info) == 0
}

// absent turns the system's "no such file" into the contract's.
func absent(err error) error {
	if errors.Is(err, iofs.ErrNotExist) {
		return fmt.Errorf("%w: %w", target.ErrNotFound, err)
	}
	return err
}

// writeAll is a publish function for small contents.
func writeAll(data []byte) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	}
}
