package appliance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
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
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv/badgerkv"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// stopSeal is how long a stop waits for the last epoch of each VM.
const stopSeal = 20 * time.Second

// Version is the release; the Makefile sets it.
var Version = "development"

// Appliance is the composition: it owns every part's life.
type Appliance struct {
	conf      atomic.Pointer[config.Config]
	log       *slog.Logger
	now       func() time.Time
	hook      func(point string)
	host      string
	machineID string

	journal   *journal.Journal
	fresh     bool // the state directory was empty
	buffers   *shipper.Buffers
	pacer     *retry.Pacer
	bandwidth bandwidth
	stores    []*store

	opened struct {
		sync.Mutex // held over opening the target
		target     target.Target
	}
	mu struct {
		sync.Mutex // held over the local I/O of making a machine
		machines   map[string]*machine
		start      func(*machine) // runs a machine that came after the start; nil before it
	}
}

// Options of Serve; the zero value is production's.
type Options struct {
	Log  *slog.Logger
	Hook func(point string) // called at every failpoint of every stage
}

// Serve runs the appliance until ctx ends, then stops it in order: no more
// writes, one last epoch into the spool, a clean journal.
func Serve(ctx context.Context, conf *config.Config, opts Options) error {
	a, closeState, err := open(conf, opts)
	if err != nil {
		return err
	}
	err = a.serve(ctx)
	return errors.Join(err, closeState())
}

// open takes the stores and the state directory.
func open(conf *config.Config, opts Options) (*Appliance, func() error, error) {
	a := &Appliance{log: opts.Log, now: time.Now, hook: opts.Hook, buffers: shipper.NewBuffers(shipper.DefaultBytesInFlight), pacer: retry.NewPacer()}
	a.bandwidth.rule = func() int64 { return a.config().BandwidthAt(a.now()) }
	a.conf.Store(conf)
	a.mu.machines = map[string]*machine{}
	if a.hook == nil {
		a.hook = func(string) {}
	}
	if a.log == nil {
		a.log = slog.Default()
	}
	if err := a.identify(); err != nil {
		return nil, nil, err
	}
	for _, c := range conf.Stores {
		s := newStore(a, c)
		if err := s.claim(); err != nil {
			return nil, nil, errors.Join(err, a.closeStores())
		}
		a.stores = append(a.stores, s)
	}
	closeState, err := a.openState()
	if err != nil {
		return nil, nil, errors.Join(err, a.closeStores())
	}
	return a, closeState, nil
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

// openState opens the journal and joins it with the stores it served last.
func (a *Appliance) openState() (func() error, error) {
	dir := a.config().StateDir
	for _, sub := range []string{"", "journal", "saved", "spool", "tables"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o700); err != nil {
			return nil, fmt.Errorf("state directory: %w", err)
		}
	}
	db, err := badgerkv.Open(filepath.Join(dir, "journal"), a.log)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	a.journal, err = journal.Open(db, journal.Options{Log: a.log, Hook: a.hook, Saved: filepath.Join(dir, "saved"), Now: a.now})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("journal: %w", err), db.Close())
	}
	a.fresh = len(a.journal.VMs()) == 0
	return func() error { return errors.Join(a.closeStores(), db.Close()) }, nil
}

func (a *Appliance) closeStores() error {
	var errs []error
	for _, s := range a.stores {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// attachAll finds every image, before anybody can write to one. A store and a
// state directory that were not served together last distrust each other.
func (a *Appliance) attachAll() error {
	_, current, _ := a.journal.Session()
	for _, s := range a.stores {
		reverted, err := s.reverted(a.journal)
		if err != nil {
			return err
		}
		if err := s.scan(); err != nil {
			return fmt.Errorf("store %s: %w", s.conf.Name, err)
		}
		if reverted {
			if err := s.distrust("the store or the state directory was put back to an older state"); err != nil {
				return err
			}
		}
		if err := s.publish(current); err != nil {
			return err
		}
	}
	return a.journal.PublishSession()
}

func (a *Appliance) serve(ctx context.Context) error {
	notify, err := systemd.FromEnvironment()
	if err != nil {
		return err
	}
	if err := a.attachAll(); err != nil {
		return err
	}
	for _, m := range a.machines() {
		if err := m.pipeline.Redo(); err != nil { // its guests are served all the same, and Run tries again
			a.log.Error("spooled epochs cannot be redone", "vm", m.name, "code", "redo-failed", "cause", err, "action", "look at the state directory's disk")
		}
	}
	listener, err := control.Listen(a.config().ControlSocket)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	g, run := errgroup.WithContext(run)
	a.startMachines(run, g)
	for _, s := range a.stores {
		if err := s.mount(); err != nil {
			stop()
			return errors.Join(err, listener.Close(), a.unmountAll(ctx), g.Wait(), a.journal.Close(context.WithoutCancel(ctx)))
		}
	}
	g.Go(func() error { return control.Serve(run, listener, a, a.log) })
	g.Go(func() error { return a.beat(run) })
	go notify.Watchdog(run, a.alive, nil)
	err = notify.Ready()
	a.log.Info("serving", "version", Version, "stores", len(a.stores), "vms", len(a.machines()))
	g.Go(func() error { return a.reloads(run) })
	select {
	case <-ctx.Done():
	case <-run.Done():
	}
	return errors.Join(err, notify.Stopping(), a.shutDown(context.WithoutCancel(ctx), stop, g))
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
}

// shutDown stops in order: the mounts go, so that nothing changes any more; what
// changed is sealed into the spool; the stages end; the journal says clean.
func (a *Appliance) shutDown(ctx context.Context, stop context.CancelFunc, g *errgroup.Group) error {
	err := a.unmountAll(ctx)
	sealed, cancel := context.WithTimeout(ctx, stopSeal)
	defer cancel()
	for _, m := range a.machines() {
		if sealErr := m.pipeline.SealLast(sealed); sealErr != nil {
			a.log.Warn("last epoch not spooled; its changes are kept in the journal", "vm", m.name, "cause", sealErr)
		}
	}
	stop()
	waitErr := g.Wait()
	if errors.Is(waitErr, context.Canceled) {
		waitErr = nil
	}
	for _, m := range a.machines() {
		err = errors.Join(err, m.pipeline.Close())
	}
	return errors.Join(err, waitErr, a.journal.Close(ctx))
}

func (a *Appliance) unmountAll(ctx context.Context) error {
	var errs []error
	for _, s := range a.stores {
		errs = append(errs, s.unmount(ctx))
	}
	return errors.Join(errs...)
}

// beat tells the journal that this process may still change images.
func (a *Appliance) beat(ctx context.Context) error {
	tick := time.NewTicker(journal.DefaultHeartbeat)
	defer tick.Stop()
	for {
		if err := a.journal.Heartbeat(a.now()); err != nil {
			a.log.Warn("heartbeat", "cause", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// alive feeds the watchdog: the appliance lives while its mounts answer.
func (a *Appliance) alive() bool {
	for _, s := range a.stores {
		var st unix.Statfs_t
		if err := unix.Statfs(s.conf.Mount, &st); err != nil {
			return false
		}
	}
	return true
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
// what is free or theirs already, shared evenly.
func (a *Appliance) spoolShare(m *machine) int64 {
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
