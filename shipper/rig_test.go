package shipper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/durable"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/resync"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/restore"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// rig is one VM with the real journal over its memory store, a real spool and
// real tables, and the fake target. Its stages run when a test says so. It knows
// the content of every disk at every seal, and checks itself at the end.
type rig struct {
	t      testing.TB
	dir    string
	target *fake.Fake
	store  *memory.Store
	images map[string]*modelImage // by name
	order  []string
	quota  int64
	owner  catalog.Owner
	policy retention.Policy
	tree   durable.Tree       // of the tables; nil: the operating system's
	active int                // regions that may be active on a disk, 0: the journal's default
	hook   func(point string) // may panic with crashed{}

	buffers *Buffers
	way     func(target.Target) target.Target // to the target

	clock     *clock
	j         *journal.Journal
	log       *journal.VM
	disks     map[string]*journal.Disk
	spool     *spool.Spool
	vm        *VM
	closed    bool // no process runs
	connected bool
	matched   resync.DeepReport // all matches together

	oracle    map[string]map[string][]byte // by epoch UUID and disk name
	counted   map[catalog.PointID]string   // points that were counted, and their epoch UUID
	manifests map[string]bool              // closed epochs that reached the spool, by UUID
}

// clock ticks a second with every look at it.
type clock struct {
	mu  sync.Mutex // guards now, no I/O
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(time.Second)
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// crashed is what a hook panics with to end the process.
type crashed struct{}

func newRig(t testing.TB, images ...*modelImage) *rig {
	return newRigOn(t, NewBuffers(8*target.MaxPut), func(t target.Target) target.Target { return t }, images...)
}

// newRigOn is a rig that shares its line with others.
func newRigOn(t testing.TB, buffers *Buffers, way func(target.Target) target.Target, images ...*modelImage) *rig {
	c := &clock{now: time.Unix(1_700_000_000, 0)}
	r := &rig{t: t, dir: t.TempDir(), target: fake.New(fake.Options{Now: c.Now}), store: &memory.Store{}, images: map[string]*modelImage{}, quota: 64 * mib, clock: c, buffers: buffers, way: way,
		owner:  catalog.Owner{Host: "host", MachineID: "machine", StoreID: "store"},
		policy: retention.DefaultPolicy, oracle: map[string]map[string][]byte{}, counted: map[catalog.PointID]string{}, manifests: map[string]bool{}}
	for _, m := range images {
		r.images[m.name] = m
		r.order = append(r.order, m.name)
	}
	r.open()
	return r
}

// must ends the test on an error.
func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// at is the hook of everything that has one.
func (r *rig) at(point string) {
	if r.hook != nil {
		r.hook(point)
	}
}

// open starts the process over what is on stable storage.
func (r *rig) open() {
	r.t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	var err error
	r.j, err = journal.Open(r.store, journal.Options{Log: quiet, ActivityRegions: r.active, Saved: filepath.Join(r.dir, "saved"), Now: r.clock.Now,
		Boot: func() journal.Boot { return journal.Boot{ID: "boot", Start: time.Unix(1_600_000_001, 0)} }})
	r.must(err)
	r.log, err = r.j.VM("vm")
	r.must(err)
	r.spool, err = spool.Open(filepath.Join(r.dir, "spool"), spool.Options{Hook: r.at, Log: quiet})
	r.must(err)
	r.vm, err = New(Deps{Volume: testVolume{r}, Spool: r.spool, Docs: testDocuments{r.j}, Buffers: r.buffers, Parents: testStore{r},
		Open: func(context.Context) (target.Target, error) { return r.way(r.target), nil }},
		Options{Name: "vm", ID: r.log.ID(), Owner: r.owner, TableDir: r.dir, Tree: r.tree, Now: r.clock.Now, Hook: r.point, Log: quiet,
			Quota: func() int64 { return r.quota }, Live: func() Live { return Live{Policy: r.policy} }})
	r.must(err)
	close(r.vm.connected) // nobody waits for it: the steps are called in order
	r.disks, r.closed, r.connected = map[string]*journal.Disk{}, false, false
	for _, name := range r.order {
		r.attach(name)
	}
	r.must(r.vm.Redo())
	r.compare()
}

func (r *rig) attach(name string) {
	r.t.Helper()
	m := r.images[name]
	d, err := r.log.AddDisk(name, m, journal.Identity{Ino: m.id()})
	r.must(err)
	d.OnEvict(func(ranges []FileRange) error { return r.vm.Forget(d.ID(), ranges) })
	r.disks[name] = d
	r.must(r.vm.AddDisk(testSource{m, d}, m.probe))
}

// point notes what is durable, then asks the test.
func (r *rig) point(name string) {
	if name == PointAfterManifest {
		ms := r.spool.Manifests()
		if m := ms[len(ms)-1]; m.Closed {
			r.manifests[m.EpochUUID] = true
		}
	}
	r.at(name)
}

// sealed is called at the moment of a seal.
func (r *rig) sealed(id [16]byte) {
	all := map[string][]byte{}
	for name, m := range r.images {
		all[name] = m.bytes()
	}
	r.oracle[uuid.UUID(id).String()] = all
}

// do is a guest's change.
func (r *rig) do(name string, c extent.Change, data []byte) {
	r.t.Helper()
	d := r.disks[name]
	p, err := d.Begin(c)
	r.must(err)
	r.images[name].do(c, data)
	d.End(c, p, nil)
}

func (r *rig) write(name string, off int64, data ...byte) {
	r.do(name, extent.Change{Off: off, Len: int64(len(data))}, data)
}

// fill writes n bytes of a value.
func (r *rig) fill(name string, off, n int64, value byte) {
	r.write(name, off, bytes.Repeat([]byte{value}, int(n))...)
}

func (r *rig) discard(name string, off, n int64) {
	r.do(name, extent.Change{Kind: extent.Discard, Off: off, Len: n}, nil)
}

func (r *rig) truncate(name string, size int64) {
	r.do(name, extent.Change{Kind: extent.Truncate, Off: size}, nil)
}

// run runs steps until one fails or crashes; errCrashed: it is to be reopened.
func (r *rig) run(steps ...func(context.Context) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(crashed); !ok {
				panic(p)
			}
			r.closed, err = true, errCrashed
		}
	}()
	for _, step := range steps {
		if err := step(context.Background()); err != nil {
			return err
		}
		r.note()
	}
	return nil
}

