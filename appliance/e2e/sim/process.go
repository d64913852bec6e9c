package sim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// host is a machine's stable storage: what one process leaves and the next one finds.
type host struct {
	store   *memory.Store
	tree    *stateDisk
	images  map[string]map[string]*Image // by VM and disk name
	order   map[string][]string          // disk names of a VM
	machine string                       // its id
	boot    journal.Boot
	lines   map[string]*oracle.Timeline // by VM
	saved   string                      // real directory of saved blocks and the heartbeat; "": none
	beats   beatLog                     // of the heartbeat file, which is never synced
}

// beatLog is what a file held, the last at the end. A process writes it, also while what it leaves is taken.
type beatLog struct {
	mu struct {
		sync.Mutex
		all []beat
	}
}

func (l *beatLog) add(b beat) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.all = append(l.mu.all, b)
}

func (l *beatLog) list() []beat {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.mu.all)
}

func (l *beatLog) set(all []beat) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.all = all
}

// beat is what the heartbeat file held.
type beat struct {
	at   time.Time // by the virtual clock, which never steps
	text []byte
}

// process is one life of the appliance on a host.
type process struct {
	w      *world
	h      *host
	life   *life
	j      *journal.Journal
	cancel context.CancelFunc
	ctx    context.Context
	run    sync.WaitGroup

	mu struct { // guards the list; not held over I/O
		sync.Mutex
		machines map[string]*machine
	}
}

// machine is one VM.
type machine struct {
	p        *process
	name     string
	log      *journal.VM
	spool    *spool.Spool
	pipe     *shipper.VM
	timeline *oracle.Timeline
	compare  *comparisons

	mu struct { // guards the list; not held over I/O
		sync.Mutex
		disks []*tracked
	}
}

// tracked is an attached image.
type tracked struct {
	image   *Image
	disk    *journal.Disk
	foreign *atomic.Bool // another process has the image open
	doubts  atomic.Int64
	use     sync.RWMutex // held for reading over a guest's request and its I/O, for writing while the image ceases to be a disk
}

// start boots a process over what the host holds. An error is one of recovery: the process is dead then, or to be killed.
func (w *world) start(h *host) (*process, error) {
	p := &process{w: w, h: h, life: newLife(w.turns)}
	p.mu.machines = map[string]*machine{}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	w.adopt(p)
	err := p.open()
	if err == nil {
		err = p.serve()
	}
	return p, err
}

// adopt makes the storage of the host that of the process.
func (w *world) adopt(p *process) {
	h := p.h
	h.tree.life = p.life
	h.tree.slow = func(op, path string) int { return w.slowness(w.fate.slowState.Load(), op+path) }
	h.tree.fail = w.fate.treeFault
	h.tree.grown = func(n int64) { w.checkQuota(p, n) }
	h.store.Before = func(_ int, b *kv.Batch) memory.Fault {
		if p.life.check() != nil {
			return memory.Lost
		}
		w.happened("journal: %d changes", b.Len())
		p.life.pause(w.slowness(w.fate.slowState.Load(), "journal"))
		if p.life.check() != nil {
			return memory.Lost
		}
		if !p.life.isAlive() {
			return memory.None
		}
		return w.fate.storeFault()
	}
	for _, disks := range h.images {
		for _, m := range disks {
			w.equip(m, p.life)
		}
	}
}

func (w *world) equip(m *Image, l *life) {
	m.life = l
	m.slow = func() int { return w.slowness(w.fate.slowImage.Load(), fmt.Sprint("image ", m.ino)) }
	m.failSync = w.fate.syncFault
	m.now = w.now
}

// hook is at every failpoint of every room.
func (p *process) hook(point string) {
	if p.life.isAlive() && p.w.fate.crashAt(point) {
		p.w.struck("crash at: " + point)
		p.life.kill()
		p.cancel()
	}
}

