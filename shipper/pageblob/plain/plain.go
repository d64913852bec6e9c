// Package plain puts pages as anybody would with the SDK: no checksums, no conditions, no transport of its own. It is
// the yardstick that the whole way of the appliance is measured with (DESIGN §8); nothing else uses it.
package plain

import (
	"bytes"
	"context"
	"fmt"
	"io"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/errgroup"
)

const (
	pageSize = 4 << 20 // bytes of a put, the most the service takes
	inFlight = 16      // puts at once
)

// Blob is where Put puts.
type Blob struct {
	Container    string // URL
	Account, Key string // the shared key, base64
	Name         string
}

// Put creates the page blob and puts size bytes of r, sixteen puts of 4 MiB at a time. size is a multiple of 512.
func Put(ctx context.Context, to Blob, r io.ReaderAt, size int64) error {
	cred, err := blob.NewSharedKeyCredential(to.Account, to.Key)
	if err != nil {
		return fmt.Errorf("account key: %w", err)
	}
	c, err := container.NewClientWithSharedKeyCredential(to.Container, cred, nil)
	if err != nil {
		return err
	}
	p := c.NewPageBlobClient(to.Name)
	if _, err := p.Create(ctx, size, nil); err != nil {
		return err
	}
	buffers := make(chan []byte, inFlight)
	for range inFlight {
		buffers <- make([]byte, pageSize)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(inFlight)
	for off := int64(0); off < size; off += pageSize {
		g.Go(func() error {
			buf := <-buffers
			defer func() { buffers <- buf }()
			data := buf[:min(pageSize, size-off)]
			if _, err := r.ReadAt(data, off); err != nil {
				return err
			}
			_, err := p.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: off, Count: int64(len(data))}, nil)
			return err
		})
	}
	return g.Wait()
}
