package shipper

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

var (
	seed  = flag.Uint64("seed", 0, "run one random history only, the one of this seed")
	seeds = flag.Int("seeds", 40, "number of random histories")
)

// TestRandomHistories mixes what guests, target and operators can do with
// crashes, and a spool that is too small by turns.
func TestRandomHistories(t *testing.T) {
	first, n := uint64(1), *seeds
	if *seed != 0 {
		first, n = *seed, 1
	}
	struck := &tally{counts: map[string]int{}}
	for s := first; s < first+uint64(n); s++ {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			bubble(t, func(t *testing.T) { playRandom(t, s, struck) })
			if t.Failed() {
				t.Logf("replay: go test ./shipper -run TestRandomHistories -seed %d -v", s)
			}
		})
	}
	t.Log(struck.counts)
	if n >= 40 {
		for _, kind := range []string{"crash", "fault", "open", "give-up", "takeover", "resize"} {
			if struck.counts[kind] == 0 {
				t.Errorf("no %s in any history", kind)
			}
		}
	}
}

// TestI2I4_RandomHistoriesOfTranslatedDisks is the same with a dynamic VHD and a VHDX, whose writers are stopped in the middle
// of an operation by everything that may happen.
func TestI2I4_RandomHistoriesOfTranslatedDisks(t *testing.T) {
	first, n := uint64(1), *seeds
	if *seed != 0 {
		first, n = *seed, 1
	}
	struck := &tally{counts: map[string]int{}}
	for s := first; s < first+uint64(n); s++ {
		t.Run(fmt.Sprint(s), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				vhd, vhdFile := newHypervisor(t, "c.vhd", 600*kib, 900*kib)
				vhdx, vhdxFile := newHypervisor(t, "d.vhdx", 3*mib+512, 4*mib)
				r := newRig(t, newImage("a.raw", 300*kib), vhdFile, vhdxFile)
				r.active = int(s % 2) // region: evictions, from the first crash on
				p := &player{scenario: &scenario{r: r}, rng: rand.New(rand.NewPCG(s, 2)), struck: struck,
					hypervisors: map[string]*hypervisor{"c.vhd": vhd, "d.vhdx": vhdx}}
				p.play()
			})
			if t.Failed() {
				t.Logf("replay: go test ./shipper -run TestI2I4_RandomHistoriesOfTranslatedDisks -seed %d -v", s)
			}
		})
	}
	t.Log(struck.counts)
}

type player struct {
	*scenario
	hypervisors map[string]*hypervisor // of the translated disks
	rng         *rand.Rand
	struck      *tally
	value       byte
}

// tally counts what struck. The target calls its hook from many goroutines.
type tally struct {
	mu     sync.Mutex // guards counts
	counts map[string]int
}

func (t *tally) add(kind string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts[kind]++
}

func playRandom(t *testing.T, seed uint64, struck *tally) {
	p := &player{scenario: newScenario(t), rng: rand.New(rand.NewPCG(seed, 1)), struck: struck}
	p.play()
}

func (p *player) play() {
	for range 60 {
		p.arm()
		p.move()
		if p.r.t.Failed() {
			return
		}
	}
	p.r.quota = 64 * mib
	if len(p.r.images["a.raw"].bytes()) == 0 { // of an empty disk there is no point
		p.r.truncate("a.raw", mib)
	}
	for _, h := range p.hypervisors {
		h.do(p.r, -1)
	}
	p.r.finish()
}

// arm makes the target fail now and then and the process die now and then.
func (p *player) arm() {
	r := p.r
	r.hook = nil
	if p.rng.IntN(12) == 0 {
		left := 1 + p.rng.IntN(25)
		r.hook = func(string) {
			if left--; left == 0 {
				p.struck.add("crash")
				panic(crashed{})
			}
		}
	}
	if p.rng.IntN(4) != 0 {
		r.target.SetHook(nil)
		return
	}
	every := 3 + p.rng.IntN(12)
	kinds := []fake.Fault{{Kind: fake.Refuse}, {Kind: fake.Applied}, {Kind: fake.NotApplied}, {Kind: fake.Late, After: 1 + p.rng.IntN(30)}, {Kind: fake.Late}}
	fault := kinds[p.rng.IntN(len(kinds))]
	r.target.SetHook(func(op fake.Op) fake.Fault {
		if op.N%every != 0 {
			return fake.Fault{}
		}
		p.struck.add("fault")
		return fault
	})
}

func (p *player) move() {
	r := p.r
	switch n := p.rng.IntN(20); {
	case n < 7:
		p.guest()
	case n < 10:
		p.try(p.vm((*VM).captureStep))
		p.noteOpen()
	case n < 13:
		p.step((*VM).shipStep)
	case n < 15:
		p.step((*VM).initialStep)
	case n < 16:
		p.apply()
	case n < 17:
		before := len(r.spool.Manifests())
		r.quota = []int64{2 * mib, mib, 100 * kib, 20 * kib, 64 * mib}[p.rng.IntN(5)]
		p.try(p.vm((*VM).captureStep))
		if len(r.spool.Manifests()) < before {
			p.struck.add("give-up")
		}
	case n < 18:
		r.compare()
	case n < 19 && p.rng.IntN(3) == 0:
		p.takeOver()
	default:
		p.turn()
	}
}

func (p *player) noteOpen() {
	for _, m := range p.r.spool.Manifests() {
		if !m.Closed {
			p.struck.add("open")
		}
	}
}

// takeOver makes the process distrust its state, as a start after a restored
// state directory does.
func (p *player) takeOver() {
	p.struck.add("takeover")
	p.try(func(ctx context.Context) error {
		return p.r.vm.state.update(func(s *vmRecord) {
			if s.Generation != 0 {
				s.Distrust = "a test said so"
			}
		})
	})
	p.r.crash()
}

// drive takes some steps of a hypervisor's operation, and begins the next.
func (p *player) drive(h *hypervisor) {
	if len(h.steps) == 0 {
		h.change(p.r, p.rng, p.value)
	}
	h.do(p.r, p.rng.IntN(len(h.steps)+2)-1)
}

// guest writes some, more often to few blocks than to many.
func (p *player) guest() {
	r := p.r
	for range 1 + p.rng.IntN(4) {
		p.value++
		name := r.order[p.rng.IntN(len(r.order))]
		if h := p.hypervisors[name]; h != nil {
			p.drive(h)
			continue
		}
		size := int64(len(r.images[name].bytes()))
		off := p.rng.Int64N(max(1, size))
		n := min(size-off, []int64{100, 5000, 70 * kib, 600 * kib}[p.rng.IntN(4)])
		switch p.rng.IntN(8) {
		case 0:
			r.discard(name, off, n)
		case 1:
			if name == "a.raw" {
				p.struck.add("resize")
				r.truncate(name, max(0, p.rng.Int64N(6*mib)-mib)) // now and then it is emptied
			}
		case 2: // zeros as data
			r.fill(name, off, n, 0)
		case 3: // incompressible
			data := make([]byte, n)
			for i := range data {
				data[i] = byte(p.rng.Uint32())
			}
			r.do(name, extent.Change{Off: off, Len: n}, data)
		default:
			r.fill(name, off, n, p.value)
		}
	}
}
