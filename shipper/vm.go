package shipper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Defaults of Options.
const (
	DefaultInterval      = 30 * time.Second
	DefaultApplyInterval = 5 * time.Minute
	DefaultThreshold     = 0.5
	DefaultPutsInFlight  = 12 // a page blob is at its own limit with 8 to 16 (Azure's scalability targets)
)

// Options of a VM's pipeline.
type Options struct {
	Name, ID string
	Owner    catalog.Owner
	Live     func() Live  // asked at every turn: a reload changes it
	Quota    func() int64 // bytes that spool and saved blocks may take now
	TableDir string       // holds one checksum table a disk
	Tree     durable.Tree // the file system TableDir is on; nil: the operating system's
	Now      func() time.Time
	Hook     func(point string) // failpoints, nil in production
	Log      *slog.Logger
	Observer Observer
	Resting  bool // begin at rest: nothing goes to the target before GoOn
	// FirstGeneration is what a VM that is new at the target begins with, so that no
	// name of an earlier life there is used again; 0 is 1.
	FirstGeneration uint64
}

// Observer hears of what the pipeline does, for metrics. Each may be nil, and none
// may block.
type Observer struct {
	Stage func(stage string, took time.Duration, err error) // every turn of a stage
	Retry func(err error)                                   // before a request is repeated
	Point func(took time.Duration)                          // a recovery point, from its seal
	Drain func(took time.Duration)                          // from a seal until the last write before it was answered
	// Pruned: recovery points were deleted, and what only they needed.
	Pruned func(points, segments, snapshots int)
}

// Live is what may change while the pipeline runs. Zero values are the defaults.
type Live struct {
	Interval      time.Duration // between seals
	ApplyInterval time.Duration // between folds into the replica
	Level         segment.Level
	Policy        retention.Policy
	Threshold     float64 // part of a disk that may be changed and unshipped before the VM is marked, 0 … 1
	// HoldCatchUp: a VM that is marked because too much changed waits before it
	// catches up (resync.overflow: window, outside of the window).
	HoldCatchUp bool
}

// Deps are the parts a pipeline works on.
type Deps struct {
	Volume Volume
	Spool  *spool.Spool
	// Open opens the target, which need not be reachable when the appliance starts:
	// the connect stage asks until it is. Nothing else touches it before.
	Open    func(context.Context) (target.Target, error)
	Docs    Documents
	Parents chain.Store  // what the images of the VM lie over, named as Source.Path is; nil: nothing
	Buffers *Buffers     // shared by all VMs: the one queue and budget for bytes in flight
	Pacer   *retry.Pacer // shared by all VMs: one account
	Probe   *retry.Probe // of the target's endpoint, shared by all VMs; nil: one of our own
}

// VM is the pipeline of one VM: capture, ship and apply, and the initial
// replication of its disks. Run drives it; everything else asks or wakes it.
type VM struct {
	opts  Options
	deps  Deps
	state *document[vmRecord]
	files *files

	leaves *document[leaves]

	rest   *rest
	target target.Target // set by the connect stage before connected is closed

	connect, capture, ship, apply, initial, prune *stage
	pruner                                        *retention.Pruner
	connected                                     chan struct{} // closed when generation and records are known

	// spoolGate is held by the ship stage while it works on one manifest and by
	// a give-up, which must not pull a manifest away under it. Held over network I/O.
	spoolGate gate

	// captureGate is held for one capture, and by a takeover, after which nothing
	// that was captured before counts. Held over I/O.
	captureGate gate
	unclear     string // of the newest look at what the images lie over; captureGate's

	sealing turn // of the capture stage

	redoing sync.Mutex // held over the local I/O of the one redo
	redone  atomic.Bool
	sent    atomic.Int64 // bytes acknowledged of the epoch that is being uploaded

	mu struct {
		sync.Mutex   // never held over I/O
		disks        map[string]*disk
		order        []string
		removed      []*disk           // their tables are open still
		records      []catalog.Record  // live points, oldest first
		cuts         int               // captures that were cut to a part that fits
		overQuota    bool              // sealing is paused by the quota
		catchUp      string            // why points are paused: the cause of the resynchronization
		openReason   string            // why the newest epoch is open
		wanted       uint64            // somebody asked for an epoch of this number or a later one, changes or not
		lostTo       error             // vm.json names another generation: nothing is written any more (I7)
		localBad     bool              // a spooled copy is damaged: an apply reads what the target holds
		givingUp     bool              // a give-up waits for the ship stage
		unsettled    Epoch             // its manifest could not be committed nor unlinked
		described    []catalog.DiskDoc // the disks as vm.json has them, after we wrote or read it
		doubts       []catalog.Doubt   // the same of points that may not be what they should
		giveUpFrom   uint64            // a spooled epoch that cannot be shipped; 0: none
		unfinished   *unfinished       // an epoch with its manifest, not yet with its table
		lastSeal     time.Time
		newestEpoch  uint64 // newest epoch that has a manifest
		lastCycle    Cycle
		cycles       []CycleTime // oldest first
		restsSince   time.Time   // since when overQuota is set
		spooledBytes int64       // into the spool since the start, as stored
		sentBytes    int64       // of it, what the target took
		idleAt       time.Time   // when the VM was last found idle
		unchanged    time.Time   // what unchanged_until was last set to
		stopShipping context.CancelCauseFunc
		restart      context.CancelCauseFunc // has the stages begin again; nil before they run
		changed      chan struct{}
	}
}

