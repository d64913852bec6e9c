package shipper

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// DefaultBytesInFlight bounds the payload that all VMs of an appliance hold in
// memory at once, in bytes.
const DefaultBytesInFlight = 48 << 20

// Buffers hands out payload buffers of up to target.MaxPut bytes under one budget,
// to the most urgent put first.
type Buffers struct {
	line  *line
	pool  sync.Pool
	folds *semaphore.Weighted // one apply at a time holds a cache of frames
}

// NewBuffers makes a budget of the given number of bytes, at least one buffer.
func NewBuffers(bytes int64) *Buffers {
	return &Buffers{
		line:  newLine(bytes),
		folds: semaphore.NewWeighted(1),
		pool:  sync.Pool{New: func() any { b := make([]byte, target.MaxPut); return &b }},
	}
}

// Limit sets how many bytes may be sent a second, asked again for every put; 0 is
// no limit. It is called before the first pipeline runs.
func (b *Buffers) Limit(rate func() int64) {
	b.line.mu.Lock()
	defer b.line.mu.Unlock()
	b.line.mu.limit = rate
}

// get waits for the turn of a put of n bytes. The buffer has target.MaxPut bytes.
func (b *Buffers) get(ctx context.Context, o order, n int64) (*[]byte, error) {
	if err := b.line.wait(ctx, o, n); err != nil {
		return nil, err
	}
	return b.pool.Get().(*[]byte), nil
}

func (b *Buffers) put(p *[]byte, o order) {
	b.pool.Put(p)
	b.line.release(o)
}

// putter writes pages of one blob with a bounded number of requests in flight.
// Its first error ends it: what else was in flight has a definite or an unknown
// outcome, and the caller decides.
type putter struct {
	vm    *VM
	order order
	name  string
	guard target.Guard
	ctx   context.Context
	group *errgroup.Group
}

func (v *VM) newPutter(ctx context.Context, o order, name string, guard target.Guard) *putter {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(DefaultPutsInFlight)
	return &putter{vm: v, order: o, name: name, guard: guard, ctx: ctx, group: g}
}

// buffer waits for the turn of a put of n bytes.
func (p *putter) buffer(n int64) (*[]byte, error) {
	return p.vm.deps.Buffers.get(p.ctx, p.order, n)
}

// data writes (*buf)[:n] at off and gives the buffer back; acked runs after the
// target has acknowledged it.
func (p *putter) data(off int64, buf *[]byte, n int, sum checksum.Sum, acked func() error) {
	p.group.Go(func() error {
		defer p.vm.deps.Buffers.put(buf, p.order)
		err := retry.Do(p.ctx, p.policy(n), func(ctx context.Context) error {
			begin := time.Now()
			err := p.vm.target.PutPages(ctx, p.name, off, (*buf)[:n], sum, p.guard)
			p.vm.deps.Buffers.line.took(p.order, time.Since(begin))
			return err
		})
		if err != nil || acked == nil {
			return err
		}
		return acked()
	})
}

// clear makes [off, off+n) read as zeros in one request.
func (p *putter) clear(off, n int64, acked func() error) {
	p.group.Go(func() error {
		err := retry.Do(p.ctx, p.policy(0), func(ctx context.Context) error {
			return p.vm.target.ClearPages(ctx, p.name, off, n, p.guard)
		})
		if err != nil || acked == nil {
			return err
		}
		return acked()
	})
}

func (p *putter) wait() error { return p.group.Wait() }

// policy says which failures are repeated as they are. Behind a guard only those
// that changed nothing: after an unknown outcome the sequence number must be
// raised first, which is the caller's to do. A segment's blob has one writer and
// one content, so there everything may be repeated.
func (p *putter) policy(cost int) retry.Policy {
	return p.vm.policy(p.guard.Sequence < 0, cost)
}

// policy is how this VM repeats one request; cost is the bytes it moves.
func (v *VM) policy(idempotent bool, cost int) retry.Policy {
	p := retry.Policy{Idempotent: idempotent, Pacer: v.deps.Pacer, Cost: cost}
	if observe := v.opts.Observer.Retry; observe != nil {
		p.Notice = func(err error, _ time.Duration) { observe(err) }
	}
	return p
}

// repeat does op, which may be repeated whatever became of it, until it succeeds
// or the cycle has failed.
func (v *VM) repeat(ctx context.Context, op func(context.Context) error) error {
	return retry.Do(ctx, v.policy(true, 0), op)
}

// once does op and repeats it only after failures that changed nothing.
func (v *VM) once(ctx context.Context, op func(context.Context) error) error {
	return retry.Do(ctx, v.policy(false, 0), op)
}
