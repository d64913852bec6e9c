package appliance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/segment"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
)

// minSpool is the least a VM's spool may take, in bytes: small disks have bursts too.
const minSpool = 64 << 20

// machine is one VM: its change log, its pipeline and its comparisons.
type machine struct {
	name     string
	app      *Appliance
	store    *store
	log      *journal.VM
	spool    *spool.Spool
	pipeline *shipper.VM
	resync   *resyncer
	life     *lifecycle.Life
	trend    trend
	seen     reasonTimes

	quit    context.Context // ends when the VM is unprotected
	leave   context.CancelFunc
	stopped chan struct{} // closed when run has ended
}

// machine finds or makes the VM of that name. Two stores may not have one name:
// it names the VM at the target.
func (a *Appliance) machine(s *store, name string) (*machine, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := a.mu.machines[name]; m != nil {
		if m.store != s {
			return nil, fmt.Errorf("vm %s: store %s has a VM of that name already; give one of them another name in the config", name, m.store.conf.Name)
		}
		return m, nil
	}
	if a.mu.stopping {
		return nil, errors.New("the appliance is stopping")
	}
	m, err := a.newMachine(s, name)
	if err != nil {
		return nil, fmt.Errorf("vm %s: %w", name, err)
	}
	a.mu.machines[name] = m
	if a.mu.start != nil {
		a.mu.start(m)
	}
	return m, nil
}

// leftOut tells whether the VM was replicated by this appliance once and has no disk now.
func (a *Appliance) leftOut(name string) bool { return slices.Contains(a.allLeftOut(), name) }

// allLeftOut are the VMs that this appliance has replicated and that have no disk in
// any store since its start.
func (a *Appliance) allLeftOut() []string {
	if a.journal == nil {
		return nil
	}
	known, err := a.journal.KnownVMs()
	if err != nil {
		a.log.Warn("the journal cannot tell which VMs it knows", "code", "journal-read", "cause", err, "action", "look at the disk of the state directory")
	}
	return slices.DeleteFunc(known, func(name string) bool {
		return slices.ContainsFunc(a.machines(), func(m *machine) bool { return m.name == name })
	})
}

// sayLeftOut tells of them in the log.
func (a *Appliance) sayLeftOut() {
	for _, name := range a.allLeftOut() {
		a.log.Warn("a VM that was replicated has no disk any more; its points stay, and it goes on where it was when it comes back",
			"vm", name, "code", "vm-left-out", "action", "none, if the config leaves it out on purpose or its directory was removed")
	}
}

func (a *Appliance) newMachine(s *store, name string) (*machine, error) {
	m := &machine{name: name, app: a, store: s, stopped: make(chan struct{})}
	m.quit, m.leave = context.WithCancel(context.Background())
	var err error
	if m.life, err = a.lifeLocked(name); err != nil {
		return nil, err
	}
	if m.log, err = a.journal.VM(name); err != nil {
		return nil, err
	}
	dir := filepath.Join(a.config().StateDir, "spool", m.log.ID())
	if m.spool, err = spool.Open(dir, spool.Options{Hook: a.hook, Log: a.log}); err != nil {
		return nil, err
	}
	m.pipeline, err = shipper.New(shipper.Deps{
		Volume: volume{m.log, m.foreign, m.doubts}, Spool: m.spool, Open: a.openMeasured, Docs: documents{a.journal}, Buffers: a.buffers, Pacer: a.pacer, Probe: a.probe, Parents: parents{s.conf.Source},
	}, m.options())
	if err != nil {
		return nil, err
	}
	m.log.OnPressure(m.pipeline.SealSoon)
	m.resync, err = newResyncer(m)
	return m, err
}

func (m *machine) options() shipper.Options {
	rec := m.life.Record()
	return shipper.Options{
		Resting: rec.State == lifecycle.Paused, FirstGeneration: max(rec.Generation, rec.TakingOver) + 1,
		Name: m.name, ID: m.log.ID(), Owner: catalog.Owner{Host: m.app.host, MachineID: m.app.machineID, StoreID: m.store.id},
		Live: m.live, Quota: m.quota, TableDir: m.app.tableDir(), Now: m.app.now, Hook: m.app.hook, Log: m.app.log, Observer: m.observer(),
	}
}

