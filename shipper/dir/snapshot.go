package dir

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// idLayout of snapshot ids: no colon, which some network file systems refuse.
const (
	idLayout   = "20060102T150405.000Z"
	dataSuffix = ".vhd"
	copyPiece  = 8 << 20 // bytes between two looks at the context
)

// frozen is <id>.json of a snapshot.
type frozen struct {
	Version  int               `json:"version"`
	ETag     string            `json:"etag"`
	Sequence int64             `json:"sequence"`
	Metadata map[string]string `json:"metadata"`
}

// snapshotPath is the data of a snapshot; an id that cannot be one of ours does
// not exist, wherever it may point.
func snapshotPath(rel, id string) (string, error) {
	if _, err := time.Parse(idLayout, id); err != nil {
		return "", fmt.Errorf("%w: snapshot %.40q", target.ErrNotFound, id)
	}
	return path.Join(side(rel), id+dataSuffix), nil
}

func metadataPath(rel, id string) string { return path.Join(side(rel), id+".json") }

// Snapshot implements target.Target: a reflink where the file system has them, a
// sparse copy elsewhere. Puts wait until it is done.
func (d *Dir) Snapshot(ctx context.Context, name, lease, ifMatch string, metadata map[string]string) (string, error) {
	var id string
	err := d.run(ctx, "Snapshot", name, func(rel string) error {
		if err := target.CheckMetadata(metadata); err != nil {
			return err
		}
		return d.exclusive(ctx, rel, func(a *access) (err error) {
			if err := a.matches(ifMatch, a.info); err != nil {
				return err
			}
			if lease != "" {
				if err := a.allows(lease); err != nil {
					return err
				}
			}
			id, err = a.freeze(ctx, metadata)
			return err
		})
	})
	if err != nil {
		return "", err
	}
	return id, nil
}

// freeze: the id is used up, the copy made, the metadata written, and the data
// gets its name last.
func (a *access) freeze(ctx context.Context, metadata map[string]string) (string, error) {
	etag := a.etag(a.info)
	a.state.Snapshot = nextID(a.state.Snapshot, a.dir.opts.Now())
	id := a.state.Snapshot
	if err := a.save(); err != nil {
		return "", err
	}
	f := frozen{Version: stateVersion, ETag: etag, Sequence: a.Sequence, Metadata: metadata}
	if len(metadata) > 0 {
		f.ETag = fmt.Sprintf(`"%s-%s"`, a.Birth, id)
	}
	doc, err := json.Marshal(f)
	if err != nil {
		return "", err
	}
	temp, err := a.copy(ctx)
	if err != nil {
		return "", err
	}
	if err := a.dir.replace(metadataPath(a.rel, id), append(doc, '\n')); err != nil {
		_ = a.dir.root.Remove(temp) // swept later if this does not succeed
		return "", err
	}
	data, err := snapshotPath(a.rel, id)
	if err != nil {
		return "", err
	}
	return id, a.dir.publishTemp(temp, data)
}

// nextID is now, but later than last.
func nextID(last string, now time.Time) string {
	now = now.UTC().Truncate(time.Millisecond)
	if t, err := time.Parse(idLayout, last); err == nil && !now.After(t) {
		now = t.Add(time.Millisecond)
	}
	return now.Format(idLayout)
}

// copy makes a synced temporary copy of the blob.
func (a *access) copy(ctx context.Context) (temp string, err error) {
	f, temp, err := a.dir.createTemp()
	if err != nil {
		return "", err
	}
	err = clone(f, a.file)
	if noReflink(err) {
		err = sparseCopy(ctx, f, a.file, a.info.Size())
	}
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err != nil {
		_ = a.dir.root.Remove(temp) // swept later if this does not succeed
		return "", err
	}
	return temp, nil
}

func clone(to, from *os.File) error {
	return unix.IoctlFileClone(int(to.Fd()), int(from.Fd()))
}

func noReflink(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EOPNOTSUPP, syscall.ENOTTY, syscall.EXDEV, syscall.EINVAL, syscall.ENOSYS} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// sparseCopy copies what is data, by copy_file_range where the kernel can.
func sparseCopy(ctx context.Context, to, from *os.File, size int64) error {
	if err := to.Truncate(size); err != nil {
		return err
	}
	ranges, err := dataRanges(ctx, from, 0, size)
	if err != nil {
		return err
	}
	for _, r := range ranges {
		for off := r.Off; off < r.End(); off += copyPiece {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := copyRange(to, from, off, min(copyPiece, r.End()-off)); err != nil {
				return err
			}
		}
	}
	return nil
}

