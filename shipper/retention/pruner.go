package retention

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Defaults of Options.
const (
	DefaultGrace   = time.Hour       // from unneeded to deleted
	DefaultMaxSkew = 5 * time.Minute // between our clock and the service's
)

// Why nothing was pruned.
var (
	ErrSkew   = errors.New("clock differs from the target's")
	ErrFenced = errors.New("another generation writes")
)

// Clock asks the target for its time.
type Clock interface {
	ServiceTime(ctx context.Context) (time.Time, error)
}

// Options of a Pruner. Zero values are the defaults.
type Options struct {
	Grace   time.Duration
	MaxSkew time.Duration
	Now     func() time.Time // ours; compared with pins and with the target's clock
}

// Pruner deletes what the policy of one VM leaves over. Only the VM's writer
// runs one.
type Pruner struct {
	t     target.Target
	clock Clock
	vm    string
	opts  Options

	mu struct {
		sync.Mutex // held over a whole run, network included: runs do not overlap
		unneeded   map[string]time.Time
	}
}

// NewPruner makes the pruner of a VM.
func NewPruner(t target.Target, clock Clock, vm string, opts Options) *Pruner {
	if opts.Grace == 0 {
		opts.Grace = DefaultGrace
	}
	if opts.MaxSkew == 0 {
		opts.MaxSkew = DefaultMaxSkew
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	p := &Pruner{t: t, clock: clock, vm: vm, opts: opts}
	p.mu.unneeded = map[string]time.Time{}
	return p
}

// Result is what a run did.
type Result struct {
	Records   []catalog.PointID // deleted, void ones and those beyond a cut included
	Segments  []string          // blob names
	Snapshots []string          // disk id and snapshot id, with a slash between
	Pins      []string          // expired ones
	Waiting   int               // unneeded, but not yet for long enough
	// Unnamed are disks with blobs at the target that no record names and that
	// vm.json calls removed or does not know. Their replicas are leased, so their
	// owner deletes them.
	Unnamed []string
}

// Prune runs once. generation is ours: ErrFenced if vm.json names another. A
// broken chain of records, an unreadable pin, or a clock that differs stops it
// before anything is deleted. After an error the result says what was done;
// the next run goes on.
func (p *Pruner) Prune(ctx context.Context, policy Policy, generation uint64) (Result, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.checkClock(ctx); err != nil {
		return Result{}, err
	}
	s, err := survey(ctx, p.t, p.vm)
	if err != nil {
		return Result{}, err
	}
	if s.doc.Generation != generation {
		return Result{}, fmt.Errorf("%w: vm.json names %d, ours is %d", ErrFenced, s.doc.Generation, generation)
	}
	var result Result
	if err := p.pruneRecords(ctx, s, policy, &result); err != nil {
		return result, err
	}
	err = p.sweepLocked(ctx, s, &result)
	return result, err
}

func (p *Pruner) checkClock(ctx context.Context) error {
	theirs, err := p.clock.ServiceTime(ctx)
	if err != nil {
		return fmt.Errorf("time of the target: %w", err)
	}
	if skew := p.opts.Now().Sub(theirs); skew.Abs() > p.opts.MaxSkew {
		return fmt.Errorf("%w by %s", ErrSkew, skew)
	}
	return nil
}

// pruneRecords deletes the records of points that are not kept, the newest
// first, so that no listed point ever misses a record its fold reads.
func (p *Pruner) pruneRecords(ctx context.Context, s *surveyed, policy Policy, result *Result) error {
	kept := keptOf(s.doc, s.live, s.snapshots, policy)
	for i := len(s.live) - 1; i >= 0; i-- {
		id := s.live[i].ID()
		if kept[id] {
			s.kept = append(s.kept, s.live[i])
			continue
		}
		if err := p.t.Delete(ctx, catalog.RecordName(p.vm, id)); err != nil {
			return err
		}
		result.Records = append(result.Records, id)
	}
	return nil
}

// sweepLocked deletes what has been unneeded for Grace.
func (p *Pruner) sweepLocked(ctx context.Context, s *surveyed, result *Result) error {
	now := p.opts.Now()
	noticed := make(map[string]time.Time)
	defer func() { p.mu.unneeded = noticed }()
	var failed error
	for _, c := range s.candidates(now) {
		since, ok := p.mu.unneeded[c.key]
		if !ok {
			since = now
		}
		noticed[c.key] = since
		if failed != nil || now.Sub(since) < p.opts.Grace {
			result.Waiting++
			continue
		}
		if failed = c.remove(ctx, p.t, result); failed == nil {
			delete(noticed, c.key)
		}
	}
	result.Unnamed = s.unnamed()
	return failed
}
