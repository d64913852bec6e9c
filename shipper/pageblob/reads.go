package pageblob

import (
	"context"
	"fmt"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/pageblob"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	// rangesStep is how much of a blob one Get Page Ranges asks for: of a fragmented disk the whole list times out.
	rangesStep = 1 << 30
	// rangesPage is how many ranges one answer may have; the service allows no more. Azurite ignores it.
	rangesPage = 10_000
)

// ReadPages fills p from a page blob or snapshot; see target.Target. It is one request, whatever the length.
func (t *Target) ReadPages(ctx context.Context, name, snapshot string, off int64, p []byte) error {
	o := op{method: "ReadPages", name: name, read: true}
	if err := firstError(target.CheckName(name), target.CheckWithin(off, int64(len(p)), target.MaxPages)); err != nil {
		return target.Refused(o.method, name, err)
	}
	if len(p) == 0 {
		// A range of no bytes cannot be asked for: to the service it means all of the blob.
		return nil
	}
	return t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
		b, err := t.pages(c, name, snapshot)
		if err != nil {
			return err
		}
		want := blob.HTTPRange{Offset: off, Count: int64(len(p))}
		resp, err := b.DownloadStream(ctx, &blob.DownloadStreamOptions{Range: want})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if err := checkRange(o, resp, want); err != nil {
			return err
		}
		if err := fill(resp.Body, p); err != nil {
			return err
		}
		return checkSums(p, nil, resp.ContentCRC64) // its MD5, if there is one, is of the whole blob
	})
}

// checkRange demands that the answer is for the range that was asked for. A range that reaches over the end of the
// blob is answered with what there is.
func checkRange(o op, resp blob.DownloadStreamResponse, want blob.HTTPRange) error {
	var first, last, size int64
	got := value(resp.ContentRange)
	if _, err := fmt.Sscanf(got, "bytes %d-%d/%d", &first, &last, &size); err != nil {
		return nonsense("content range %.80q", got)
	}
	if size < 0 {
		return nonsense("content range %.80q", got)
	}
	if err := target.CheckWithin(want.Offset, want.Count, size); err != nil {
		return target.Refused(o.method, o.name, err)
	}
	if first != want.Offset || last != want.Offset+want.Count-1 || value(resp.ContentLength) != want.Count {
		return nonsense("content range %.80q for %d bytes at %d", got, want.Count, want.Offset)
	}
	return nil
}

// Ranges tells what of a range is allocated; see target.Target.
func (t *Target) Ranges(ctx context.Context, name, snapshot string, off, n int64) ([]target.ByteRange, error) {
	o := op{method: "Ranges", name: name, read: true}
	if err := firstError(target.CheckName(name), target.CheckWithin(off, n, target.MaxPages)); err != nil {
		return nil, target.Refused(o.method, name, err)
	}
	var all []target.ByteRange
	for end := off + n; off < end; {
		step := min(rangesStep-off%rangesStep, end-off)
		found, err := t.rangesOf(ctx, o, snapshot, target.ByteRange{Off: off, Len: step}, end)
		if err != nil {
			return nil, err
		}
		for _, r := range found {
			all = appendRange(all, r)
		}
		off += step
	}
	return all, nil
}

// rangesOf asks for one step, page by page. end is the end of the whole question: it must lie within the blob.
func (t *Target) rangesOf(ctx context.Context, o op, snapshot string, in target.ByteRange, end int64) ([]target.ByteRange, error) {
	var found []target.ByteRange
	order := ascending{last: -1}
	options := &pageblob.GetPageRangesOptions{
		Range:      blob.HTTPRange{Offset: in.Off, Count: in.Len},
		MaxResults: to.Ptr[int32](rangesPage),
	}
	for {
		var page pageblob.GetPageRangesResponse
		err := t.do(ctx, o, func(ctx context.Context, c *container.Client) error {
			b, err := t.pages(c, o.name, snapshot)
			if err != nil {
				return err
			}
			page, err = b.NewGetPageRangesPager(options).NextPage(ctx)
			if err == nil {
				err = order.check(page, value(options.Marker))
			}
			return err
		})
		if err != nil {
			return nil, err
		}
		if err := target.CheckWithin(0, end, value(page.BlobContentLength)); err != nil {
			return nil, target.Refused(o.method, o.name, err)
		}
		for _, r := range page.PageRange {
			found = appendRange(found, clip(value(r.Start), value(r.End)+1, in))
		}
		if value(page.NextMarker) == "" {
			return found, nil
		}
		options.Marker = page.NextMarker
	}
}

// ascending holds the pages of one list of ranges against each other: one that is missing would read as zeros.
type ascending struct{ last int64 } // end of the range before

func (a *ascending) check(page pageblob.GetPageRangesResponse, marker string) error {
	for _, r := range page.PageRange {
		from, to := value(r.Start), value(r.End)
		if from <= a.last || to < from {
			return nonsense("a list of ranges has %d-%d after %d", from, to, a.last)
		}
		a.last = to
	}
	if next := value(page.NextMarker); next != "" && next == marker {
		return nonsense("a list of ranges that does not go on")
	}
	return nil
}

func clip(from, to int64, in target.ByteRange) target.ByteRange {
	from, to = max(from, in.Off), min(to, in.End())
	return target.ByteRange{Off: from, Len: max(to-from, 0)}
}

// appendRange adds r to a sorted list, merged with the last one where they touch.
func appendRange(all []target.ByteRange, r target.ByteRange) []target.ByteRange {
	if r.Len <= 0 {
		return all
	}
	if n := len(all); n > 0 && r.Off <= all[n-1].End() {
		all[n-1].Len = max(all[n-1].End(), r.End()) - all[n-1].Off
		return all
	}
	return append(all, r)
}