func (p *process) open() (err error) {
	w := p.w
	if w.saves && p.h.saved == "" {
		if p.h.saved, err = os.MkdirTemp(w.dir, "saved"); err != nil {
			return err
		}
	}
	quiet := slog.New(slog.DiscardHandler)
	if w.log != nil {
		quiet = slog.New(slog.NewTextHandler(w.log, nil))
	}
	p.j, err = journal.Open(p.h.store, journal.Options{ActivityRegions: w.regions, Log: quiet, Hook: p.hook, Saved: p.h.saved, Now: w.now,
		Boot: func() journal.Boot { return p.h.boot }})
	if err != nil {
		return err
	}
	for _, name := range w.vms {
		if err := p.openMachine(name, quiet); err != nil {
			return fmt.Errorf("vm %s: %w", name, err)
		}
	}
	for _, m := range p.machines() {
		if err := m.pipe.Redo(); err != nil {
			return fmt.Errorf("redo: %w", err)
		}
	}
	return nil
}

func (p *process) openMachine(name string, log *slog.Logger) (err error) {
	w, m := p.w, &machine{p: p, name: name, timeline: p.h.lines[name]}
	m.compare = &comparisons{m: m, kick: make(chan struct{}, 1)}
	if m.log, err = p.j.VM(name); err != nil {
		return err
	}
	state := "/state/" + m.log.ID()
	for _, dir := range []string{state, state + "/spool", state + "/tables"} {
		if err := p.h.tree.MkdirAll(dir); err != nil {
			return err
		}
	}
	for _, dir := range []string{"/", "/state", state} {
		if err := p.h.tree.SyncDir(dir); err != nil {
			return err
		}
	}
	if m.spool, err = spool.Open(state+"/spool/vm", spool.Options{Hook: p.hook, Log: log, Tree: p.h.tree}); err != nil {
		return err
	}
	w.noteGiveUp(m)
	m.pipe, err = shipper.New(shipper.Deps{Volume: volume{m}, Spool: m.spool, Docs: documents{p.j}, Buffers: shipper.NewBuffers(4 * target.MaxPut),
		Open: func(context.Context) (target.Target, error) { return w.target, nil }},
		shipper.Options{Name: name, ID: m.log.ID(), Owner: catalog.Owner{Host: "host", MachineID: p.h.machine, StoreID: "store"},
			TableDir: filepath.Join(state, "tables"), Tree: p.h.tree, Now: w.now, Log: log, Hook: m.hook, Quota: w.quota.Load, Live: w.live})
	if err != nil {
		return err
	}
	m.log.OnPressure(m.pipe.SealSoon)
	p.mu.Lock()
	p.mu.machines[name] = m
	p.mu.Unlock()
	for _, disk := range p.h.order[name] {
		if err := m.attach(p.h.images[name][disk]); err != nil {
			return err
		}
	}
	return nil
}

// hook notes what became durable, then comes to the failpoint.
func (m *machine) hook(point string) {
	if point == shipper.PointAfterManifest && m.p.life.isAlive() {
		if all := m.spool.Manifests(); len(all) > 0 {
			m.p.w.noteManifest(m, all[len(all)-1])
		}
	}
	if point == shipper.PointAfterIntent && m.p.life.isAlive() {
		m.p.w.noteGiveUp(m)
		m.p.w.struck("give-up")
	}
	m.p.hook(point)
}

// attach makes an image a disk of the VM.
func (m *machine) attach(img *Image) error {
	d, err := m.log.AddDisk(img.name, img, journal.Identity{Dev: 1, Ino: img.ino})
	if err != nil {
		return err
	}
	d.OnEvict(func(r []extent.Range[extent.FileBlock]) error {
		m.p.w.struck("eviction")
		return m.pipe.Forget(d.ID(), r)
	})
	foreign := new(atomic.Bool)
	if err := m.pipe.AddDisk(source{img, d, foreign}, img.probe); err != nil {
		return errors.Join(err, m.log.Withdraw(d))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.disks = append(m.mu.disks, &tracked{image: img, disk: d, foreign: foreign})
	m.compare.wake()
	return nil
}

// detach ends an image's being a disk.
func (m *machine) detach(name string) error {
	t := m.tracked(name)
	if t == nil {
		return nil
	}
	t.use.Lock()
	defer t.use.Unlock()
	m.mu.Lock()
	m.mu.disks = slices.DeleteFunc(m.mu.disks, func(x *tracked) bool { return x == t })
	m.mu.Unlock()
	m.pipe.RemoveDisk(t.disk.ID())
	return m.log.Withdraw(t.disk)
}

func (m *machine) tracked(name string) *tracked {
	for _, t := range m.all() {
		if t.image.name == name {
			return t
		}
	}
	return nil
}

func (m *machine) all() []*tracked {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.mu.disks)
}

