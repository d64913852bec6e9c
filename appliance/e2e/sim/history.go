package sim

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/spool"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

// Step is one thing that strikes, some time after the one before.
type Step struct {
	N     int // its place in the whole list: what -sim.steps names
	After time.Duration
	Kind  string
	A, B  int
}

func (s Step) String() string {
	return fmt.Sprintf("%2d: after %v %s (%d, %d)", s.N, s.After, s.Kind, s.A, s.B)
}

// kinds are the steps with their weights.
var kinds = []struct {
	name   string
	weight int
	do     func(w *world, s Step) error
}{
	{"calm", 3, (*world).stepCalm},
	{"kill", 2, (*world).stepKill},
	{"kill at a failpoint", 5, (*world).stepKillAt},
	{"kill while recovering", 3, (*world).stepKillRecovering},
	{"power cut", 3, (*world).stepPowerCut},
	{"power cut at a failpoint", 3, (*world).stepPowerCutAt},
	{"restart", 2, (*world).stepRestart},
	{"target faults", 5, (*world).stepTarget},
	{"target outage", 2, (*world).stepOutage},
	{"slow stages", 3, (*world).stepSlow},
	{"journal faults", 2, (*world).stepJournal},
	{"state disk full", 1, (*world).stepFull},
	{"state disk errors", 1, (*world).stepTree},
	{"image sync errors", 1, (*world).stepSync},
	{"quota", 3, (*world).stepQuota},
	{"clock", 1, (*world).stepClock},
	{"add a disk", 1, (*world).stepAdd},
	{"remove a disk", 1, (*world).stepRemove},
	{"replace a disk", 1, (*world).stepReplace},
	{"state directory lost", 1, (*world).stepLost},
	{"state file lost or rotten", 2, (*world).stepRotten},
	{"second appliance", 1, (*world).stepSecond},
	{"image changed while down", 3, (*world).stepOffline},
	{"file copied over a disk", 3, (*world).stepCopy},
	{"comparison held", 3, (*world).stepHold},
	{"replicas compared", 1, (*world).stepDeep},
	{"replica damaged behind our back", 2, (*world).stepDamage},
}

// Failpoints are all points where a process may be killed.
func Failpoints() []string {
	return slices.Concat(journal.Points(), spool.Points(), shipper.Points())
}

// Steps are what a seed has in store.
func Steps(seed uint64) []Step {
	rng := rand.New(rand.NewPCG(seed, 6))
	total := 0
	for _, k := range kinds {
		total += k.weight
	}
	steps := make([]Step, 5+rng.IntN(10))
	for i := range steps {
		n := rng.IntN(total)
		for _, k := range kinds {
			if n -= k.weight; n < 0 {
				steps[i].Kind = k.name
				break
			}
		}
		steps[i].N, steps[i].A, steps[i].B = i, rng.IntN(1<<16), rng.IntN(1<<16)
		steps[i].After = time.Duration(1+rng.IntN(60_000)) * time.Millisecond
	}
	return steps
}

// play is the whole history. It runs in a bubble of virtual time.
func (w *world) play(steps []Step) {
	w.setQuota([]int64{256 * mib, 24 * mib, 6 * mib}[w.draw(3)])
	if err := w.boot(w.newHost()); err != nil {
		w.fail("first start: %v", err)
		return
	}
	for i, vm := range w.vms {
		for n := range 1 + w.draw(3) {
			d := newDice(w.seed, uint64(100+10*i+n))
			w.guests.Go(func() { w.guest(d, vm, w.active) })
		}
		d := newDice(w.seed, uint64(200+i))
		w.guests.Go(func() { w.operator(d, vm) })
	}
	for _, s := range steps {
		w.until(time.After(s.After))
		w.struck(s.Kind)
		w.happened("step: %s", s)
		if err := w.do(s); err != nil {
			w.fail("step %s: %v", s, err)
			break
		}
	}
	w.until(time.After(20 * time.Second))
	w.finish()
}

