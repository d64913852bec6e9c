package pageblob

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/bloberror"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/lease"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// maxSequence is the largest sequence number all endpoints keep exactly: Azurite holds it as a float.
const maxSequence = 1<<53 - 1

// CreatePages makes a page blob of zeros; see target.Target.
func (t *Target) CreatePages(ctx context.Context, name string, size, sequence int64) error {
	o := op{method: "CreatePages", name: name}
	if err := firstError(target.CheckName(name), target.CheckSize(size), checkSequence(sequence)); err != nil {
		return target.Refused(o.method, name, err)
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewPageBlobClient(t.endpoint.prefix+name).Create(ctx, size, &pageblob.CreateOptions{
			SequenceNumber:   &sequence,
			AccessConditions: &blob.AccessConditions{ModifiedAccessConditions: &blob.ModifiedAccessConditions{IfNoneMatch: to.Ptr(azcore.ETagAny)}},
		})
		if bloberror.HasCode(err, bloberror.LeaseIDMissing) {
			// Which of two reasons the service names is its choice: what is leased exists.
			return refusal(o, err, fmt.Errorf("%w: and is leased", target.ErrExists))
		}
		return err
	})
}

// Properties of a page blob or snapshot; see target.Target.
func (t *Target) Properties(ctx context.Context, name, snapshot string) (target.Properties, error) {
	o := op{method: "Properties", name: name, read: true}
	if err := target.CheckName(name); err != nil {
		return target.Properties{}, target.Refused(o.method, name, err)
	}
	var props target.Properties
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		b, err := t.pages(c, name, snapshot)
		if err != nil {
			return err
		}
		resp, err := b.GetProperties(ctx, nil)
		if err != nil {
			return err
		}
		props, err = propertiesOf(resp)
		return err
	})
	return props, err
}

// propertiesOf reads an answer. What it does not say is not taken for zero: a lost header would undo a condition.
func propertiesOf(resp blob.GetPropertiesResponse) (target.Properties, error) {
	etag, err := etagOf(resp.ETag)
	if err != nil {
		return target.Properties{}, err
	}
	if resp.ContentLength == nil {
		return target.Properties{}, nonsense("properties without a size")
	}
	if value(resp.BlobType) == blob.BlobTypePageBlob && target.CheckSize(*resp.ContentLength) != nil {
		return target.Properties{}, nonsense("a page blob of %d bytes", *resp.ContentLength)
	}
	return target.Properties{
		Size:     *resp.ContentLength,
		ETag:     etag,
		Sequence: value(resp.BlobSequenceNumber),
		Leased:   value(resp.LeaseStatus) == lease.StatusTypeLocked,
		Metadata: metadata(resp.Metadata),
	}, nil
}

// PutPages writes pages with their checksum and under g; see target.Target. data must not change until it returns.
func (t *Target) PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g target.Guard) error {
	o := op{method: "PutPages", name: name}
	if err := firstError(target.CheckName(name), target.CheckPut(off, len(data))); err != nil {
		return target.Refused(o.method, name, err)
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		body := streaming.NopCloser(bytes.NewReader(data))
		at := blob.HTTPRange{Offset: off, Count: int64(len(data))}
		resp, err := c.NewPageBlobClient(t.endpoint.prefix+name).UploadPages(ctx, body, at, &pageblob.UploadPagesOptions{
			TransactionalValidation:        blob.TransferValidationTypeCRC64(sum),
			SequenceNumberAccessConditions: sequenceIs(g),
			AccessConditions:               conditions(g.Lease, ""),
		})
		if err != nil {
			return err
		}
		return checkEcho(o, resp.ContentCRC64, sum)
	})
}

// checkEcho compares the checksum the service computed of what it stored with ours. It has checked that itself; a
// difference here means that the header was lost on the way and something else was stored.
func checkEcho(o op, echo []byte, sum checksum.Sum) error {
	if len(echo) != 8 || binary.LittleEndian.Uint64(echo) == uint64(sum) {
		return nil
	}
	return target.Lost(o.method, o.name, fmt.Errorf("%w: the service stored %016x instead of %016x", target.ErrChecksum, binary.LittleEndian.Uint64(echo), uint64(sum)))
}

// ClearPages makes a range read as zeros; see target.Target.
func (t *Target) ClearPages(ctx context.Context, name string, off, n int64, g target.Guard) error {
	o := op{method: "ClearPages", name: name}
	if err := firstError(target.CheckName(name), target.CheckPages(off, n, target.MaxPages)); err != nil {
		return target.Refused(o.method, name, err)
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewPageBlobClient(t.endpoint.prefix+name).ClearPages(ctx, blob.HTTPRange{Offset: off, Count: n}, &pageblob.ClearPagesOptions{
			SequenceNumberAccessConditions: sequenceIs(g),
			AccessConditions:               conditions(g.Lease, ""),
		})
		return err
	})
}

// Resize sets the size of a page blob; see target.Target. The service takes no sequence condition for it, so the
// number is read and its state demanded by If-Match.
func (t *Target) Resize(ctx context.Context, name string, size int64, g target.Guard) error {
	o := op{method: "Resize", name: name}
	if err := firstError(target.CheckName(name), target.CheckSize(size)); err != nil {
		return target.Refused(o.method, name, err)
	}
	etag := ""
	if g.Sequence >= 0 {
		props, err := t.Properties(ctx, name, "")
		if err != nil {
			return err
		}
		if props.Sequence != g.Sequence {
			return target.Refused(o.method, name, fmt.Errorf("%w: %d instead of %d", target.ErrSequence, props.Sequence, g.Sequence))
		}
		etag = props.ETag
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		_, err := c.NewPageBlobClient(t.endpoint.prefix+name).Resize(ctx, size, &pageblob.ResizeOptions{AccessConditions: conditions(g.Lease, etag)})
		return err
	})
}

// SetSequence sets the sequence number to an absolute value; see target.Target.
func (t *Target) SetSequence(ctx context.Context, name string, sequence int64, lease, etag string) (string, error) {
	o := op{method: "SetSequence", name: name}
	if err := firstError(target.CheckName(name), checkSequence(sequence)); err != nil {
		return "", target.Refused(o.method, name, err)
	}
	var now string
	err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		resp, err := c.NewPageBlobClient(t.endpoint.prefix+name).UpdateSequenceNumber(ctx, &pageblob.UpdateSequenceNumberOptions{
			ActionType:       to.Ptr(pageblob.SequenceNumberActionTypeUpdate),
			SequenceNumber:   &sequence,
			AccessConditions: conditions(lease, etag),
		})
		if err != nil {
			return err
		}
		if n := resp.BlobSequenceNumber; n != nil && *n != sequence {
			return nonsense("sequence number %d was set, and the answer says %d", sequence, *n)
		}
		now, err = etagOf(resp.ETag)
		return err
	})
	return now, err
}

func checkSequence(n int64) error {
	if n < 0 || n > maxSequence {
		return fmt.Errorf("%w: sequence number %d, at most %d", target.ErrRange, n, int64(maxSequence))
	}
	return nil
}

// DeletePages removes a page blob under its lease; see target.Target.
func (t *Target) DeletePages(ctx context.Context, name, lease string) error {
	return t.remove(ctx, "DeletePages", name, lease, "")
}
