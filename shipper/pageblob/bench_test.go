package pageblob

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/streaming"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/blob"
	"github.com/Azure/azure-sdk-for-go/sdk/storage/azblob/container"
	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
)

// sink is a service that takes every body and keeps nothing.
func sink(b *testing.B) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("x-ms-request-id", "r")
		w.WriteHeader(http.StatusCreated)
	}))
	b.Cleanup(s.Close)
	return s
}

// plain is a page blob client as anybody would make it.
func plain(b *testing.B, url string) func(context.Context, int64, []byte) error {
	cred, err := blob.NewSharedKeyCredential("acct", keyA)
	ok(b, err)
	c, err := container.NewClientWithSharedKeyCredential(url+"/acct/box", cred, nil)
	ok(b, err)
	p := c.NewPageBlobClient("n")
	return func(ctx context.Context, off int64, data []byte) error {
		_, err := p.UploadPages(ctx, streaming.NopCloser(bytes.NewReader(data)), blob.HTTPRange{Offset: off, Count: int64(len(data))}, nil)
		return err
	}
}

// ours checksums and puts through a Target.
func ours(b *testing.B, url string) func(context.Context, int64, []byte) error {
	tgt := open(b, Options{URL: url + "/acct/box", Env: func(string) string { return "AccountKey=" + keyA }})
	return func(ctx context.Context, off int64, data []byte) error {
		return tgt.PutPages(ctx, "n", off, data, checksum.Of(data), guarded)
	}
}

// timed makes n puts, sixteen at a time.
func timed(b *testing.B, n int, data []byte, put func(context.Context, int64, []byte) error) time.Duration {
	began := time.Now()
	g, ctx := errgroup.WithContext(b.Context())
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error { return put(ctx, int64(i)*int64(len(data)), data) })
	}
	ok(b, g.Wait())
	return time.Since(began)
}

// pair is the time of the same puts both ways, one right after the other.
type pair struct{ plain, ours time.Duration }

// inTurns times a pair; who goes first changes, because the second one has the first one's garbage.
func inTurns(b *testing.B, turn, n int, data []byte, plain, ours func(context.Context, int64, []byte) error) (p pair) {
	if turn%2 == 1 {
		p.ours = timed(b, n, data, ours)
	}
	p.plain = timed(b, n, data, plain)
	if turn%2 == 0 {
		p.ours = timed(b, n, data, ours)
	}
	return p
}

func median(pairs []pair, of func(pair) float64) float64 {
	var all []float64
	for _, p := range pairs {
		all = append(all, of(p))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// BenchmarkPut compares puts through a Target, checksums included, with plain ones through the SDK, to the same
// in-process service, in turns. The ratio is the median of the pairs' throughputs; DESIGN §8 demands 0.9 of the whole
// way.
func BenchmarkPut(b *testing.B) {
	for _, c := range []struct {
		name string
		size int
		n    int
	}{{"4MiB", 4 << 20, 64}, {"64KiB", 64 << 10, 512}} {
		b.Run(c.name, func(b *testing.B) {
			s := sink(b)
			a, o := plain(b, s.URL), ours(b, s.URL)
			data := bytes.Repeat([]byte("vhdrelay"), c.size/8)
			timed(b, 32, data, a) // connections and pools
			timed(b, 32, data, o)
			b.ReportAllocs()
			var pairs []pair
			for b.Loop() {
				pairs = append(pairs, inTurns(b, len(pairs), c.n, data, a, o))
			}
			mib := float64(c.n*c.size) / (1 << 20)
			b.ReportMetric(mib/median(pairs, func(p pair) float64 { return p.plain.Seconds() }), "plain-MiB/s")
			b.ReportMetric(mib/median(pairs, func(p pair) float64 { return p.ours.Seconds() }), "target-MiB/s")
			b.ReportMetric(median(pairs, func(p pair) float64 { return p.plain.Seconds() / p.ours.Seconds() }), "ratio")
		})
	}
}