func (w *world) do(s Step) error {
	for _, k := range kinds {
		if k.name == s.Kind {
			return k.do(w, s)
		}
	}
	return fmt.Errorf("no step is called %q", s.Kind)
}

// until waits, and restarts a process that dies meanwhile as its service manager would.
func (w *world) until(due <-chan time.Time) {
	for {
		select {
		case <-due:
			return
		case <-w.active().life.died:
			if err := w.crash(false); err != nil {
				w.fail("restart: %v", err)
				<-due
				return
			}
		}
	}
}

// boot starts processes until one lives.
func (w *world) boot(h *host) error {
	var last error
	for try := range 12 {
		if try == 8 {
			w.fate.calm() // a service that cannot start is started again when the operator has helped
		}
		p, err := w.start(h)
		if err == nil {
			w.checkCover(p)
			w.setActive(p)
			return nil
		}
		if last = err; p.life.isAlive() {
			w.struck("start failed")
		} else {
			w.struck("killed while recovering")
		}
		p.life.kill()
		h = p.remains(false)
		for _, line := range h.lines {
			line.Crash()
		}
		p.bury()
		<-time.After(time.Second)
	}
	return last
}

func (w *world) stepCalm(Step) error {
	w.fate.calm()
	return nil
}

func (w *world) stepKill(Step) error { return w.crash(false) }

func (w *world) stepPowerCut(Step) error { return w.crash(true) }

// die waits until the armed failpoint has killed the process, or not.
func (w *world) die(cut bool) error {
	select {
	case <-w.active().life.died:
		return w.crash(cut)
	case <-time.After(90 * time.Second):
		w.fate.with(func(f *fate) { clear(f.mu.at) })
		return nil
	}
}

func (w *world) armPoint(s Step) {
	all := Failpoints()
	w.fate.with(func(f *fate) { f.mu.at[all[s.A%len(all)]] = 1 + s.B%3 })
}

func (w *world) stepKillAt(s Step) error {
	w.armPoint(s)
	return w.die(false)
}

func (w *world) stepPowerCutAt(s Step) error {
	w.armPoint(s)
	return w.die(true)
}

func (w *world) stepKillRecovering(s Step) error {
	w.fate.with(func(f *fate) { f.mu.any = 1 + s.A%6 })
	err := w.crash(s.B%2 == 0)
	w.fate.with(func(f *fate) { f.mu.any = 0 })
	return err
}

// quiet ends the requests of guests for a moment: nil is served.
func (w *world) quiet() *process {
	p := w.active()
	w.setActive(nil)
	for _, m := range p.machines() {
		for _, t := range m.all() {
			t.use.Lock()
			t.use.Unlock() //lint:ignore SA2001 the lock is taken to see the last request leave
		}
	}
	return p
}

// stepRestart is the clean stop and a start after it.
func (w *world) stepRestart(Step) error {
	w.stopClean()
	return w.crash(false)
}

func (w *world) stepTarget(s Step) error {
	kind := []fake.Kind{fake.Refuse, fake.Applied, fake.NotApplied, fake.Late, fake.Late, fake.Throttle, fake.Truncate}[s.A%7]
	a := armed{kind: kind, every: 1 + s.B%20, after: s.B % 50}
	w.fate.with(func(f *fate) { f.mu.target = append(f.mu.target, a) })
	return nil
}

// stepOutage makes the target unreachable for a while.
func (w *world) stepOutage(s Step) error {
	w.fate.with(func(f *fate) { f.mu.target = []armed{{kind: fake.Refuse, every: 1, outage: true}} })
	w.until(time.After(time.Duration(20+s.A%600) * time.Second))
	w.fate.with(func(f *fate) { f.mu.target = nil })
	return nil
}

