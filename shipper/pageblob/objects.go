package pageblob

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/binary"
	"errors"
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
		return err
	})
	return object, err
}

// readObject reads a body of which the length must be the one announced; Azurite and the service always announce it.
func readObject(resp blob.DownloadStreamResponse) (target.Object, error) {
	size := value(resp.ContentLength)
	if size > target.MaxObject {
		return target.Object{}, fmt.Errorf("%w: %d bytes, at most %d", target.ErrTooLarge, size, target.MaxObject)
	}
	etag, err := etagOf(resp.ETag)
	if err != nil {
		return target.Object{}, err
	}
	data := make([]byte, size)
	if err := fill(resp.Body, data); err != nil {
		return target.Object{}, fmt.Errorf("body: %w", err)
	}
	if err := checkSums(data, resp.ContentMD5, resp.ContentCRC64); err != nil {
		return target.Object{}, err
	}
	return target.Object{Data: data, ETag: etag}, nil
}

// etagOf is the ETag of an answer, which every one about a blob has: without it the next If-Match would be no condition.
func etagOf(e *azcore.ETag) (string, error) {
	if value(e) == "" {
		return "", nonsense("it has no ETag")
	}
	return string(*e), nil
}

// checkSums compares data with the checksums that an answer gives of it, as far as it gives any.
func checkSums(data, sumMD5, sumCRC []byte) error {
	if len(sumMD5) == md5.Size && [md5.Size]byte(sumMD5) != md5.Sum(data) {
		return fmt.Errorf("%w: the service says MD5 %x of %d bytes", target.ErrChecksum, sumMD5, len(data))
	}
	if len(sumCRC) == 8 && binary.LittleEndian.Uint64(sumCRC) != uint64(checksum.Of(data)) {
		return fmt.Errorf("%w: the service says CRC-64 %016x of %d bytes", target.ErrChecksum, binary.LittleEndian.Uint64(sumCRC), len(data))
	}
	return nil
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
		if err == nil {
			err = checkSums(data, resp.ContentMD5, resp.ContentCRC64)
		}
		if err == nil {
			etag, err = etagOf(resp.ETag)
		}
		return err
	})
	return etag, err
}

// Delete removes a small object or an unleased page blob; see target.Target.
func (t *Target) Delete(ctx context.Context, name string) error {
	return t.remove(ctx, "Delete", name, "", "")
}

// DeleteIf removes a small object under If-Match; see target.Target.
func (t *Target) DeleteIf(ctx context.Context, name, etag string) error {
	if etag == "" {
		return target.Refused("DeleteIf", name, fmt.Errorf("%w: no etag given", target.ErrCondition))
	}
	err := t.remove(ctx, "DeleteIf", name, "", etag)
	if !errors.Is(err, target.ErrCondition) {
		return err
	}
	// A blob that is gone has no ETag to match either, and may be answered so.
	if _, look := t.Get(ctx, name); errors.Is(look, target.ErrNotFound) {
		return nil
	}
	return err
}

// remove deletes a blob; one that is absent is gone. Its snapshots are never deleted along with it.
func (t *Target) remove(ctx context.Context, method, name, lease, etag string) error {
	o := op{method: method, name: name}
	if err := target.CheckName(name); err != nil {
		return target.Refused(o.method, name, err)
	}
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewBlobClient(t.endpoint.prefix+name).Delete(ctx, &blob.DeleteOptions{AccessConditions: conditions(lease, etag)})
		return err
	})
	return unless(err, target.ErrNotFound)
}

// List yields the blobs below a prefix; see target.Target. A page of the service's list is asked for when the one
// before has been yielded.
func (t *Target) List(ctx context.Context, prefix string) iter.Seq2[target.Item, error] {
	return func(yield func(target.Item, error) bool) {
		o := op{method: "List", name: prefix, read: true}
		err := t.list(ctx, o, container.ListBlobsInclude{}, func(b *container.BlobItem) (bool, error) {
			item, err := t.item(b)
			return err == nil && yield(item, nil), err
		})
		if err != nil {
			yield(target.Item{}, err)
		}
	}
}

func (t *Target) item(b *container.BlobItem) (target.Item, error) {
	name, ok := strings.CutPrefix(value(b.Name), t.endpoint.prefix)
	if !ok || b.Properties == nil || b.Properties.ContentLength == nil {
		return target.Item{}, nonsense("list entry %.80q is incomplete", value(b.Name))
	}
	return target.Item{
		Name:     name,
		Size:     *b.Properties.ContentLength,
		Pages:    value(b.Properties.BlobType) == blob.BlobTypePageBlob,
		Modified: value(b.Properties.LastModified),
	}, nil
}

// list calls see for each blob whose name starts with the prefix o.name until it returns false or an error.
func (t *Target) list(ctx context.Context, o op, include container.ListBlobsInclude, see func(*container.BlobItem) (bool, error)) error {
	in := listing{prefix: t.endpoint.prefix + o.name, twice: include.Snapshots}
	options := &container.ListBlobsFlatOptions{Prefix: &in.prefix, Include: include}
	for {
		var page container.ListBlobsFlatResponse
		err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
			var err error
			// A pager of its own for every page: each is made with the credential of its time.
			page, err = c.NewListBlobsFlatPager(options).NextPage(ctx)
			if err == nil {
				err = in.check(page, value(options.Marker))
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, b := range page.Segment.BlobItems {
			if more, err := see(b); err != nil {
				return t.classify(o, failure{err: err})
			} else if !more {
				return nil
			}
		}
		if value(page.NextMarker) == "" {
			return nil
		}
		options.Marker = page.NextMarker
	}
}

// maxEmptyPages is how many pages of a list in a row may have no entry; the service may send some.
const maxEmptyPages = 1000

// listing holds the pages of one list against each other: a list that is out of order, or has no end, is none.
type listing struct {
	prefix string
	twice  bool   // names may come several times, once for each snapshot
	last   string // name
	empty  int    // pages since the last entry
}

func (l *listing) check(page container.ListBlobsFlatResponse, marker string) error {
	if page.Segment == nil {
		return nonsense("a list without entries")
	}
	for _, b := range page.Segment.BlobItems {
		name := value(b.Name)
		if !strings.HasPrefix(name, l.prefix) {
			return nonsense("a list of %.80q has %.80q", l.prefix, name)
		}
		if name < l.last || name == l.last && !l.twice {
			return nonsense("a list has %.80q after %.80q", name, l.last)
		}
		l.last = name
	}
	l.empty++
	if len(page.Segment.BlobItems) > 0 {
		l.empty = 0
	}
	if next := value(page.NextMarker); next != "" && (next == marker || l.empty > maxEmptyPages) {
		return nonsense("a list that does not go on")
	}
	return nil
}