var errCrashed = errors.New("crashed")

// crash drops the process; what is on stable storage stays.
func (r *rig) crash() {
	r.note()
	r.store = r.store.Crash()
	_ = r.vm.Close() // only descriptors
	r.open()
}

// note remembers which points the VM has reported.
func (r *rig) note() {
	for _, rec := range r.vm.liveRecords() {
		r.counted[rec.ID()] = rec.EpochUUID
	}
}

// connect connects a process once.
func (r *rig) connect(ctx context.Context) error {
	if r.connected {
		return nil
	}
	err := r.vm.connectStep(ctx)
	r.connected = err == nil
	return err
}

// cycle is one turn of every stage.
func (r *rig) cycle() error {
	v := r.vm
	return r.run(r.connect, v.initialStep, r.match, v.captureStep, v.shipStep, v.applyStep)
}

// quiesce runs until everything is at the target, without faults.
func (r *rig) quiesce() {
	r.t.Helper()
	r.hook = nil
	r.target.SetHook(nil)
	r.target.FailAt(0, fake.Fault{})
	var err error
	for range 12 {
		if r.closed {
			r.crash()
		}
		r.compare()
		if err = r.cycle(); err != nil {
			r.crash() // a stage waits for its schedule: a restart does not
			continue
		}
		if r.quiet() {
			return
		}
	}
	r.t.Fatalf("no quiet: %v; status %+v", err, r.vm.Status())
}

