package pageblob

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Account is what the service tells of the account on the data plane.
type Account struct {
	Kind string // Storage, StorageV2, BlobStorage, BlockBlobStorage, FileStorage
	SKU  string // e.g. Standard_LRS
	HNS  bool   // hierarchical namespace: it has no page blobs
}

// Account asks for the kind of the account; not every credential may.
// Repeat: freely.
func (t *Target) Account(ctx context.Context) (a Account, err error) {
	err = t.do(ctx, op{method: "Account", read: true}, func(ctx context.Context, c *container.Client) error {
		resp, err := c.GetAccountInfo(ctx, nil)
		if err != nil {
			return err
		}
		a.HNS = value(resp.IsHierarchicalNamespaceEnabled)
		if resp.AccountKind != nil {
			a.Kind = string(*resp.AccountKind)
		}
		if resp.SKUName != nil {
			a.SKU = string(*resp.SKUName)
		}
		return nil
	})
	return a, err
}

// Remains is what the service keeps of blobs that were deleted.
type Remains struct {
	Deleted  bool // soft delete is on
	Versions bool // versioning is on
}

// Remains lists what is left of blobs whose name begins with prefix after they were deleted: there is no other way to
// see with a credential of the container whether versioning and soft delete are on.
// Repeat: freely.
func (t *Target) Remains(ctx context.Context, prefix string) (Remains, error) {
	var left Remains
	o := op{method: "Remains", name: prefix, read: true}
	err := t.list(ctx, o, container.ListBlobsInclude{Deleted: true, Versions: true, Snapshots: true}, func(b *container.BlobItem) (bool, error) {
		left.Deleted = left.Deleted || value(b.Deleted)
		left.Versions = left.Versions || value(b.VersionID) != ""
		return true, nil
	})
	return left, err
}
