package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/appliance/metrics"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/kv/badgerkv"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// Version is the release; the Makefile sets it.
var Version = "development"

// Appliance is the composition: it owns every part's life.
type Appliance struct {
	conf      atomic.Pointer[config.Config]
	log       *slog.Logger
	now       func() time.Time
	hook      func(point string)
	regions   int // cap of the activity log, see Options
	host      string
	machineID string

	notify    *systemd.Notifier
	stored    map[string]*os.File            // what the process before this one left, by name
	wrong     atomic.Pointer[control.Reason] // set while the config file does not read
	listener  net.Listener
	stateLock *dirLock
	journal   *journal.Journal
	buffers   *shipper.Buffers
	pacer     *retry.Pacer
	probe     *retry.Probe
	stores    []*store
	bounds    bounds // of a stop
	metrics   *metrics.Set
	jobs      *jobs
	work      chan *job // verifications and exports to begin

	share struct {
		sync.Mutex // held over looking at the spools
		bytes      int64
		at         time.Time
	}
	opened struct {
		sync.Mutex // held over opening the target
		target     target.Target
	}
	mu struct {
		sync.Mutex // held over the local I/O of making a machine
		machines   map[string]*machine
		lives      map[string]*lifecycle.Life  // of every VM that was ever seen
		leaving    map[string]*leaving         // what is being unprotected
		start      func(*machine)              // runs a machine that came after the start; nil before it
		spawn      func(func(context.Context)) // runs what else must end with the appliance; nil before its start
		stopping   bool                        // no machine starts any more
	}
}

// Options of Serve; the zero value is production's.
type Options struct {
	Log  *slog.Logger
	Now  func() time.Time   // nil: time.Now
	Hook func(point string) // called at every failpoint of every stage
	// ActivityRegions is the cap of active regions of a disk; 0: the journal's.
	ActivityRegions int

	stored map[string]*os.File // what the process before this one left; nil: Serve asks
	wrong  error               // why the config file does not read
}

// Serve runs the appliance until ctx ends, then stops it in order: no more
// writes, one last epoch into the spool, a clean journal.
func Serve(ctx context.Context, conf *config.Config, opts Options) error {
	if err := Able("/dev/fuse"); err != nil {
		return err
	}
	if opts.stored == nil {
		opts.stored = systemd.Stored()
	}
	a, closeState, err := open(conf, opts)
	if a != nil {
		a.stored = opts.stored
		a.misread(opts.wrong)
	}
	if errors.Is(err, errState) {
		return errors.Join(a.serveBare(ctx, err), a.close())
	}
	if err != nil {
		return err
	}
	err = a.serve(ctx)
	if errors.Is(err, errHangs) {
		return err // somebody uses what would be closed
	}
	return errors.Join(err, closeState())
}

// compose makes the appliance's parts that need nothing from outside.
func compose(conf *config.Config, opts Options) *Appliance {
	a := &Appliance{work: make(chan *job), log: opts.Log, now: time.Now, hook: opts.Hook, regions: opts.ActivityRegions, bounds: stopBounds, buffers: shipper.NewBuffers(shipper.DefaultBytesInFlight), pacer: retry.NewPacer()}
	a.buffers.Limit(a.bandwidth)
	a.metrics = metrics.New(Version, a.facts)
	a.conf.Store(conf)
	a.mu.machines, a.mu.lives, a.mu.leaving = map[string]*machine{}, map[string]*lifecycle.Life{}, map[string]*leaving{}
	a.probe = retry.NewProbe(a.answers, 0, 0)
	if opts.Now != nil {
		a.now = opts.Now
	}
	if a.hook == nil {
		a.hook = func(string) {}
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	return a
}

// open takes the stores and the state directory. With errState it has the stores.
func open(conf *config.Config, opts Options) (*Appliance, func() error, error) {
	a := compose(conf, opts)
	if err := a.identify(); err != nil {
		return nil, nil, err
	}
	closeState, err := a.take()
	if errors.Is(err, errState) {
		return a, nil, err
	}
	if err != nil {
		return nil, nil, errors.Join(err, a.close())
	}
	return a, closeState, nil
}

// take claims what one appliance may have: the stores, the control socket, the
// state directory. What refuses comes first, so that a second instance leaves no
// trace in the journal of the first.
func (a *Appliance) take() (func() error, error) {
	for _, c := range a.config().Stores {
		s := newStore(a, c)
		a.stores = append(a.stores, s)
		if err := s.claim(); err != nil {
			return nil, err
		}
	}
	var err error
	if a.listener, err = control.Listen(a.config().ControlSocket); err != nil {
		return nil, err
	}
	return a.openState()
}

// close gives back what take claimed, the journal's store excepted.
func (a *Appliance) close() error {
	var errs []error
	for _, s := range a.stores {
		errs = append(errs, s.close())
	}
	if a.listener != nil {
		errs = append(errs, a.listener.Close())
	}
	if a.stateLock != nil {
		errs = append(errs, a.stateLock.Close())
	}
	return errors.Join(errs...)
}

func (a *Appliance) config() *config.Config { return a.conf.Load() }

func (a *Appliance) tableDir() string { return filepath.Join(a.config().StateDir, "tables") }

func (a *Appliance) identify() error {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("machine id: %w", err)
	}
	a.machineID = strings.TrimSpace(string(id))
	a.host, err = os.Hostname()
	return err
}

