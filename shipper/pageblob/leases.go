package pageblob

import (
	"context"
	"errors"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// infinite is the duration of a lease that no outage ends.
const infinite = -1

// AcquireLease takes the infinite lease of a page blob; see target.Target.
func (t *Target) AcquireLease(ctx context.Context, name, id string) error {
	return t.withLease(ctx, op{method: "AcquireLease", name: name}, id, func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.AcquireLease(ctx, infinite, nil)
		return err
	})
}

// BreakLease ends whoever's lease at once; see target.Target.
func (t *Target) BreakLease(ctx context.Context, name string) error {
	// The client wants an id of ours, although a break sends none.
	return t.withLease(ctx, op{method: "BreakLease", name: name}, uuid.NewString(), func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.BreakLease(ctx, &lease.BlobBreakOptions{BreakPeriod: to.Ptr[int32](0)})
		if bloberror.HasCode(err, bloberror.LeaseNotPresentWithLeaseOperation, leaseAlreadyBroken) {
			return nil
		}
		return err
	})
}

// ReleaseLease gives a lease back; see target.Target.
func (t *Target) ReleaseLease(ctx context.Context, name, id string) error {
	err := t.withLease(ctx, op{method: "ReleaseLease", name: name}, id, func(ctx context.Context, l *lease.BlobClient) error {
		_, err := l.ReleaseLease(ctx, nil)
		if bloberror.HasCode(err, bloberror.LeaseNotPresentWithLeaseOperation) {
			return nil
		}
		return err
	})
	if !errors.Is(err, target.ErrLeased) {
		return err
	}
	// A mismatch is also what the service says of a blob that has no lease any more.
	props, perr := t.Properties(ctx, name, "")
	if perr == nil && !props.Leased {
		return nil
	}
	return err
}

func (t *Target) withLease(ctx context.Context, o op, id string, f func(context.Context, *lease.BlobClient) error) error {
	if err := target.CheckName(o.name); err != nil {
		return target.Refused(o.method, o.name, err)
	}
	if _, err := uuid.Parse(id); err != nil {
		return target.Refused(o.method, o.name, fmt.Errorf("%w: lease id %.40q is no UUID", target.ErrName, id))
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		l, err := lease.NewBlobClient(c.NewPageBlobClient(t.endpoint.prefix+o.name), &lease.BlobClientOptions{LeaseID: &id})
		if err != nil {
			return err
		}
		return f(ctx, l)
	})
}