func (w *world) stepSlow(s Step) error {
	w.fate.slowState.Store(int32(1 + s.A%3*20))
	w.fate.slowImage.Store(int32(1 + s.A/3%3*20))
	w.fate.slowNet.Store(int32(1 + s.B%4*60))
	return nil
}

func (w *world) stepJournal(s Step) error {
	kind := []memory.Fault{memory.Lost, memory.Landed}[s.A%2]
	w.fate.with(func(f *fate) { f.mu.store = armedStore{kind: kind, every: 1 + s.B%12} })
	w.until(time.After(time.Duration(5+s.A%40) * time.Second))
	w.fate.with(func(f *fate) { f.mu.store = armedStore{} })
	return nil
}

func (w *world) stepFull(s Step) error {
	w.fate.with(func(f *fate) { f.mu.full = true })
	w.until(time.After(time.Duration(10+s.A%120) * time.Second))
	w.fate.with(func(f *fate) { f.mu.full = false })
	return nil
}

func (w *world) stepTree(s Step) error {
	w.fate.with(func(f *fate) { f.mu.failing = 2 + s.A%60 })
	w.until(time.After(time.Duration(10+s.B%120) * time.Second))
	w.fate.with(func(f *fate) { f.mu.failing = 0 })
	return nil
}

func (w *world) stepSync(s Step) error {
	w.fate.with(func(f *fate) { f.mu.syncs = 1 + s.A%3 })
	w.until(time.After(time.Duration(10+s.B%60) * time.Second))
	w.fate.with(func(f *fate) { f.mu.syncs = 0 })
	return nil
}

func (w *world) stepQuota(s Step) error {
	w.setQuota([]int64{256 * mib, 24 * mib, 6 * mib, 2 * mib, mib, 200 * kib}[s.A%6])
	return nil
}

func (w *world) stepClock(s Step) error {
	by := time.Duration(s.A%7200-3600) * time.Second
	w.offset.Add(int64(by))
	if by < 0 {
		w.stepped.Store(true)
	}
	return nil
}

// vm picks one.
func (w *world) vm(s Step) string { return w.vms[s.A%len(w.vms)] }

func (w *world) stepAdd(s Step) error {
	p, vm := w.active(), w.vm(s)
	name := fmt.Sprintf([]string{"new%d.raw", "new%d.raw", "dyn%d.vhd", "new%d.vhdx"}[s.A/8%4], s.N)
	img := w.addImage(p.h, vm, name)
	img.life = p.life
	if s.B%2 == 0 {
		w.struck("seeded replica")
		if err := w.seedReplica(vm, img); err != nil {
			return err
		}
	}
	return w.dead(p, p.machine(vm).attach(img))
}

// dead takes an error for what it is: a process that fails to take a disk in or out is restarted.
func (w *world) dead(p *process, err error) error {
	if err == nil && p.life.isAlive() {
		return nil
	}
	w.struck("disk change failed")
	return w.crash(false)
}

func (w *world) stepRemove(s Step) error {
	p, vm := w.active(), w.vm(s)
	order := p.h.order[vm]
	if len(order) < 2 {
		return nil
	}
	name := order[s.B%len(order)]
	err := p.machine(vm).detach(name)
	delete(p.h.images[vm], name)
	p.h.order[vm] = slices.DeleteFunc(slices.Clone(order), func(n string) bool { return n == name })
	return w.dead(p, err)
}

// stepReplace renames another image over a disk.
func (w *world) stepReplace(s Step) error {
	p, vm := w.active(), w.vm(s)
	name := p.h.order[vm][s.B%len(p.h.order[vm])]
	err := p.machine(vm).detach(name)
	img := w.addImage(p.h, vm, name)
	img.life = p.life
	if err == nil {
		err = p.machine(vm).attach(img)
	}
	return w.dead(p, err)
}