// openState opens the journal. What keeps it from that is errState, but that another
// vhdrelay has the directory.
func (a *Appliance) openState() (func() error, error) {
	dir := a.config().StateDir
	err := makeState(durable.OS{}, dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errState, err)
	}
	if a.stateLock, err = lockState(dir); err != nil {
		return nil, err
	}
	db, err := badgerkv.Open(filepath.Join(dir, "journal"), a.log)
	if err != nil {
		return nil, fmt.Errorf("%w: journal: %w", errState, err)
	}
	a.journal, err = journal.Open(db, journal.Options{ActivityRegions: a.regions, Log: a.log, Hook: a.hook, Saved: filepath.Join(dir, "saved"), Now: a.now})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: journal: %w", errState, err), db.Close())
	}
	if a.jobs, err = openJobs(a.journal, a.now, a.log); err != nil {
		return nil, errors.Join(fmt.Errorf("jobs: %w", err), db.Close())
	}
	return func() error { return errors.Join(db.Close(), a.close()) }, nil
}

// makeState makes the directories of the state. Their names are durable when it returns: what is synced below a directory
// whose own name a power cut takes back is lost with it, and then the tables would know epochs that no spool has.
func makeState(tree durable.Tree, dir string) error {
	for _, sub := range []string{"", "journal", "saved", "spool", "tables"} {
		if err := tree.MkdirAll(filepath.Join(dir, sub)); err != nil {
			return err
		}
	}
	if err := tree.SyncDir(dir); err != nil {
		return err
	}
	return tree.SyncDir(filepath.Dir(filepath.Clean(dir)))
}

// attachAll finds every image, before anybody can write to one. A store and a
// state directory that were not served together last distrust each other.
func (a *Appliance) attachAll() error {
	if err := a.openLives(); err != nil {
		return err
	}
	_, current, _ := a.journal.Session()
	for _, s := range a.stores {
		if err := a.attachStore(s, current); err != nil {
			return fmt.Errorf("store %s: %w", s.conf.Name, err)
		}
	}
	a.sayLeftOut()
	return a.journal.PublishSession()
}

// attachStore puts the session's mark on the store last: until then the next start
// distrusts the two again.
func (a *Appliance) attachStore(s *store, session string) error {
	s.watchSource()
	reverted, err := s.reverted(a.journal)
	if err != nil {
		return err
	}
	exchanged, err := s.exchanged(a.journal)
	if err != nil {
		return err
	}
	if err := s.scan(); err != nil {
		return err
	}
	if reverted || exchanged {
		if err := s.distrust("the store or the state directory was put back to an older state"); err != nil {
			return err
		}
	}
	if err := s.remember(a.journal); err != nil {
		return err
	}
	return s.publish(session)
}

func (a *Appliance) serve(ctx context.Context) error {
	notify, err := systemd.FromEnvironment()
	if err != nil {
		return err
	}
	a.notify = notify
	base := context.WithoutCancel(ctx)
	if err := a.attachAll(); err != nil {
		return errors.Join(err, a.closeMachines(), a.journal.Close(base))
	}
	a.limitMemory()
	a.redo()
	run, stop := context.WithCancel(base)
	defer stop()
	g, run := errgroup.WithContext(run)
	a.startMachines(run, g)
	if err = a.mountAll(); err == nil {
		a.startServices(run, g, notify)
		feed, end := context.WithCancel(base)
		defer end()
		go notify.Watchdog(feed, a.newSentry().until(ctx), a.starve) // not waited for: it may hang with a mount, which is what it is for
		err = notify.Ready()
		a.log.Info("serving", "version", Version, "stores", len(a.stores), "vms", len(a.machines()))
		select {
		case <-ctx.Done():
		case <-run.Done():
		}
	}
	return errors.Join(err, notify.Stopping(), a.shutDown(base, stop, g))
}

// redo brings the tables of every VM up to its spool, before anything is compared
// with them or forgotten in them.
func (a *Appliance) redo() {
	for _, m := range a.machines() {
		if err := m.pipeline.Redo(); err != nil { // its guests are served all the same, and Run tries again
			a.log.Error("spooled epochs cannot be redone", "vm", m.name, "code", "redo-failed", "cause", err, "action", "look at the state directory's disk")
		}
	}
}