// match finds out the tables that wait for it, as the appliance does.
func (r *rig) match(ctx context.Context) error {
	for _, id := range r.vm.Matching() {
		w, err := r.vm.OpenView(ctx, id, "")
		if err != nil {
			return err
		}
		d := r.vm.diskByID(id)
		table, layout, ok := r.vm.MatchTable(id)
		if !ok {
			return errors.Join(errors.New("nothing to match with"), w.Close(ctx))
		}
		m := resync.NewMatch(resync.MatchDeps{Source: d.src, Layout: layout, Table: table, Replica: w,
			Passed: func(b extent.DiskBlock) error { return r.vm.NoteMatched(id, b) }}, resync.Options{})
		report, err := m.Run(ctx, r.vm.MatchedTo(id))
		if err := errors.Join(err, w.Close(ctx)); err != nil {
			return err
		}
		r.matched.Differing += report.Differing
		r.matched.Downloaded += report.Downloaded
		if err := r.vm.EndMatch(id); err != nil {
			return err
		}
	}
	return nil
}

func (r *rig) quiet() bool {
	disks := r.vm.disksIn(StageComplete)
	st := r.vm.state.get()
	below := 0
	for _, name := range r.order {
		if m := r.images[name]; m.guest != nil && m.guest() == nil {
			below++
		}
	}
	return len(disks) == len(r.order)-below && r.vm.idleVM(disks) && st.Applied == st.Recorded
}

// compare does what a comparison after a crash does.
func (r *rig) compare() {
	r.t.Helper()
	for name, d := range r.disks {
		if r.vm.Unread(d.ID()) {
			r.leaveToCapture(d)
			continue
		}
		t, layout, ok := r.vm.Table(d.ID())
		if !ok {
			continue
		}
		if r.images[name].translated {
			_, err := resync.New(resync.Deps{Source: comparedSource{d, r.images[name]}, Table: t, Layout: layout}, resync.Options{}).Run(context.Background())
			r.must(err)
			continue
		}
		for _, s := range d.Suspect() {
			s.End = min(s.End, extent.Cover[extent.FileBlock](0, d.Size()).End)
			for b := s.Start; b < s.End; b++ {
				var at DiskRange
				if in := layout.DiskBlocks(FileRange{Start: b, End: b + 1}).Ranges(); len(in) > 0 {
					at = in[0]
				}
				r.compareBlock(name, d, t, at, b)
			}
			r.must(d.Compared(s))
		}
	}
}

// leaveToCapture is what becomes of what is suspect of an image in a chain.
func (r *rig) leaveToCapture(d *journal.Disk) {
	end := extent.Cover[extent.FileBlock](0, d.Size()).End
	for _, s := range d.Suspect() {
		if in := s.Intersect(FileRange{End: end}); !in.Empty() {
			d.Mark(in)
		}
		r.must(d.Compared(s))
	}
}

func (r *rig) compareBlock(name string, d *journal.Disk, t *checksum.Table, at DiskRange, b extent.FileBlock) {
	page := make([]byte, extent.BlockSize)
	n, _ := r.images[name].ReadAt(page, int64(b)*extent.BlockSize)
	clear(page[n:])
	if at.Empty() || at.Start >= t.Blocks() {
		d.Mark(FileRange{Start: b, End: b + 1})
		return
	}
	info, _ := r.images[name].probe()
	clearTail(page, at, info.VirtualSize)
	e, err := t.Entries(at, nil)
	r.must(err)
	if !e[0].Known || e[0].Sum != checksum.Block(page) {
		d.Mark(FileRange{Start: b, End: b + 1})
	}
}

// check restores every point and compares it with the oracle: bytes, sizes,
// disks, CRC-64. It returns the records.
func (r *rig) check() []catalog.Record {
	r.t.Helper()
	ctx := context.Background()
	doc, records, err := catalog.Load(ctx, r.target, "vm")
	r.must(err)
	for _, rec := range records {
		for _, rd := range rec.Disks {
			if rd.State == catalog.StateComplete {
				r.checkDisk(doc, records, rec, rd)
			}
		}
	}
	r.must(r.spool.CheckDeep())
	for _, d := range r.vm.disks() {
		if t := d.table(); t != nil {
			r.must(t.Check())
		}
	}
	return records
}

