package pageblob

import (
	"context"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
)

// Probe asks the service for one name below the prefix: the cheapest request that proves line, credential, container
// and the right to list. A missing container is target.ErrNoContainer with the next action.
// Repeat: freely.
func (t *Target) Probe(ctx context.Context) error {
	return t.do(ctx, op{method: "Probe", read: true}, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewListBlobsFlatPager(&container.ListBlobsFlatOptions{
			Prefix: to.Ptr(t.endpoint.prefix), MaxResults: to.Ptr[int32](1),
		}).NextPage(ctx)
		return err
	})
}

// EnsureContainer creates the container if it is missing; one that exists is success. It is for a first start: later a
// container that has gone is a fault to report, not to paper over with an empty one. It needs an account key, or a role
// or SAS that may create containers.
// Repeat: freely.
func (t *Target) EnsureContainer(ctx context.Context) error {
	return t.do(ctx, op{method: "EnsureContainer"}, func(ctx context.Context, c *container.Client) error {
		_, err := c.Create(ctx, nil)
		if bloberror.HasCode(err, bloberror.ContainerAlreadyExists) {
			return nil
		}
		return err
	})
}
