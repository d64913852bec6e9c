package pageblob

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Snapshot freezes a page blob; see target.Target.
func (t *Target) Snapshot(ctx context.Context, name, lease, etag string, meta map[string]string) (string, error) {
	o := op{method: "Snapshot", name: name}
	if err := firstError(target.CheckName(name), target.CheckMetadata(meta)); err != nil {
		return "", target.Refused(o.method, name, err)
	}
	var id string
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		resp, err := c.NewPageBlobClient(t.endpoint.prefix+name).CreateSnapshot(ctx, &blob.CreateSnapshotOptions{
			Metadata:         pointers(meta),
			AccessConditions: conditions(lease, etag),
		})
		if err != nil {
			return err
		}
		id = value(resp.Snapshot)
		if id == "" {
			return nonsense("snapshot without an id")
		}
		return nil
	})
	return id, err
}

// Snapshots lists the snapshots of one page blob with their metadata; see target.Target. The service lists by prefix
// only, so other names that start with this one are read over; they come later.
func (t *Target) Snapshots(ctx context.Context, name string) ([]target.SnapshotInfo, error) {
	o := op{method: "Snapshots", name: name, read: true}
	if err := target.CheckName(name); err != nil {
		return nil, target.Refused(o.method, name, err)
	}
	var (
		all  []target.SnapshotInfo
		full = t.endpoint.prefix + name
	)
	err := t.list(ctx, o, container.ListBlobsInclude{Snapshots: true, Metadata: true}, func(b *container.BlobItem) (bool, error) {
		if value(b.Name) != full {
			return false, nil
		}
		if value(b.Snapshot) == "" {
			return true, nil
		}
		info, err := snapshotInfo(b)
		all = append(all, info)
		return err == nil, err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(all, func(a, b target.SnapshotInfo) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

// snapshotInfo reads a list entry. The id is a time of fixed width, so ids sort by age.
func snapshotInfo(b *container.BlobItem) (target.SnapshotInfo, error) {
	at, err := time.Parse(time.RFC3339Nano, *b.Snapshot)
	if err != nil || b.Properties == nil || b.Properties.ContentLength == nil {
		return target.SnapshotInfo{}, nonsense("list entry of snapshot %.80q is incomplete", *b.Snapshot)
	}
	return target.SnapshotInfo{ID: *b.Snapshot, Metadata: metadata(b.Metadata), Size: *b.Properties.ContentLength, Time: at}, nil
}

// DeleteSnapshot removes one snapshot; see target.Target.
func (t *Target) DeleteSnapshot(ctx context.Context, name, id string) error {
	o := op{method: "DeleteSnapshot", name: name}
	if err := target.CheckName(name); err != nil {
		return target.Refused(o.method, name, err)
	}
	if id == "" {
		// The request without an id would delete the base.
		return target.Refused(o.method, name, fmt.Errorf("%w: no snapshot id", target.ErrName))
	}
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		b, err := t.pages(c, name, id)
		if err != nil {
			return err
		}
		_, err = b.Delete(ctx, nil)
		return err
	})
	return unless(err, target.ErrNotFound)
}

// metadata makes keys lower-case: what comes in headers has been made canonical on the way.
func metadata(m map[string]*string) map[string]string {
	out := make(map[string]string, len(m))
	for k, v := range m {
		out[strings.ToLower(k)] = value(v)
	}
	return out
}

func pointers(m map[string]string) map[string]*string {
	out := make(map[string]*string, len(m))
	for k, v := range m {
		out[k] = &v
	}
	return out
}