func (r *rig) checkDisk(doc catalog.VMDoc, records []catalog.Record, rec catalog.Record, rd catalog.RecordDisk) {
	r.t.Helper()
	ctx := context.Background()
	want, known := r.oracle[rec.EpochUUID]
	if !known {
		r.t.Fatalf("point %s of an epoch that was never sealed", rec.ID())
	}
	d, err := restore.Open(ctx, r.target, doc, records, rec.ID(), rd.ID, restore.Options{})
	if err != nil {
		r.t.Fatalf("point %s, disk %s: %v", rec.ID(), rd.ID, err)
	}
	got := make([]byte, d.Size())
	if _, err := d.ReadAt(got, 0); err != nil {
		r.t.Fatalf("point %s, disk %s: %v", rec.ID(), rd.ID, err)
	}
	if diff := firstDifference(got, want[rd.Name]); diff != "" {
		r.t.Fatalf("point %s, disk %s: %s", rec.ID(), rd.ID, diff)
	}
	if sum := catalog.FormatSum(checksum.CombineBlocks(checksum.Blocks(nil, padded(got)))); sum != rd.Sum {
		r.t.Fatalf("point %s, disk %s: CRC-64 %s, recorded %s", rec.ID(), rd.ID, sum, rd.Sum)
	}
}

func padded(p []byte) []byte {
	return append(bytes.Clone(p), make([]byte, (extent.BlockSize-len(p)%extent.BlockSize)%extent.BlockSize)...)
}

func firstDifference(got, want []byte) string {
	if len(got) != len(want) {
		return fmt.Sprintf("%d bytes, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Sprintf("byte %d (block %d) is %d, want %d", i, i/extent.BlockSize, got[i], want[i])
		}
	}
	return ""
}

// finish runs to quiescence and checks everything: what was counted is there, what
// was durable and closed became a point unless it was given up, and the newest
// point is what the disks hold.
func (r *rig) finish() []catalog.Record {
	r.t.Helper()
	r.quiesce()
	r.target.Land()
	records := r.check()
	byUUID := map[string]bool{}
	for _, rec := range records {
		byUUID[rec.EpochUUID] = true
	}
	for id, epoch := range r.counted {
		if !byUUID[epoch] && r.policy == retention.DefaultPolicy {
			r.t.Fatalf("point %s was counted and is gone", id)
		}
	}
	newest := newestOf(records)
	for name, m := range r.images {
		if diff := firstDifference(r.oracle[newest.EpochUUID][name], m.bytes()); diff != "" {
			r.t.Fatalf("the newest point is not what disk %s holds: %s", name, diff)
		}
	}
	r.replicasAre(newest)
	return records
}

// replicasAre compares the replicas themselves with the newest point, footer
// included.
func (r *rig) replicasAre(rec catalog.Record) {
	r.t.Helper()
	for _, rd := range rec.Disks {
		name := catalog.ReplicaName("vm", rd.ID)
		p, err := r.target.Properties(context.Background(), name, "")
		r.must(err)
		got := make([]byte, p.Size)
		r.must(r.target.ReadPages(context.Background(), name, "", 0, got))
		want := r.oracle[rec.EpochUUID][rd.Name]
		if diff := firstDifference(got[:min(len(got), len(want))], want); diff != "" {
			r.t.Fatalf("replica of %s: %s", rd.Name, diff)
		}
		if !bytes.Equal(got[len(got)-512:][:8], []byte("conectix")) || !checksum.IsZero(got[len(want):len(got)-512]) {
			r.t.Fatalf("replica of %s: no footer at %d, or something before it", rd.Name, len(got)-512)
		}
	}
}

// pointsOfClosed fails unless every closed epoch that was in the spool is a point.
func (r *rig) pointsOfClosed(records []catalog.Record) {
	r.t.Helper()
	byUUID := map[string]bool{}
	for _, rec := range records {
		byUUID[rec.EpochUUID] = true
	}
	for epoch := range r.manifests {
		if !byUUID[epoch] {
			r.t.Fatalf("epoch %s was closed and in the spool, and is no point", epoch)
		}
	}
}
