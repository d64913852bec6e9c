package metrics

import (
	"context"
	"iter"
	"time"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// measured counts what goes to a target and comes back; it changes nothing.
type measured struct {
	t target.Target
	s *Set
}

// Target is t, measured.
func (s *Set) Target(t target.Target) target.Target { return measured{t, s} }

// done counts one request.
func (m measured) done(method string, begin time.Time, err error) {
	m.s.latency.WithLabelValues(method).Observe(time.Since(begin).Seconds())
	code := "ok"
	if err != nil {
		_, code, _, _ = retry.Describe(err)
	}
	m.s.requests.WithLabelValues(method, code).Inc()
}

// String is the target's.
func (m measured) String() string { return m.t.String() }

// List is the target's; the time of the caller's own work counts too.
func (m measured) List(ctx context.Context, prefix string) iter.Seq2[target.Item, error] {
	return func(yield func(target.Item, error) bool) {
		begin, last := time.Now(), error(nil)
		defer func() { m.done("List", begin, last) }()
		for item, err := range m.t.List(ctx, prefix) {
			if last = err; !yield(item, err) {
				return
			}
		}
	}
}

// Get is the target's.
func (m measured) Get(ctx context.Context, name string) (out target.Object, err error) {
	defer func(begin time.Time) { m.done("Get", begin, err) }(time.Now())
	return m.t.Get(ctx, name)
}

// Create is the target's.
func (m measured) Create(ctx context.Context, name string, data []byte) (out string, err error) {
	m.s.sent.Add(float64(len(data)))
	defer func(begin time.Time) { m.done("Create", begin, err) }(time.Now())
	return m.t.Create(ctx, name, data)
}

// Replace is the target's.
func (m measured) Replace(ctx context.Context, name string, data []byte, etag string) (out string, err error) {
	m.s.sent.Add(float64(len(data)))
	defer func(begin time.Time) { m.done("Replace", begin, err) }(time.Now())
	return m.t.Replace(ctx, name, data, etag)
}

// Delete is the target's.
func (m measured) Delete(ctx context.Context, name string) (err error) {
	defer func(begin time.Time) { m.done("Delete", begin, err) }(time.Now())
	return m.t.Delete(ctx, name)
}

// DeleteIf is the target's.
func (m measured) DeleteIf(ctx context.Context, name, etag string) (err error) {
	defer func(begin time.Time) { m.done("DeleteIf", begin, err) }(time.Now())
	return m.t.DeleteIf(ctx, name, etag)
}

// CreatePages is the target's.
func (m measured) CreatePages(ctx context.Context, name string, size, sequence int64) (err error) {
	defer func(begin time.Time) { m.done("CreatePages", begin, err) }(time.Now())
	return m.t.CreatePages(ctx, name, size, sequence)
}

// Properties is the target's.
func (m measured) Properties(ctx context.Context, name, snapshot string) (out target.Properties, err error) {
	defer func(begin time.Time) { m.done("Properties", begin, err) }(time.Now())
	return m.t.Properties(ctx, name, snapshot)
}

// PutPages is the target's.
func (m measured) PutPages(ctx context.Context, name string, off int64, data []byte, sum checksum.Sum, g target.Guard) (err error) {
	m.s.puts.Observe(float64(len(data)))
	m.s.sent.Add(float64(len(data)))
	defer func(begin time.Time) { m.done("PutPages", begin, err) }(time.Now())
	return m.t.PutPages(ctx, name, off, data, sum, g)
}

// ClearPages is the target's.
func (m measured) ClearPages(ctx context.Context, name string, off, n int64, g target.Guard) (err error) {
	defer func(begin time.Time) { m.done("ClearPages", begin, err) }(time.Now())
	return m.t.ClearPages(ctx, name, off, n, g)
}

// ReadPages is the target's.
func (m measured) ReadPages(ctx context.Context, name, snapshot string, off int64, p []byte) (err error) {
	m.s.received.Add(float64(len(p)))
	defer func(begin time.Time) { m.done("ReadPages", begin, err) }(time.Now())
	return m.t.ReadPages(ctx, name, snapshot, off, p)
}

// Sum is the target's.
func (m measured) Sum(ctx context.Context, name, snapshot string, off, n int64) (out checksum.Sum, err error) {
	defer func(begin time.Time) { m.done("Sum", begin, err) }(time.Now())
	return m.t.Sum(ctx, name, snapshot, off, n)
}

// Ranges is the target's.
func (m measured) Ranges(ctx context.Context, name, snapshot string, off, n int64) (out []target.ByteRange, err error) {
	defer func(begin time.Time) { m.done("Ranges", begin, err) }(time.Now())
	return m.t.Ranges(ctx, name, snapshot, off, n)
}

// Resize is the target's.
func (m measured) Resize(ctx context.Context, name string, size int64, g target.Guard) (err error) {
	defer func(begin time.Time) { m.done("Resize", begin, err) }(time.Now())
	return m.t.Resize(ctx, name, size, g)
}

// SetSequence is the target's.
func (m measured) SetSequence(ctx context.Context, name string, sequence int64, lease, ifMatch string) (out string, err error) {
	defer func(begin time.Time) { m.done("SetSequence", begin, err) }(time.Now())
	return m.t.SetSequence(ctx, name, sequence, lease, ifMatch)
}

// Snapshot is the target's.
func (m measured) Snapshot(ctx context.Context, name, lease, ifMatch string, metadata map[string]string) (out string, err error) {
	defer func(begin time.Time) { m.done("Snapshot", begin, err) }(time.Now())
	return m.t.Snapshot(ctx, name, lease, ifMatch, metadata)
}

// Snapshots is the target's.
func (m measured) Snapshots(ctx context.Context, name string) (out []target.SnapshotInfo, err error) {
	defer func(begin time.Time) { m.done("Snapshots", begin, err) }(time.Now())
	return m.t.Snapshots(ctx, name)
}

// DeleteSnapshot is the target's.
func (m measured) DeleteSnapshot(ctx context.Context, name, id string) (err error) {
	defer func(begin time.Time) { m.done("DeleteSnapshot", begin, err) }(time.Now())
	return m.t.DeleteSnapshot(ctx, name, id)
}

// DeletePages is the target's.
func (m measured) DeletePages(ctx context.Context, name, lease string) (err error) {
	defer func(begin time.Time) { m.done("DeletePages", begin, err) }(time.Now())
	return m.t.DeletePages(ctx, name, lease)
}

// AcquireLease is the target's.
func (m measured) AcquireLease(ctx context.Context, name, id string) (err error) {
	defer func(begin time.Time) { m.done("AcquireLease", begin, err) }(time.Now())
	return m.t.AcquireLease(ctx, name, id)
}

// BreakLease is the target's.
func (m measured) BreakLease(ctx context.Context, name string) (err error) {
	defer func(begin time.Time) { m.done("BreakLease", begin, err) }(time.Now())
	return m.t.BreakLease(ctx, name)
}

// ReleaseLease is the target's.
func (m measured) ReleaseLease(ctx context.Context, name, id string) (err error) {
	defer func(begin time.Time) { m.done("ReleaseLease", begin, err) }(time.Now())
	return m.t.ReleaseLease(ctx, name, id)
}
