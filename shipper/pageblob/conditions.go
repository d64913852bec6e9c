package pageblob

import (
	"errors"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// conditions sends a lease and an If-Match; "" sends none.
func conditions(lease, etag string) *blob.AccessConditions {
	c := &blob.AccessConditions{}
	if lease != "" {
		c.LeaseAccessConditions = &blob.LeaseAccessConditions{LeaseID: &lease}
	}
	if etag != "" {
		c.ModifiedAccessConditions = ifMatch(etag)
	}
	return c
}

func ifMatch(etag string) *blob.ModifiedAccessConditions {
	return &blob.ModifiedAccessConditions{IfMatch: to.Ptr(azcore.ETag(etag))}
}

// sequenceIs sends the guard's sequence number as If-Sequence-Number-EQ; a negative one sends none.
func sequenceIs(g target.Guard) *pageblob.SequenceNumberAccessConditions {
	if g.Sequence < 0 {
		return nil
	}
	return &pageblob.SequenceNumberAccessConditions{IfSequenceNumberEqualTo: &g.Sequence}
}

// refusal replaces what the service says of a request by what it means.
func refusal(o op, answer, meaning error) error {
	e := target.Refused(o.method, o.name, meaning)
	var resp *azcore.ResponseError
	if errors.As(answer, &resp) {
		e.Status = resp.StatusCode
	}
	return e
}

// unless makes an error that is want a success: what was to be gone is gone. A missing container is no such success.
func unless(err, want error) error {
	if errors.Is(err, want) {
		return nil
	}
	return err
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// value is *p, or the zero value for a header or element the service left out.
func value[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
