package sim

import (
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/retention"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// world is one history: its machines, its target, what strikes them, and the ledger of what somebody was told.
type world struct {
	seed   uint64
	dir    string // of the real file system, for saved blocks
	*dice         // of set-up and steps
	haste  *dice  // how long things take
	turns  *turnstile
	target *fake.Fake
	fate   *fate
	log    io.Writer // of everything; nil: nowhere

	// What a history has from its seed and keeps.
	vms      []string
	regions  int  // cap of the activity log
	saves    bool // blocks can be saved
	interval time.Duration
	apply    time.Duration
	policy   retention.Policy
	pace     time.Duration // of the guests

	quota   atomic.Int64
	offset  atomic.Int64 // of the clock, nanoseconds
	stepped atomic.Bool  // the clock was put back
	inode   atomic.Uint64

	spaces map[string][]byte // of restored disks; the judge's alone

	guests  sync.WaitGroup
	leaving chan struct{} // closed when guests and operators are to end

	mu struct { // guards all below; no I/O under it
		sync.Mutex
		current  *process // nil: none runs
		seals    map[string]sealed
		closed   map[string]manifest // by epoch UUID
		acks     []ack
		copies   map[string]*copying // by VM and disk
		counts   map[string]int
		doing    map[string]int // how often who did what
		wrong    []string
		quotaMax int64 // that the spool may have by now
		traced   bool
		trace    []string // what happened, in order, if it is traced
	}
}

// sealed is one seal the oracle heard of.
type sealed struct {
	line *oracle.Timeline
	seal *oracle.Seal
}

// manifest is an epoch that was in the spool.
type manifest struct {
	vm         string
	epoch      uint64
	generation uint64
	closed     bool
	segments   []string // UUIDs
	lost       string   // why it need not be at the target
}

// ack is a `sync --wait` that returned.
type ack struct {
	vm     string
	line   *oracle.Timeline
	before *oracle.Seal // asked for when the call began
	point  string
}

func newWorld(seed uint64, dir string) *world {
	w := &world{seed: seed, dir: dir, dice: newDice(seed, 4), haste: newDice(seed, 7), turns: &turnstile{}, leaving: make(chan struct{}), spaces: map[string][]byte{}}
	w.mu.seals, w.mu.closed, w.mu.copies, w.mu.counts, w.mu.doing = map[string]sealed{}, map[string]manifest{}, map[string]*copying{}, map[string]int{}, map[string]int{}
	uuid.SetRand(reader{rand.New(rand.NewPCG(seed, 5))})
	w.target = fake.New(fake.Options{Now: time.Now})
	w.fate = newFate(w)
	w.target.SetHook(w.fate.targetFault)
	w.vms = []string{"one", "two"}[:1+w.draw(4)/3]
	w.regions = []int{2, 3, 6, journal.DefaultActivityRegions}[w.draw(4)]
	w.saves = w.draw(8) != 0
	w.interval = time.Duration(5+w.draw(20)) * time.Second
	w.apply = time.Duration(20+w.draw(100)) * time.Second
	w.policy = retention.DefaultPolicy
	if w.draw(5) == 0 {
		w.policy = retention.Policy{Dense: time.Minute, Hourly: time.Hour}
	}
	w.pace = []time.Duration{time.Second, 5 * time.Second, 20 * time.Second}[w.draw(3)]
	w.setQuota(256 * mib)
	return w
}

// reader makes UUIDs that depend on the seed alone.
type reader struct{ rng *rand.Rand }

func (r reader) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(r.rng.Uint32())
	}
	return len(p), nil
}

// newHost makes a machine with images of random sizes, none of which was seen by anybody.
func (w *world) newHost() *host {
	h := w.bareHost(newLife(w.turns))
	for _, vm := range w.vms {
		for _, name := range stocks[w.draw(len(stocks))] {
			w.addImage(h, vm, name)
		}
	}
	return h
}

// stocks are the images that a VM may have: every format by itself and beside others.
var stocks = [][]string{{"a.raw"}, {"a.raw", "b.vhd"}, {"a.raw", "b.vhd", "c.raw"}, {"a.raw", "dyn.vhd"}, {"dyn.vhd"}, {"dyn.vhd", "e.vhdx"}, {"e.vhdx"}}

// bareHost makes a machine without images.
func (w *world) bareHost(l *life) *host {
	h := &host{machine: "machine", store: &memory.Store{}, tree: newStateDisk(l), images: map[string]map[string]*Image{}, order: map[string][]string{},
		lines: map[string]*oracle.Timeline{}, boot: journal.Boot{ID: "boot", Start: w.now().Add(-time.Hour)}}
	for _, vm := range w.vms {
		h.images[vm], h.lines[vm] = map[string]*Image{}, oracle.New()
	}
	return h
}

// addImage puts an image of random size and content into a VM's directory.
func (w *world) addImage(h *host, vm, name string) *Image {
	size := w.sizeOf(name, 1+w.draw(w.most()))
	content := make([]byte, size)
	for at := 0; at < size; at += 64 * kib * (1 + w.draw(8)) {
		n := min(size-at, 100+w.draw(40*kib))
		fill(content[at:at+n], uint64(w.draw(1<<30)))
	}
	img := newImage(name, w.inode.Add(1), content, w.now())
	w.equip(img, h.tree.life)
	if _, have := h.images[vm][name]; !have {
		h.order[vm] = append(h.order[vm], name)
	}
	h.images[vm][name] = img
	img.told(h.lines[vm])
	return img
}

// sizeOf rounds the size of a disk, where its format wants that.
func (w *world) sizeOf(name string, size int) int {
	switch {
	case translated(name):
		size = min((size+sector-1)&^(sector-1), mostTranslated)
	case isVHD(name):
		size = (size + mib - 1) &^ (mib - 1)
	}
	return size
}

