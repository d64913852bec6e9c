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
	Hook    func(string)     // called at every point of Points; nil: not
}

// Failpoints, named after the gap they sit in.
const (
	PointRecordDeleted = "retention: after a record was deleted, before the next one and what it needed"
	PointBlobDeleted   = "retention: after a segment, snapshot or pin was deleted, before the next one"
)

// Points lists them all.
func Points() []string { return []string{PointRecordDeleted, PointBlobDeleted} }

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
	if opts.Hook == nil {
		opts.Hook = func(string) {}
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
	theirs, err := p.checkClock(ctx)
	if err != nil {
		return Result{}, err
	}
	s, err := survey(ctx, p.t, p.vm)
	if err != nil {
		return Result{}, err
	}
	if err := p.checkNewest(s.live, theirs); err != nil {
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

// checkClock returns the target's time. Points carry ours, so while ours is wrong their ages are.
func (p *Pruner) checkClock(ctx context.Context) (time.Time, error) {
	theirs, err := p.clock.ServiceTime(ctx)
	if err != nil {
		return theirs, fmt.Errorf("time of the target: %w", err)
	}
	if skew := p.opts.Now().Sub(theirs); skew.Abs() > p.opts.MaxSkew {
		return theirs, &clockError{fmt.Errorf("%w by %s: nothing is pruned", ErrSkew, skew.Round(time.Second)),
			"set this machine's clock right (timedatectl)"}
	}
	return theirs, nil
}

// checkNewest refuses to count ages from a point that lies in the future: it was made while our clock was ahead, and
// would make every point before it look old. Time mends it.
func (p *Pruner) checkNewest(live []catalog.Record, theirs time.Time) error {
	if len(live) == 0 {
		return nil
	}
	newest := live[len(live)-1]
	if ahead := newest.Time.Sub(theirs); ahead > p.opts.MaxSkew {
		return &clockError{fmt.Errorf("%w: point %s lies %s ahead of it: nothing is pruned", ErrSkew, newest.ID(), ahead.Round(time.Second)),
			"nothing to do: the clock was ahead when the point was made, pruning goes on at " + newest.Time.UTC().Format(time.RFC3339)}
	}
	return nil
}

// clockError says what an operator may do about a clock. Its class is recoverable: it is looked at again.
type clockError struct {
	err    error
	action string
}

func (e *clockError) Error() string { return e.err.Error() }

// Unwrap makes errors.Is find ErrSkew.
func (e *clockError) Unwrap() error { return e.err }

// ErrorCode and ErrorAction are what package retry asks of an error.
func (e *clockError) ErrorCode() string { return "clock-skew" }

// ErrorAction is the next action.
func (e *clockError) ErrorAction() string { return e.action }

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
		p.opts.Hook(PointRecordDeleted)
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
			p.opts.Hook(PointBlobDeleted)
		}
	}
	result.Unnamed = s.unnamed()
	return failed
}