// startServices runs what needs the mounts.
func (a *Appliance) startServices(ctx context.Context, g *errgroup.Group, notify *systemd.Notifier) {
	hup := hangups()
	for _, s := range a.stores {
		g.Go(func() error { return s.watch(ctx) })
	}
	g.Go(func() error { return control.Serve(ctx, a.listener, a, a.log) })
	g.Go(func() error { return a.beat(ctx) })
	a.resumeLeaving()
	g.Go(func() error { return a.reloads(ctx, hup) })
	g.Go(func() error { return a.watchSecret(ctx) })
	g.Go(func() error { notify.Lines(ctx, statusEvery, a.line); return nil })
	g.Go(func() error { return a.background(ctx) })
	g.Go(func() error { return a.listenMetrics(ctx) })
}

func (a *Appliance) mountAll() error {
	for _, s := range a.stores {
		if err := s.mount(); err != nil {
			return err
		}
	}
	a.strangers()
	a.keepConfig()
	return nil
}

// startMachines runs every VM, also those that come later.
func (a *Appliance) startMachines(ctx context.Context, g *errgroup.Group) {
	start := func(m *machine) { g.Go(func() error { return m.run(ctx) }) }
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range a.mu.machines {
		start(m)
	}
	a.mu.start = start
	a.mu.spawn = func(work func(context.Context)) { g.Go(func() error { work(ctx); return nil }) }
}

// stopWatching ends the watch of the sources as late as can be: what others do from
// now on until the journal is closed would be taken for ours.
func (a *Appliance) stopWatching() {
	for _, s := range a.stores {
		s.watcher.stop()
		s.doubtWriters()
	}
}

// refuseMore lets no image and no VM in any more: a request that outlived its
// mount must not start what nobody waits for.
func (a *Appliance) refuseMore() {
	for _, s := range a.stores {
		s.seal()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.stopping = true
}

func (a *Appliance) closeMachines() error {
	var errs []error
	for _, m := range a.machines() {
		errs = append(errs, m.pipeline.Close())
	}
	return errors.Join(errs...)
}

// surveyInterval is how often files that are not protected are looked for.
const surveyInterval = time.Minute

// beat tells the journal that this process may still change images, and keeps
// house in the stores.
func (a *Appliance) beat(ctx context.Context) error {
	tick, survey := time.NewTicker(journal.DefaultHeartbeat), time.NewTicker(surveyInterval)
	defer tick.Stop()
	defer survey.Stop()
	for failing, failures := false, uint64(0); ; {
		failures = a.lookAtJournal(failures)
		err := a.journal.Heartbeat(a.now())
		if err != nil && !failing {
			a.log.Warn("heartbeat not written: a crash now costs a comparison of every image", "code", "heartbeat-failed", "cause", err, "action", "look at the disk of the state directory")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			a.reap()
			a.look()
		case <-survey.C:
			a.survey()
		}
	}
}

// lookAtJournal has what failed with the journal tried again at once when it works again, however short it failed; before is
// what it returned the last time, at first 0.
func (a *Appliance) lookAtJournal(before uint64) uint64 {
	if a.journal.Failing() != nil {
		return before
	}
	failures := a.journal.Failures()
	if failures != before {
		for _, m := range a.machines() {
			m.pipeline.TryAgain()
		}
	}
	return failures
}

// reap closes the files of former disks.
func (a *Appliance) reap() {
	for _, s := range a.stores {
		s.reap()
	}
}

// look finds what has become wrong around the stores.
func (a *Appliance) look() {
	for _, s := range a.stores {
		s.look()
		s.writers()
	}
}

func (a *Appliance) survey() {
	for _, s := range a.stores {
		if err := errors.Join(s.survey(), s.lookAtChains()); err != nil {
			s.log.Warn("store cannot be looked through", "code", "survey-failed", "cause", err, "action", "look at the source directory")
		}
	}
}

func (a *Appliance) machines() []*machine {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := make([]*machine, 0, len(a.mu.machines))
	for _, m := range a.mu.machines {
		all = append(all, m)
	}
	return all
}

// spoolShare is what one VM's spool may take of the disk: all together half of
// what is free or theirs already, shared evenly. It is looked up once a second for
// all: what spools take is no more free, so their growth does not change it.
func (a *Appliance) spoolShare() int64 {
	a.share.Lock()
	defer a.share.Unlock()
	if now := a.now(); a.share.bytes == 0 || now.Sub(a.share.at) >= shareFor {
		a.share.at, a.share.bytes = now, a.measureShare()
	}
	return a.share.bytes
}

// shareFor is how long a share that was measured holds.
const shareFor = time.Second

func (a *Appliance) measureShare() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(a.config().StateDir, &st); err != nil {
		return minSpool
	}
	free := int64(st.Bavail) * st.Bsize
	all := a.machines()
	var taken int64
	for _, other := range all {
		taken += other.spool.Bytes()
	}
	return (free + taken) / 2 / int64(max(1, len(all)))
}