// most is what the size of an image is drawn from: most are small, or a history would be spent reading what never changes;
// some have more regions than the activity log.
func (w *world) most() int {
	switch k := w.draw(10); {
	case k < 5:
		return 300 * kib
	case k < 8:
		return 5 * mib / 2
	}
	return 12 * mib
}

// noise is where random bytes are taken from.
var noise = func() []byte {
	p := make([]byte, 2*mib)
	_, _ = reader{rand.New(rand.NewPCG(9, 9))}.Read(p)
	return p
}()

// fill writes bytes that name their writer, compressible or not.
func fill(p []byte, id uint64) {
	if id%3 == 0 {
		for i := range min(4, len(p)) {
			p[i] = byte(id>>(8*i)) | 1
		}
		for n := 4; n < len(p); n *= 2 {
			copy(p[n:], p[:n])
		}
		return
	}
	at := int(id * 0x9e3779b97f4a7c15 >> 44) // 20 bits
	for len(p) > 0 {
		n := copy(p, noise[at:])
		p, at = p[n:], 0
	}
}

// dice is a stream of random numbers of its own, so that who draws from another one first does not matter.
type dice struct {
	mu struct { // guards the stream; no I/O
		sync.Mutex
		rng *rand.Rand
	}
}

func newDice(seed, stream uint64) *dice {
	d := &dice{}
	d.mu.rng = rand.New(rand.NewPCG(seed, stream))
	return d
}

// draw returns a number in [0, n).
func (d *dice) draw(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.rng.IntN(n)
}

func (d *dice) shuffle(n int, swap func(i, k int)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.rng.Shuffle(n, swap)
}

// slowness is how long a slow operation takes this time, in parts of a turn, of less than slow turns. It depends on who does what
// and how often he did it, so that it does not matter who of two that do something at the same moment comes first.
func (w *world) slowness(slow int32, who string) int {
	if slow <= 0 {
		return 0
	}
	w.mu.Lock()
	w.mu.doing[who]++
	n := w.mu.doing[who]
	w.mu.Unlock()
	h := fnv.New64a()
	fmt.Fprint(h, w.seed, who, n)
	x := h.Sum64()
	x = (x ^ x>>29) * 0xbf58476d1ce4e5b9
	x ^= x >> 32
	if x%uint64(slow) == 0 {
		return 0
	}
	return int(x%uint64(slow))*turn + int(x>>40%turn)
}

func (w *world) now() time.Time { return time.Now().Add(time.Duration(w.offset.Load())) }

func (w *world) live() shipper.Live {
	return shipper.Live{Interval: w.interval, ApplyInterval: w.apply, Policy: w.policy}
}

// struck counts what happened; a kind of fault that never happens proves nothing.
func (w *world) struck(kind string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.counts[kind]++
}

// happened adds a line to the trace, with the time of the bubble.
func (w *world) happened(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.traced {
		w.mu.trace = append(w.mu.trace, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
	}
}

// fail notes what must not be. The history goes on to its end.
func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mu.wrong) < 20 {
		w.mu.wrong = append(w.mu.wrong, fmt.Sprintf(format, args...))
	}
}

func (w *world) noteSeal(id string, line *oracle.Timeline, s *oracle.Seal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.seals[id] = sealed{line, s}
	w.mu.counts["seal"]++
	if w.mu.traced {
		w.mu.trace = append(w.mu.trace, "seal "+id)
	}
}

func (w *world) noteManifest(m *machine, doc *spool.Manifest) {
	w.mu.Lock()
	defer w.mu.Unlock()
	is := manifest{vm: m.name, generation: doc.Generation, epoch: doc.Epoch, closed: doc.Closed}
	for _, d := range doc.Disks {
		if d.Segment != nil {
			is.segments = append(is.segments, d.Segment.UUID)
		}
	}
	w.mu.closed[doc.EpochUUID] = is
	if !doc.Closed {
		w.mu.counts["open epoch"]++
	}
}

// noteLost says why manifests need not be at the target.
func (w *world) noteLost(why string, which func(manifest) bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, is := range w.mu.closed {
		if is.lost == "" && which(is) {
			is.lost = why
			w.mu.closed[id] = is
		}
	}
}

// noteGiveUp says so of a give-up that is under way.
func (w *world) noteGiveUp(m *machine) {
	if from, pending := m.spool.GiveUpFrom(); pending {
		w.noteLost("given up", func(is manifest) bool { return is.vm == m.name && is.epoch >= from })
	}
}

// setQuota changes the quota. What the spool has by then may stay until it is given up.
func (w *world) setQuota(n int64) {
	w.quota.Store(n)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.quotaMax = max(n, w.mu.quotaMax)
}

// quotaSlack is what documents and the epoch under way may take beyond the quota, in bytes: it is judged when it is written.
const quotaSlack = 1 * mib

// checkQuota holds I10: however long the outage, the spool does not grow beyond its quota.
func (w *world) checkQuota(p *process, used int64) {
	w.mu.Lock()
	limit := w.mu.quotaMax*int64(len(w.vms)) + quotaSlack
	w.mu.Unlock()
	if used > limit {
		w.fail("I10: the spool has %d bytes, the quota allows %d", used, limit)
	}
}

// active is the process that serves guests now; nil if none does.
func (w *world) active() *process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.current
}

func (w *world) setActive(p *process) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.current = p
}

func (w *world) counts() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.mu.counts)
}

// asleep waits, unless everybody is to leave first: then it returns false.
func (w *world) asleep(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-w.leaving:
		return false
	}
}
