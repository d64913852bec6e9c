package dir

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// contentETag: the ETag of a small object is a digest of its content. An equal
// content has an equal ETag, and then replacing one is replacing the other.
func contentETag(data []byte) string {
	sum := sha256.Sum256(data)
	return fmt.Sprintf(`"%x"`, sum[:16])
}

// Get implements target.Target. What it returns is durable.
func (d *Dir) Get(ctx context.Context, name string) (target.Object, error) {
	var out target.Object
	err := d.run(ctx, "Get", name, func(rel string) error {
		data, err := d.readObject(rel)
		if err != nil {
			return err
		}
		out = target.Object{Data: data, ETag: contentETag(data)}
		return syncDir(d.root, path.Dir(rel))
	})
	if err != nil {
		return target.Object{}, err
	}
	return out, nil
}

func (d *Dir) readObject(rel string) ([]byte, error) {
	f, info, err := d.openFile(rel, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close() // read only
	if info.Size() > target.MaxObject {
		return nil, fmt.Errorf("%w: object of %d bytes", target.ErrTooLarge, info.Size())
	}
	if d.isBlob(rel) {
		return nil, fmt.Errorf("%w: a page blob", target.ErrNotFound)
	}
	return io.ReadAll(f)
}

// Create implements target.Target.
func (d *Dir) Create(ctx context.Context, name string, data []byte) (string, error) {
	err := d.run(ctx, "Create", name, func(rel string) error {
		if err := target.CheckObject(data); err != nil {
			return err
		}
		return d.publish(rel, writeAll(data))
	})
	if err != nil {
		return "", err
	}
	return contentETag(data), nil
}

// Replace implements target.Target. One replacement at a time in the whole
// target: it is a handful a minute.
func (d *Dir) Replace(ctx context.Context, name string, data []byte, etag string) (string, error) {
	err := d.run(ctx, "Replace", name, func(rel string) error {
		if err := target.CheckObject(data); err != nil {
			return err
		}
		unlock, err := d.lockObjects(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		found, err := d.readObject(rel)
		if errors.Is(err, target.ErrNotFound) || err == nil && contentETag(found) != etag {
			return target.ErrCondition
		}
		if err != nil {
			return err
		}
		return d.replace(rel, data)
	})
	if err != nil {
		return "", err
	}
	return contentETag(data), nil
}

func (d *Dir) lockObjects(ctx context.Context) (unlock func(), err error) {
	if err := d.ensureDir(ownDir); err != nil {
		return nil, err
	}
	return d.lock(ctx, lockFile, true, true)
}

// Delete implements target.Target.
func (d *Dir) Delete(ctx context.Context, name string) error {
	return d.run(ctx, "Delete", name, func(rel string) error {
		if d.isBlob(rel) {
			return d.deleteBlob(ctx, rel, "")
		}
		unlock, err := d.lockObjects(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		return d.remove(rel)
	})
}

// DeleteIf implements target.Target.
func (d *Dir) DeleteIf(ctx context.Context, name, etag string) error {
	return d.run(ctx, "DeleteIf", name, func(rel string) error {
		unlock, err := d.lockObjects(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		found, err := d.readObject(rel)
		switch {
		case errors.Is(err, target.ErrNotFound):
			return nil
		case err != nil:
			return err
		case contentETag(found) != etag:
			return target.ErrCondition
		}
		return d.remove(rel)
	})
}

// List implements target.Target.
func (d *Dir) List(ctx context.Context, prefix string) iter.Seq2[target.Item, error] {
	return func(yield func(target.Item, error) bool) {
		items, err := d.list(ctx, prefix)
		if err != nil {
			yield(target.Item{}, target.Refused("List", prefix, err))
			return
		}
		for _, item := range items {
			if !yield(item, nil) {
				return
			}
		}
	}
}

func (d *Dir) list(ctx context.Context, prefix string) ([]target.Item, error) {
	if d.gone() {
		return nil, fmt.Errorf("%w: %s is not there any more", target.ErrNoContainer, d.path)
	}
	parent, start := "", "."
	if i := strings.LastIndexByte(prefix, '/'); i >= 0 {
		rel, err := relative(prefix[:i])
		if err != nil {
			return nil, err
		}
		parent, start = prefix[:i+1], rel
	}
	w := walk{ctx: ctx, root: d.root, prefix: prefix}
	if err := w.dir(start, parent); err != nil {
		return nil, err
	}
	slices.SortFunc(w.items, func(a, b target.Item) int { return strings.Compare(a.Name, b.Name) })
	return w.items, nil
}

// walk collects the regular files below a directory whose names have the prefix.
type walk struct {
	ctx    context.Context
	root   *os.Root
	prefix string
	items  []target.Item
}

// dir visits one directory; name is what the names of its entries begin with.
func (w *walk) dir(rel, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	entries, err := readDir(w.root, rel)
	if errors.Is(err, iofs.ErrNotExist) {
		return nil // removed since its parent was read
	}
	if err != nil {
		return err
	}
	blobs, err := w.blobsOf(rel)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := w.entry(rel, name, e, blobs); err != nil {
			return err
		}
	}
	return nil
}

// blobsOf is which entries of a directory are page blobs.
func (w *walk) blobsOf(rel string) (map[string]bool, error) {
	entries, err := readDir(w.root, path.Join(rel, sideDir))
	if err != nil && !errors.Is(err, iofs.ErrNotExist) {
		return nil, err
	}
	blobs := make(map[string]bool, len(entries))
	for _, e := range entries {
		blobs[e.Name()] = true
	}
	return blobs, nil
}

func (w *walk) entry(rel, name string, e iofs.DirEntry, blobs map[string]bool) error {
	full := grow(name, e.Name())
	switch {
	case isReserved(e.Name()):
		return nil
	case e.IsDir():
		if !strings.HasSuffix(e.Name(), partSuffix) {
			full += "/"
		}
		if !strings.HasPrefix(full, w.prefix) && !strings.HasPrefix(w.prefix, full) {
			return nil
		}
		return w.dir(path.Join(rel, e.Name()), full)
	case !e.Type().IsRegular() || !strings.HasPrefix(full, w.prefix):
		return nil
	}
	info, err := e.Info()
	if errors.Is(err, iofs.ErrNotExist) {
		return nil // removed since the directory was read
	}
	if err != nil {
		return err
	}
	w.items = append(w.items, target.Item{Name: full, Size: info.Size(), Pages: blobs[e.Name()], Modified: info.ModTime()})
	return nil
}
