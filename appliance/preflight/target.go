package preflight

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

const (
	// scratchPrefix begins the names of what a run makes at the target. No VM has such a name: a tilde is followed by
	// two digits there.
	scratchPrefix = "~preflight-"
	// scratchOld is from when on the scratch of another run is taken for left over.
	scratchOld = time.Hour
	// clearTimeout bounds the removal of the scratch when everything else has ended.
	clearTimeout = 30 * time.Second

	// skewWarn of the clocks is worth a word; at skewFail retention stops, and at 15 minutes the service refuses us.
	skewWarn = time.Minute
	skewFail = 5 * time.Minute

	// The rate is measured with puts like those of initial replication.
	ratePuts     = 16
	rateInFlight = 4
	rateTime     = 4 * time.Second
)

// blob is the scratch page blob of one run, and the small object beside it.
type blob struct {
	t            target.Target
	pages, small string
	lease        string
	etag         string
	snapshot     string
}

// target proves every right that replication needs, in the order it needs them, on a scratch blob.
func (r *run) target(ctx context.Context) {
	t, err := r.Open(ctx)
	if err != nil {
		r.failed("target", "open the target", err)
		return
	}
	id := uuid.NewString()
	b := &blob{t: t, pages: scratchPrefix + id + ".vhd", small: scratchPrefix + id + ".json", lease: uuid.NewString()}
	clearOld(ctx, t)
	if !r.reach(ctx, b) {
		return
	}
	ok := r.rights(ctx, b)
	if ok {
		r.measure(ctx, b)
	}
	r.remove(ctx, b, ok)
	if p, is := t.(*pageblob.Target); is {
		r.account(ctx, p, b)
	}
}

// failed reports an error with the code, cause and action that status would have for it.
func (r *run) failed(code, what string, err error) {
	_, _, cause, action := retry.Describe(err)
	r.fail(code, action, "cannot %s: %s", what, cause)
}

// reach makes the small object: it tells line, credential, container and clock.
func (r *run) reach(ctx context.Context, b *blob) bool {
	_, err := b.t.Create(ctx, b.small, []byte(`{"vhdrelay":"preflight, may be deleted"}`))
	if errors.Is(err, target.ErrNoContainer) {
		r.warn("target", "create it, or leave it to the first start, if the credential may", "%s: there is no such container yet: no right could be tried", b.t)
		return false
	}
	if err != nil {
		r.failed("target", "write to "+b.t.String(), err)
		return false
	}
	r.pass("target", "%s takes writes", b.t)
	r.clock(ctx, b)
	return true
}

// clock compares the time that the target gave the object with ours.
func (r *run) clock(ctx context.Context, b *blob) {
	ours := r.Now()
	for item, err := range b.t.List(ctx, b.small) {
		if err != nil {
			r.failed("target-rights", "list blobs", err)
			return
		}
		if item.Name != b.small {
			continue
		}
		skew := item.Modified.Sub(ours).Round(time.Second)
		switch {
		case skew.Abs() >= skewFail:
			r.fail("clock", "set the clock of this host, and keep it with NTP", "the target's clock is %v ahead of ours: nothing would be pruned", skew)
		case skew.Abs() >= skewWarn:
			r.warn("clock", "keep the clock of this host with NTP", "the target's clock is %v ahead of ours", skew)
		default:
			r.pass("clock", "the target's clock differs from ours by %v", skew.Abs())
		}
	}
}

// right is one thing that replication does at the target.
type right struct {
	name string
	try  func(ctx context.Context, b *blob) error
}

var rights = []right{
	{"read objects", func(ctx context.Context, b *blob) error {
		o, err := b.t.Get(ctx, b.small)
		b.etag = o.ETag
		return err
	}},
	{"overwrite objects", func(ctx context.Context, b *blob) error {
		_, err := b.t.Replace(ctx, b.small, []byte(`{}`), b.etag)
		return err
	}},
	{"create page blobs", func(ctx context.Context, b *blob) error {
		return b.t.CreatePages(ctx, b.pages, ratePuts*target.MaxPut, 1)
	}},
	{"lease blobs", func(ctx context.Context, b *blob) error { return b.t.AcquireLease(ctx, b.pages, b.lease) }},
	{"write pages", func(ctx context.Context, b *blob) error {
		page := make([]byte, target.PageSize)
		return b.t.PutPages(ctx, b.pages, 0, page, checksum.Of(page), target.Guard{Lease: b.lease, Sequence: 1})
	}},
	{"set sequence numbers", func(ctx context.Context, b *blob) (err error) {
		b.etag, err = b.t.SetSequence(ctx, b.pages, 2, b.lease, "")
		return err
	}},
	{"make snapshots", func(ctx context.Context, b *blob) (err error) {
		b.snapshot, err = b.t.Snapshot(ctx, b.pages, b.lease, b.etag, map[string]string{"kind": "preflight"})
		return err
	}},
	{"list snapshots", func(ctx context.Context, b *blob) error {
		all, err := b.t.Snapshots(ctx, b.pages)
		if err == nil && len(all) != 1 {
			err = fmt.Errorf("%d snapshots are listed, 1 was made", len(all))
		}
		return err
	}},
	{"read snapshots", func(ctx context.Context, b *blob) error {
		return b.t.ReadPages(ctx, b.pages, b.snapshot, 0, make([]byte, target.PageSize))
	}},
	{"delete snapshots", func(ctx context.Context, b *blob) error { return b.t.DeleteSnapshot(ctx, b.pages, b.snapshot) }},
	{"break leases", func(ctx context.Context, b *blob) error {
		if err := b.t.BreakLease(ctx, b.pages); err != nil {
			return err
		}
		return b.t.AcquireLease(ctx, b.pages, b.lease)
	}},
}