func (p *process) machine(name string) *machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.machines[name]
}

func (p *process) machines() []*machine {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*machine
	for _, name := range p.w.vms {
		if m := p.mu.machines[name]; m != nil {
			all = append(all, m)
		}
	}
	return all
}

// serve starts the stages; guests may write.
func (p *process) serve() error {
	if p.life.check() != nil {
		return errDead
	}
	p.run.Go(p.beat)
	for _, m := range p.machines() {
		p.run.Go(func() { _ = m.pipe.Run(p.ctx) })
		p.run.Go(m.compare.run)
	}
	return nil
}

func (p *process) beat() {
	tick := time.NewTicker(journal.DefaultHeartbeat)
	defer tick.Stop()
	for p.ctx.Err() == nil {
		if p.life.isAlive() && p.j.Heartbeat(p.w.now()) == nil { // a lost one costs a comparison
			p.h.noteBeat()
		}
		select {
		case <-tick.C:
		case <-p.ctx.Done():
		}
	}
}

const heartbeatFile = "heartbeat"

// noteBeat keeps what the heartbeat file holds, for a power cut.
func (h *host) noteBeat() {
	if text, err := os.ReadFile(filepath.Join(h.saved, heartbeatFile)); err == nil && h.saved != "" {
		h.beats.add(beat{time.Now(), text})
	}
}

// tornBeat puts a content that the heartbeat file had within the time that the kernel takes to write it back.
func (h *host) tornBeat(draw func(n int) int) error {
	const lag = 2 * time.Minute
	beats := h.beats.list()
	i := len(beats) - 1
	for i > 0 && time.Since(beats[i].at) < lag && draw(3) > 0 {
		i--
	}
	if i < 0 || h.saved == "" {
		return nil
	}
	return os.WriteFile(filepath.Join(h.saved, heartbeatFile), beats[i].text, 0o600)
}

// bury waits for the goroutines of a process that is over, after its storage was copied.
func (p *process) bury() {
	p.cancel()
	p.life.bury()
	p.run.Wait()
	for _, m := range p.machines() {
		if m.pipe != nil {
			_ = m.pipe.Close() // of a copy that nobody looks at
		}
	}
}

// stop is the clean stop. Guests do not write any more.
func (p *process) stop() error {
	for _, m := range p.machines() {
		ctx, cancel := context.WithTimeout(p.ctx, time.Minute)
		_ = m.pipe.SealLast(ctx) // what is not sealed is kept in the journal
		cancel()
	}
	p.cancel()
	p.run.Wait()
	var errs []error
	for _, m := range p.machines() {
		errs = append(errs, m.pipe.Close())
	}
	return errors.Join(append(errs, p.j.Close(context.Background()))...)
}

// remains is the host as the next process finds it.
func (p *process) remains(cut bool) *host {
	h, l, w := p.h, newLife(p.w.turns), p.w
	next := &host{order: h.order, machine: h.machine, boot: h.boot, lines: h.lines, images: map[string]map[string]*Image{}, saved: h.saved}
	next.beats.set(h.beats.list())
	next.store = h.store.Crash()
	next.tree = h.tree.after(l, cut, func() bool { return w.draw(2) == 0 })
	if cut {
		next.boot = journal.Boot{ID: fmt.Sprint("boot", w.draw(1<<30)), Start: w.now()}
		if err := next.tornBeat(w.draw); err != nil {
			w.fail("the heartbeat of a power cut: %v", err)
		}
	}
	for _, vm := range w.vms {
		next.images[vm] = map[string]*Image{}
		for _, name := range slices.Sorted(maps.Keys(h.images[vm])) { // each draws
			next.images[vm][name] = h.images[vm][name].after(l, cut, w.draw)
		}
	}
	return next
}