// Cycle says what the newest shipped epoch carried.
type Cycle struct {
	Epoch         uint64
	ChangedBytes  int64
	StoredBytes   int64
	SealedAt      time.Time
	Closed        bool          // it is a point
	RecordedAfter time.Duration // from the seal to the durable point
}

// New opens the pipeline of a VM over its durable state. Nothing runs before Run.
func New(deps Deps, opts Options) (*VM, error) {
	opts = withDefaults(opts)
	state, _, err := openDocument[vmRecord](deps.Docs, "ship/"+opts.ID)
	if err != nil {
		return nil, fmt.Errorf("vm %s: pipeline state: %w", opts.Name, err)
	}
	if v := state.get().Version; v > stateVersion {
		return nil, fmt.Errorf("vm %s: pipeline state has version %d, this binary knows %d: install the newer one: %w", opts.Name, v, stateVersion, ErrVersion)
	}
	v := &VM{opts: opts, deps: deps, state: state, connected: make(chan struct{}), spoolGate: newGate(), captureGate: newGate(), rest: newRest(opts.Resting)}
	if deps.Probe == nil {
		v.deps.Probe = retry.NewProbe(v.answers, 0, 0)
	}
	v.files = newFiles(deps.Parents)
	if err := v.openLeaves(); err != nil {
		return nil, fmt.Errorf("vm %s: which images its disks begin with: %w", opts.Name, err)
	}
	v.mu.disks = map[string]*disk{}
	v.mu.changed = make(chan struct{})
	v.connect = v.newStage(StageNameConnect, nil, v.connectStep)
	interval := func() time.Duration { return v.live().Interval }
	v.capture = v.newStage("capture", interval, v.captureStep)
	v.capture.rests = false
	v.ship = v.newStage("ship", interval, v.shipStep)
	v.apply = v.newStage("apply", func() time.Duration { return v.live().ApplyInterval }, v.applyStep)
	v.initial = v.newStage(StageNameInitial, interval, v.initialStep)
	v.prune = v.newStage("prune", func() time.Duration { return pruneInterval }, v.pruneStep)
	v.mu.newestEpoch = v.newestSpooled()
	return v, nil
}