// stepSecond starts another appliance over copies of the images, while the first goes on for a while: one of the same identity,
// or of another machine that adopts the VMs.
func (w *world) stepSecond(s Step) error {
	old := w.quiet()
	other := &host{store: &memory.Store{}, tree: newStateDisk(newLife(w.turns)), order: map[string][]string{}, boot: old.h.boot,
		images: map[string]map[string]*Image{}, lines: map[string]*oracle.Timeline{}, machine: old.h.machine}
	if s.B%2 == 0 {
		other.machine = fmt.Sprint("machine", s.N)
	}
	w.noteLost("a second appliance took over", func(manifest) bool { return true })
	for vm, disks := range old.h.images {
		other.images[vm], other.lines[vm] = map[string]*Image{}, oracle.New()
		other.order[vm] = slices.Clone(old.h.order[vm])
		for name, img := range disks {
			other.images[vm][name] = img.after(other.tree.life, false, nil)
			img.told(other.lines[vm])
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i, vm := range w.vms {
		d := newDice(w.seed, uint64(300+10*s.N+i))
		old.run.Go(func() { w.straggler(ctx, d, old, vm) })
	}
	if err := w.boot(other); err != nil {
		return err
	}
	w.until(time.After(time.Duration(10+s.A%200) * time.Second))
	cancel()
	old.life.kill()
	for _, line := range old.h.lines {
		line.Crash()
	}
	old.bury()
	return nil
}

// straggler is a guest of the first appliance while the second is there.
func (w *world) straggler(ctx context.Context, d *dice, p *process, vm string) {
	for p.life.isAlive() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.pace):
		}
		w.request(d, p.machine(vm))
		_ = w.sync(within(ctx), p.machine(vm)) // if it succeeds the point must stay
	}
}

func within(ctx context.Context) context.Context {
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	context.AfterFunc(short, cancel)
	return short
}

// finish lets everything come to rest and judges it.
func (w *world) finish() {
	close(w.leaving)
	w.fate.calm()
	w.setQuota(256 * mib)
	w.target.Land()
	w.guests.Wait()
	w.fate.with(func(f *fate) { f.mu.holding = holdNot })
	if !w.active().life.isAlive() {
		if err := w.crash(false); err != nil {
			w.fail("last start: %v", err)
			return
		}
	}
	p := w.active()
	w.finishCopies()
	for _, m := range p.machines() {
		w.complete(m)
	}
	for _, m := range p.machines() {
		if err := w.settle(m); err != nil {
			w.fail("vm %s does not come to rest: %v; %s", m.name, err, troubles(m))
		}
	}
	w.target.Land()
	for _, m := range p.machines() {
		w.judge(m)
	}
	err := p.stop()
	if err != nil {
		w.fail("clean stop at the end: %v", err)
	}
	p.life.kill()
	p.bury()
}

// settle makes a last point that is complete, and folds it.
func (w *world) settle(m *machine) error {
	var err error
	for range 12 {
		w.chores(m)
		ctx, cancel := context.WithTimeout(m.p.ctx, 10*time.Minute)
		err = w.sync(ctx, m)
		cancel()
		for range 20 {
			if err == nil && settled(m) {
				return nil
			}
			<-time.After(2 * time.Second)
			w.chores(m)
			m.pipe.Wake()
		}
	}
	return errors.Join(err, fmt.Errorf("status %+v", m.pipe.Status()))
}

func settled(m *machine) bool {
	s := m.pipe.Status()
	for _, d := range s.Disks {
		if d.Stage != shipper.StageComplete || d.Unknown != 0 || d.Touched != "" || d.Repairing {
			return false
		}
	}
	for _, t := range m.all() {
		if t.disk.Suspected() {
			return false
		}
	}
	return s.Applied == s.LastPoint && s.Pending == 0
}

func troubles(m *machine) string {
	var all []string
	for _, t := range m.pipe.Troubles() {
		all = append(all, fmt.Sprintf("%s: %v", t.Stage, t.Err))
	}
	return strings.Join(all, "; ")
}
