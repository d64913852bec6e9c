package pageblob

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blockblob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Get reads a small object whole; see target.Target.
func (t *Target) Get(ctx context.Context, name string) (target.Object, error) {
	o := op{method: "Get", name: name, read: true}
	if err := target.CheckName(name); err != nil {
		return target.Object{}, target.Refused(o.method, name, err)
	}
	var object target.Object
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		resp, err := c.NewBlobClient(t.endpoint.prefix+name).DownloadStream(ctx, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		object, err = readObject(resp)
		if err != nil {
			return fmt.Errorf("body: %w", err)
		}
		return nil
	})
	return object, err
}

// readObject reads a body of which the length must be the one announced; Azurite and the service always announce it.
func readObject(resp blob.DownloadStreamResponse) (target.Object, error) {
	size := value(resp.ContentLength)
	if size > target.MaxObject {
		return target.Object{}, fmt.Errorf("%w: %d bytes, at most %d", target.ErrTooLarge, size, target.MaxObject)
	}
	data := make([]byte, size)
	if err := fill(resp.Body, data); err != nil {
		return target.Object{}, err
	}
	return target.Object{Data: data, ETag: string(value(resp.ETag))}, nil
}

// fill reads exactly len(p) bytes: less is an error, and more too.
func fill(r io.Reader, p []byte) error {
	n, err := io.ReadFull(r, p)
	if err != nil && len(p) > 0 {
		return fmt.Errorf("%d bytes of %d: %w", n, len(p), io.ErrUnexpectedEOF)
	}
	if extra, _ := io.CopyN(io.Discard, r, 1); extra > 0 {
		return fmt.Errorf("more than the %d bytes asked for: %w", len(p), io.ErrUnexpectedEOF)
	}
	return nil
}

// Create makes a small object that must not exist; see target.Target.
func (t *Target) Create(ctx context.Context, name string, data []byte) (string, error) {
	return t.upload(ctx, "Create", name, data, &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)})
}

// Replace overwrites a small object under If-Match; see target.Target.
func (t *Target) Replace(ctx context.Context, name string, data []byte, etag string) (string, error) {
	if etag == "" {
		// Without the header the service would overwrite whatever is there.
		return "", target.Refused("Replace", name, fmt.Errorf("%w: no etag given", target.ErrCondition))
	}
	return t.upload(ctx, "Replace", name, data, ifMatch(etag))
}

func (t *Target) upload(ctx context.Context, method, name string, data []byte, cond *blob.ModifiedAccessConditions) (string, error) {
	if err := firstError(target.CheckName(name), target.CheckObject(data)); err != nil {
		return "", target.Refused(method, name, err)
	}
	var etag string
	err := t.do(ctx, op{method: method, name: name}, func(ctx context.Context, c *container.Client) error {
		body := streaming.NopCloser(bytes.NewReader(data))
		resp, err := c.NewBlockBlobClient(t.endpoint.prefix+name).Upload(ctx, body, &blockblob.UploadOptions{
			TransactionalValidation: blob.TransferValidationTypeCRC64(checksum.Of(data)),
			AccessConditions:        &blob.AccessConditions{ModifiedAccessConditions: cond},
		})
		etag = string(value(resp.ETag))
		return err
	})
	return etag, err
}

// Delete removes a small object or an unleased page blob; see target.Target.
func (t *Target) Delete(ctx context.Context, name string) error {
	return t.remove(ctx, "Delete", name, "")
}

// remove deletes a blob; one that is absent is gone. Its snapshots are never deleted along with it.
func (t *Target) remove(ctx context.Context, method, name, lease string) error {
	o := op{method: method, name: name}
	if err := target.CheckName(name); err != nil {
		return target.Refused(o.method, name, err)
	}
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewBlobClient(t.endpoint.prefix+name).Delete(ctx, &blob.DeleteOptions{AccessConditions: conditions(lease, "")})
		return err
	})
	return unless(err, target.ErrNotFound)
}

// List yields the blobs below a prefix; see target.Target. A page of the service's list is asked for when the one
// before has been yielded.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[target.Item, error] {
	return func(yield func(target.Item, error) bool) {
		o := op{method: "List", name: prefix, read: true}
		err := t.list(ctx, o, container.ListBlobsInclude{}, func(b *container.BlobItem) bool {
			item, err := t.item(b)
			if err != nil {
				yield(item, target.Refused(o.method, prefix, err))
				return false
			}
			return yield(item, nil)
		})
		if err != nil {
			yield(target.Item{}, err)
		}
	}
}

func (t *Target) item(b *container.BlobItem) (target.Item, error) {
	name, ok := strings.CutPrefix(value(b.Name), t.endpoint.prefix)
	if !ok || b.Properties == nil || b.Properties.ContentLength == nil {
		return target.Item{}, fmt.Errorf("%w: list entry %.80q is incomplete", errNotService, value(b.Name))
	}
	return target.Item{
		Name:     name,
		Size:     *b.Properties.ContentLength,
		Pages:    value(b.Properties.BlobType) == blob.BlobTypePageBlob,
		Modified: value(b.Properties.LastModified),
	}, nil
}

// list calls see for each blob whose name starts with the prefix o.name until it returns false.
func (t *Target) list(ctx context.Context, o op, include container.ListBlobsInclude, see func(*container.BlobItem) bool) error {
	options := &container.ListBlobsFlatOptions{Prefix: to.Ptr(t.endpoint.prefix + o.name), Include: include}
	for {
		var page container.ListBlobsFlatResponse
		err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
			var err error
			// A pager of its own for every page: each is made with the credential of its time.
			page, err = c.NewListBlobsFlatPager(options).NextPage(ctx)
			return err
		})
		if err != nil {
			return err
		}
		if page.Segment == nil {
			return target.Refused(o.method, o.name, fmt.Errorf("%w: list without entries", errNotService))
		}
		for _, b := range page.Segment.BlobItems {
			if !see(b) {
				return nil
			}
		}
		if value(page.NextMarker) == "" {
			return nil
		}
		options.Marker = page.NextMarker
	}
}