func copyRange(to, from *os.File, off, n int64) error {
	if _, err := from.Seek(off, io.SeekStart); err != nil {
		return err
	}
	if _, err := to.Seek(off, io.SeekStart); err != nil {
		return err
	}
	_, err := io.CopyN(to, from, n)
	return err
}

// Reflinks reports whether snapshots cost no copy here. Without them an apply is
// worth it only when the log exceeds the disk's data, or retention needs a base.
func (d *Dir) Reflinks() (bool, error) {
	from, fromPath, err := d.createTemp()
	if err != nil {
		return false, err
	}
	defer d.root.Remove(fromPath) // swept later if this does not succeed
	defer from.Close()            // an empty probe
	to, toPath, err := d.createTemp()
	if err != nil {
		return false, err
	}
	defer d.root.Remove(toPath) // swept later if this does not succeed
	defer to.Close()            // an empty probe
	err = clone(to, from)
	if noReflink(err) {
		return false, nil
	}
	return err == nil, err
}

func (d *Dir) readFrozen(rel, id string) (frozen, error) {
	var f frozen
	doc, err := d.root.ReadFile(metadataPath(rel, id))
	if err != nil {
		return f, absent(err)
	}
	if err := json.Unmarshal(doc, &f); err != nil {
		return f, fmt.Errorf("%w: %s: %w", target.ErrDamaged, metadataPath(rel, id), err)
	}
	if f.Metadata == nil {
		f.Metadata = map[string]string{}
	}
	return f, nil
}

func (d *Dir) snapshotProperties(rel, id string) (target.Properties, error) {
	info, err := d.snapshotInfo(rel, id)
	if err != nil {
		return target.Properties{}, err
	}
	f, err := d.readFrozen(rel, id)
	if err != nil {
		return target.Properties{}, err
	}
	return target.Properties{Size: info.Size, ETag: f.ETag, Sequence: f.Sequence, Metadata: f.Metadata}, nil
}

func (d *Dir) snapshotInfo(rel, id string) (target.SnapshotInfo, error) {
	data, err := snapshotPath(rel, id)
	if err != nil {
		return target.SnapshotInfo{}, err
	}
	st, err := d.root.Lstat(data)
	if err != nil {
		return target.SnapshotInfo{}, absent(err)
	}
	f, err := d.readFrozen(rel, id)
	if err != nil {
		return target.SnapshotInfo{}, err
	}
	at, err := time.Parse(idLayout, id)
	return target.SnapshotInfo{ID: id, Metadata: f.Metadata, Size: st.Size(), Time: at}, err
}

// snapshotIDs are the ids of a blob's snapshots, oldest first.
func (d *Dir) snapshotIDs(rel string) ([]string, error) {
	entries, err := readDir(d.root, side(rel))
	if errors.Is(err, iofs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), dataSuffix)
		if _, err := time.Parse(idLayout, id); ok && err == nil {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Snapshots implements target.Target. What it returns is durable.
func (d *Dir) Snapshots(ctx context.Context, name string) ([]target.SnapshotInfo, error) {
	var out []target.SnapshotInfo
	err := d.run(ctx, "Snapshots", name, func(rel string) error {
		ids, err := d.snapshotIDs(rel)
		if err != nil || len(ids) == 0 {
			return err
		}
		if err := syncDir(d.root, side(rel)); err != nil {
			return err
		}
		for _, id := range ids {
			info, err := d.snapshotInfo(rel, id)
			if errors.Is(err, target.ErrNotFound) {
				continue // deleted since the directory was read
			}
			if err != nil {
				return err
			}
			out = append(out, info)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// DeleteSnapshot implements target.Target.
func (d *Dir) DeleteSnapshot(ctx context.Context, name, id string) error {
	return d.run(ctx, "DeleteSnapshot", name, func(rel string) error {
		data, err := snapshotPath(rel, id)
		if err != nil {
			return nil // never one of ours
		}
		if err := d.remove(data); err != nil {
			return err
		}
		return lost(d.remove(metadataPath(rel, id)))
	})
}