// rights tries them one after the other; false if one is missing.
func (r *run) rights(ctx context.Context, b *blob) bool {
	for _, right := range rights {
		if err := right.try(ctx, b); err != nil {
			r.failed("target-rights", right.name, err)
			return false
		}
	}
	return true
}

// measure sends puts like those of initial replication for a short while.
func (r *run) measure(ctx context.Context, b *blob) {
	data := make([]byte, target.MaxPut)
	_, _ = rand.Read(data) // never fails
	sum, begin := checksum.Of(data), time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(rateInFlight)
	sent := int64(0)
	for i := range int64(ratePuts) {
		if i > 0 && time.Since(begin) > rateTime {
			break
		}
		sent += target.MaxPut
		g.Go(func() error {
			return b.t.PutPages(ctx, b.pages, i*target.MaxPut, data, sum, target.Guard{Lease: b.lease, Sequence: 2})
		})
	}
	if err := g.Wait(); err != nil {
		r.failed("target-rate", "send "+size(sent), err)
		return
	}
	r.rate = int64(float64(sent) / max(time.Since(begin).Seconds(), 1e-3))
	if limit := r.Config.BandwidthAt(r.Now()); limit > 0 && limit < r.rate {
		r.rate = limit
	}
	r.pass("target-rate", "%s/s with %d puts at a time", size(r.rate), rateInFlight)
}

// remove takes the scratch away; a right to delete that is missing is found here.
func (r *run) remove(ctx context.Context, b *blob, report bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
	defer cancel()
	var snapshot error
	if b.snapshot != "" {
		snapshot = b.t.DeleteSnapshot(ctx, b.pages, b.snapshot)
	}
	err := errors.Join(snapshot, b.t.ReleaseLease(ctx, b.pages, b.lease), b.t.DeletePages(ctx, b.pages, ""), b.t.Delete(ctx, b.small))
	switch {
	case err != nil && report:
		r.failed("target-rights", "delete blobs; "+b.pages+" is left over", err)
	case report:
		r.pass("target-rights", "create, lease, write, snapshot, list, read and delete are allowed")
	}
}

// clearOld removes what crashed runs left. What cannot be removed now is tried again by the next run.
func clearOld(ctx context.Context, t target.Target) {
	for item, err := range t.List(ctx, scratchPrefix) {
		if err != nil {
			return
		}
		if time.Since(item.Modified) < scratchOld || !strings.HasPrefix(item.Name, scratchPrefix) {
			continue
		}
		if item.Pages {
			snapshots, _ := t.Snapshots(ctx, item.Name)
			_ = t.BreakLease(ctx, item.Name)
			for _, s := range snapshots {
				_ = t.DeleteSnapshot(ctx, item.Name, s.ID)
			}
			_ = t.DeletePages(ctx, item.Name, "")
			continue
		}
		_ = t.Delete(ctx, item.Name)
	}
}

// account warns of settings that cost money or do not work (AZURE.md 0.10), as far as the service tells a credential
// of the data plane.
func (r *run) account(ctx context.Context, t *pageblob.Target, b *blob) {
	a, err := t.Account(ctx)
	if err != nil {
		r.warn("target-account", "check by hand: a general-purpose v2 account with a flat namespace", "the service does not tell this credential the kind of the account: %v", err)
	} else {
		r.kind(a)
	}
	left, err := t.Remains(ctx, scratchPrefix+strings.TrimSuffix(strings.TrimPrefix(b.pages, scratchPrefix), ".vhd"))
	if err != nil {
		r.warn("target-history", "check by hand that versioning and blob soft delete are off", "the service does not list what was deleted: %v", err)
		return
	}
	const action = "turn it off for the account: what is pruned goes on costing"
	if left.Versions {
		r.warn("target-versioning", action, "versioning is on: a deleted blob left versions")
	}
	if left.Deleted {
		r.warn("target-soft-delete", action, "blob soft delete is on: a deleted blob is kept")
	}
	if !left.Versions && !left.Deleted {
		r.pass("target-history", "what is deleted is gone: no versioning, no soft delete")
	}
}

func (r *run) kind(a pageblob.Account) {
	text := fmt.Sprintf("%s, %s", a.Kind, a.SKU)
	switch {
	case a.HNS:
		r.fail("target-account", "use an account with a flat namespace", "%s with a hierarchical namespace: it has no page blobs", text)
	case strings.HasPrefix(a.SKU, "Premium"):
		r.warn("target-account", "use a standard account: premium page blobs take 100 snapshots each, one in 10 minutes", "%s", text)
	case a.Kind == "BlobStorage" || a.Kind == "BlockBlobStorage" || a.Kind == "FileStorage":
		r.fail("target-account", "use a general-purpose v2 account", "%s has no page blobs", text)
	case a.Kind == "Storage":
		r.warn("target-account", "upgrade it to general-purpose v2", "%s is a general-purpose v1 account", text)
	default:
		r.pass("target-account", "%s, flat namespace", text)
	}
}

// moves says how long initial replication takes at the measured rate.
func (r *run) moves(images []disk) {
	for _, d := range images {
		i := len(r.result.Moves) - 1
		if i < 0 || r.result.Moves[i].VM != d.vm {
			r.result.Moves = append(r.result.Moves, control.Move{VM: d.vm, RateBytesPerSecond: r.rate})
			i++
		}
		if r.below(d) {
			continue
		}
		r.result.Moves[i].VirtualBytes += d.info.VirtualSize
		r.result.Moves[i].Bytes += r.missing(d)
	}
	for i, m := range r.result.Moves {
		if r.rate > 0 {
			seconds := float64(m.Bytes) / float64(r.rate)
			r.result.Moves[i].Seconds = &seconds
		}
	}
}