// foreign tells whether another process has the disk's image open for writing.
func (m *machine) foreign(diskID string) bool {
	for _, a := range m.store.disksOf(m) {
		if a.disk.ID() == diskID {
			return a.foreign.Load()
		}
	}
	return false
}

// doubts is how often a disk's image was doubted.
func (m *machine) doubts(diskID string) int64 {
	for _, a := range m.store.disksOf(m) {
		if a.disk.ID() == diskID {
			return a.doubts.Load()
		}
	}
	return 0
}

// replication is what the config says of the VM now.
func (m *machine) replication() config.Replication {
	return m.app.config().EffectiveReplication(m.name)
}

func (m *machine) live() shipper.Live {
	r := m.replication()
	return shipper.Live{
		Interval: r.Interval, ApplyInterval: r.ApplyInterval, Level: segment.Level(r.Compression),
		Policy:    retention.Policy{Dense: r.Points.Dense, Hourly: r.Points.Hourly, Daily: r.Points.Daily},
		Threshold: m.app.config().Resync.Threshold, HoldCatchUp: m.holdCatchUp(),
	}
}

// holdCatchUp tells whether a VM that changed too much waits for the window.
func (m *machine) holdCatchUp() bool {
	r := m.app.config().Resync
	return r.Overflow == config.OverflowWindow && !r.Window.Contains(m.app.now()) && !m.resync.wishes.get().Now
}

// quota is what the VM's spool and saved blocks may take now, in bytes: what the
// config says, or half the VM's virtual size; all VMs together at most half of
// the space that is free or theirs already.
func (m *machine) quota() int64 { return min(m.spoolLimit(), m.app.spoolShare()) }

// spoolLimit is the quota of a state directory with space enough.
func (m *machine) spoolLimit() int64 {
	if limit := m.replication().SpoolLimit; limit != 0 {
		return limit
	}
	return max(minSpool, m.virtualSize()/2)
}

func (m *machine) virtualSize() int64 {
	var size int64
	for _, d := range m.log.Disks() {
		size += d.Size()
	}
	return size
}

// run drives the pipeline and the comparisons until ctx ends or the VM leaves.
func (m *machine) run(ctx context.Context) error {
	defer close(m.stopped)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(m.quit, cancel)()
	var wg sync.WaitGroup
	wg.Go(func() { m.watchLife(ctx) })
	wg.Go(func() { m.resync.run(ctx) })
	wg.Go(func() { m.watchJobs(ctx) })
	err := m.pipeline.Run(ctx)
	wg.Wait()
	return err
}

// stop ends run for good and returns when it has ended.
func (m *machine) stop(ctx context.Context) error {
	m.leave()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-m.stopped:
		return nil
	}
}

// compared is one disk ready for its comparison.
type compared struct {
	source resync.Source
	table  resync.Table
	layout resync.Layout
}

// comparison wires one disk's suspect part to its table.
func (m *machine) comparison(d *journal.Disk, file *attached) (compared, bool) {
	table, layout, ok := m.pipeline.Table(d.ID())
	if !ok {
		return compared{}, false
	}
	return compared{source: comparedSource{d, file.file}, table: table, layout: layout}, true
}

// comparedSource is the source of a comparison.
type comparedSource struct {
	*journal.Disk
	file *os.File
}

func (c comparedSource) ReadAt(p []byte, off int64) (int, error) { return c.file.ReadAt(p, off) }

// ReadAhead makes the kernel read while the blocks before are summed: two workers that take turns do not look like one
// who reads from the beginning to the end, so it would not by itself.
func (c comparedSource) ReadAhead(off, n int64) {
	_ = unix.Fadvise(int(c.file.Fd()), off, n, unix.FADV_WILLNEED) // advice
}