func withDefaults(o Options) Options {
	if o.Live == nil {
		o.Live = func() Live { return Live{} }
	}
	if o.Tree == nil {
		o.Tree = durable.OS{}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Hook == nil {
		o.Hook = func(string) {}
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	o.Log = o.Log.With("vm", o.Name)
	return o
}

// live is what is in force now.
func (v *VM) live() Live {
	l := v.opts.Live()
	if l.Interval == 0 {
		l.Interval = DefaultInterval
	}
	if l.Level == "" {
		l.Level = segment.Fastest
	}
	if l.ApplyInterval == 0 {
		l.ApplyInterval = DefaultApplyInterval
	}
	if l.Threshold == 0 {
		l.Threshold = DefaultThreshold
	}
	return l
}

// newestSpooled is the highest epoch that ever had a manifest, as far as local
// state tells; numbers above it may be gaps.
func (v *VM) newestSpooled() uint64 {
	s := v.state.get()
	newest := max(s.Recorded.Epoch, s.UnrecordedThrough)
	if ms := v.deps.Spool.Manifests(); len(ms) > 0 {
		newest = max(newest, ms[len(ms)-1].Epoch)
	}
	return newest
}

// AddDisk brings an image into the pipeline; it takes effect at the next seal. A
// disk that comes back after epochs have gone by without it begins anew, under
// another name at the target: a fold cannot step over the gap. Disks that began with
// an image that is not here are looked for in those that are.
func (v *VM) AddDisk(src Source, probe Probe) error {
	a := v.files.add(src, probe)
	for file, id := range v.leaves.get().Disk {
		if file != src.ID() && v.diskByID(id) == nil {
			if _, here := v.files.get(file); here {
				continue
			}
			if err := v.addDisk(newHead(id, attached{src: noSource{id: file, name: id}, probe: noProbe})); err != nil {
				return err
			}
		}
	}
	id := v.diskFor(src.ID())
	if d := v.diskByID(id); d != nil && d.src.lost() {
		d.src.set(a)
		d.setInfo(probe())
		v.notify()
		v.initial.ask()
		return nil
	}
	return v.addDisk(newHead(id, a))
}

func (v *VM) addDisk(src *head) error {
	state, found, err := openDocument[diskRecord](v.deps.Docs, v.diskKey(src.ID()))
	if err != nil {
		return fmt.Errorf("disk %s: pipeline state: %w", src.Name(), err)
	}
	if st := state.get(); !found || v.missedEpochs(src.ID(), st) {
		if err := state.update(func(r *diskRecord) { *r = r.anew(v.deps.Volume.LastEpoch()) }); err != nil {
			return fmt.Errorf("disk %s: pipeline state: %w", src.Name(), err)
		}
	}
	d := &disk{src: src, files: v.files, state: state, log: v.opts.Log, round: newGate()}
	d.loadBlocks = func(number uint64) (*previous, error) {
		b, err := v.opts.Tree.ReadFile(v.blocksPath(d, number))
		if err != nil {
			return nil, err
		}
		return decodePrevious(b)
	}
	d.setInfo(d.probe())
	if state.get().TableReady {
		if err := v.reopenTable(d); err != nil {
			return err
		}
	}
	v.mu.Lock()
	if _, ok := v.mu.disks[src.ID()]; !ok {
		v.mu.order = append(v.mu.order, src.ID())
	}
	v.mu.disks[src.ID()] = d
	v.mu.Unlock()
	v.notify()
	v.initial.ask()
	return nil
}

// anew is the record of a disk that starts over after epoch.
func (r diskRecord) anew(epoch uint64) diskRecord {
	next := diskRecord{Stage: StageWaiting, Former: r.Former}
	if r.Key != "" {
		next.Former = append(next.Former[:len(next.Former):len(next.Former)], formerKey{r.Key, epoch})
	}
	return next
}

// missedEpochs tells whether the chain of epochs went on without a complete disk.
func (v *VM) missedEpochs(id string, st diskRecord) bool {
	if st.Gone {
		return true
	}
	carried := v.state.get().Carried
	return st.Stage == StageComplete && v.newestSpooled() > st.Base && len(carried) > 0 && !slices.Contains(carried, id)
}

// reopenTable opens the table of a disk that comes back. A table that is lost or
// damaged must not keep a guest from its disk: a new one knows nothing, and is
// found out by a comparison with the replica.
func (v *VM) reopenTable(d *disk) error {
	err := v.openTable(d)
	if err == nil {
		return nil
	}
	v.opts.Log.Error("checksum table is lost; it is rebuilt from the replica", "disk", d.src.Name(), "code", "table-lost", "cause", err, "action", "look at the state directory's disk")
	if d.state.get().Stage != StageComplete { // the initial replication begins again
		return d.state.update(func(r *diskRecord) { r.TableReady = false })
	}
	st := d.state.get()
	if err := d.state.update(func(r *diskRecord) { r.Resized, r.Matching, r.MatchedTo = true, true, 0 }); err != nil {
		return err
	}
	t, err := v.newTable(d, max(st.VirtualSize, st.MostBytes))
	if err != nil {
		return err
	}
	v.setCatchUp("the checksum table of disk " + d.src.Name() + " was lost")
	return d.publishTable(t)
}

// RemoveDisk takes an image out. A disk that may go on in another image, which lies below
// it or over it, is decided about before the next seal.
func (v *VM) RemoveDisk(fileID string) {
	v.files.remove(fileID)
	d := v.diskWith(fileID)
	if d == nil {
		return
	}
	if d.translated() || v.liesBelow(d) {
		d.src.lose()
		v.capture.wake()
		return
	}
	if err := v.drop(d); err != nil {
		// If the disk comes back, Carried tells the same, unless it does so within one epoch.
		v.opts.Log.Warn("removal of a disk not noted", "disk", d.src.Name(), "cause", err)
	}
}

// liesBelow tells whether an image that is new lies over the disk's.
func (v *VM) liesBelow(d *disk) bool {
	st := d.src.get().stat
	return slices.ContainsFunc(v.disks(), func(o *disk) bool { return o != d && !o.src.lost() && o.liesOver(st) })
}

// drop takes a disk out; its replica stays until its last point is pruned.
func (v *VM) drop(d *disk) error {
	v.mu.Lock()
	v.takeOutLocked(d)
	v.mu.removed = append(v.mu.removed, d)
	v.mu.Unlock()
	err := errors.Join(d.state.update(func(r *diskRecord) { r.Gone = true }), v.unbind(d.src.ID()))
	d.state.retire() // a stage may be at work on the disk still
	// And on the table: it is closed between two captures.
	if err := v.opts.Tree.Remove(v.tablePath(d)); err != nil && !errors.Is(err, os.ErrNotExist) {
		v.opts.Log.Warn("table of a removed disk is left over", "disk", d.src.Name(), "cause", err)
	}
	v.sweepBlocks(d, 0)
	v.notify()
	return err
}

// takeOutLocked takes a disk from the list, unless another has its id by now.
func (v *VM) takeOutLocked(d *disk) {
	id := d.src.ID()
	if v.mu.disks[id] == d {
		delete(v.mu.disks, id)
		v.mu.order = slices.DeleteFunc(slices.Clone(v.mu.order), func(have string) bool { return have == id })
	}
}

// closeRemoved closes what removed disks left open.
func (v *VM) closeRemoved() {
	v.mu.Lock()
	removed := v.mu.removed
	v.mu.removed = nil
	v.mu.Unlock()
	for _, d := range removed {
		_ = d.closeTable() // nothing of it is needed any more
	}
}

// stillHere tells whether a disk is in the pipeline, and not another of its id.
func (v *VM) stillHere(d *disk) bool { return v.diskByID(d.src.ID()) == d }

// markGone notes of a disk that is not here that its table missed an epoch.
func (v *VM) markGone(id string) error {
	state, found, err := openDocument[diskRecord](v.deps.Docs, v.diskKey(id))
	if err != nil || !found || state.get().Gone {
		return err
	}
	return state.update(func(r *diskRecord) { r.Gone = true })
}

func (v *VM) tablePath(d *disk) string {
	return filepath.Join(v.opts.TableDir, d.src.ID()+".table")
}

// disks are the disks in the order they came.
func (v *VM) disks() []*disk {
	v.mu.Lock()
	defer v.mu.Unlock()
	all := make([]*disk, 0, len(v.mu.order))
	for _, id := range v.mu.order {
		all = append(all, v.mu.disks[id])
	}
	return all
}

func (v *VM) disksIn(stage Stage) []*disk {
	var in []*disk
	for _, d := range v.disks() {
		if d.state.get().Stage == stage {
			in = append(in, d)
		}
	}
	return in
}

// Run redoes what a crash left half done and runs the stages until ctx ends.
// No goroutine outlives it.
func (v *VM) Run(ctx context.Context) error {
	redo := v.newStage("redo", nil, func(context.Context) error { return v.Redo() })
	redo.rests = false
	if !redo.until(ctx) {
		return nil
	}
	v.notify()
	for {
		inner, cancel := context.WithCancelCause(ctx)
		v.mu.Lock()
		v.mu.restart = cancel
		v.mu.Unlock()
		err := v.runStages(inner)
		again := errors.Is(context.Cause(inner), errRestart)
		cancel(nil)
		if !again || ctx.Err() != nil {
			return err
		}
	}
}

// errRestart has the stages begin again, with the connection.
var errRestart = errors.New("stages begin again")

// runStages runs them until ctx ends.
func (v *VM) runStages(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { v.capture.run(ctx); return nil })
	g.Go(func() error {
		if !v.connect.until(ctx) {
			return nil
		}
		v.noteConnected()
		for _, s := range []*stage{v.ship, v.apply, v.initial, v.prune} {
			g.Go(func() error { s.run(ctx); return nil })
		}
		return nil
	})
	return g.Wait()
}

// Redo brings tables and spool to where a crash left them going. It must have
// returned before a guest writes and before anything is compared: a table that is
// behind a manifest may agree with a block that the manifest's epoch disagrees
// with, and what is forgotten before a redo would come back. Run calls it too; it
// is done once.
func (v *VM) Redo() error {
	v.redoing.Lock()
	defer v.redoing.Unlock()
	if v.redone.Load() {
		return nil
	}
	if err := v.redo(); err != nil {
		return err
	}
	for _, d := range v.disks() {
		if err := d.forgetCutOff(); err != nil {
			return fmt.Errorf("vm %s: %w", v.opts.Name, err)
		}
	}
	v.redone.Store(true)
	return nil
}

// notify wakes everybody who waits for the pipeline to move.
func (v *VM) notify() {
	v.mu.Lock()
	defer v.mu.Unlock()
	close(v.mu.changed)
	v.mu.changed = make(chan struct{})
}

// Moved returns a channel that is closed when the pipeline has got on: an epoch,
// a point, a disk, a failure.
func (v *VM) Moved() <-chan struct{} { return v.movement() }

// SealSoon asks for an epoch before its time; an idle VM makes none.
// It does not end the wait after a failure: who asks may have been woken by that
// very failure, and the two would wake each other without a pause.
func (v *VM) SealSoon() {
	if v.capture.trouble() == nil {
		v.capture.wake()
	}
}

// movement returns a channel that is closed at the next movement.
func (v *VM) movement() <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.mu.changed
}
