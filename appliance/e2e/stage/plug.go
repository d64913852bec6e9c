package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	vm "github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// Plug pulls the plug of a whole machine: a Debian guest that runs the appliance from its unit, store and state on one
// disk with a volatile cache, the target outside. The load's writes go through the machine's agent, so that the ledger of
// what was sent and answered never was in there.
type Plug struct {
	Image   vm.Image
	Payload string           // disk with agent and appliance
	First   int              // number of the first cut: a resumed run goes on with other choices
	Cuts    int              // how many
	Done    func(Pull) error // called after every cut that was looked at whole
}

// Pull is what one power cut did.
type Pull struct {
	Cut      int      `json:"cut"`
	Seed     uint64   `json:"seed"`
	After    string   `json:"after"`   // of load
	Keep     float64  `json:"keep"`    // share of the disk's cache that was kept
	Sectors  int      `json:"sectors"` // of 4 KiB that the disk lost
	Blocks   int      `json:"blocks"`  // of the images, that hold less than was written
	Writes   int      `json:"writes"`  // answered in this life of the machine
	Suspect  int64    `json:"suspect"` // bytes
	Boot     string   `json:"boot"`    // from the power to an active unit
	Point    string   `json:"point"`   // the first one afterwards
	Failures []string `json:"failures"`
}

// Run boots the machine and pulls.
func (p Plug) Run(ctx context.Context, e *Env, r *Report) (err error) {
	m, end, err := newInside(ctx, e, r, "plug", p.Image, p.Payload)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	x := &puller{inside: m, plug: p, known: map[string]bool{}}
	return x.run(ctx)
}

type puller struct {
	*inside
	plug  Plug
	known map[string]bool // points that somebody was told of
}

func (x *puller) run(ctx context.Context) error {
	if err := x.install(ctx); err != nil {
		return err
	}
	for i := range x.plug.Cuts {
		cut := x.plug.First + i
		pull, err := x.pull(ctx, cut)
		if err != nil {
			return fmt.Errorf("power cut %d: %w", cut, err)
		}
		if err := x.plug.Done(pull); err != nil {
			return err
		}
	}
	return x.checkAll(ctx, mostPoints)
}

// pull is one cut, from load to the proof that nothing is wrong. A failure of the appliance is in the Pull, an error is
// the harness's or leaves nothing to go on with.
func (x *puller) pull(ctx context.Context, cut int) (Pull, error) {
	rng := rand.New(rand.NewPCG(x.env.Seed, uint64(cut)))
	p := Pull{Cut: cut, Seed: x.env.Seed, Keep: []float64{0.5, 0, 1}[cut%3]}
	before := len(x.report.Failures())
	after := time.Duration(rng.Int64N(int64(15 * time.Second)))
	p.After = after.Round(time.Millisecond).String()
	if err := x.underLoad(ctx, cut, after); err != nil {
		return p, err
	}
	if err := x.off(ctx, rng, &p); err != nil {
		return p, err
	}
	source, err := x.lookAt(ctx, &p)
	if err != nil {
		return p, err
	}
	if err := x.on(ctx, &p); err != nil {
		return p, err
	}
	within, cancel := context.WithTimeout(ctx, recoverTimeout)
	x.report.Check(x.recovered(within, source, &p), "power cut %d", cut)
	cancel()
	p.Failures = x.report.Failures()[before:]
	x.env.say("power cut %d: %+v", cut, p)
	return p, nil
}

// recoverTimeout is for an emulated machine on a busy one.
const recoverTimeout = 10 * time.Minute

// underLoad writes until the plug is to be pulled. In every second round nobody syncs; in every third a point is asked for
// and judged while the load goes on.
func (x *puller) underLoad(ctx context.Context, cut int, d time.Duration) error {
	x.load.Modes = nil
	if cut%2 == 1 {
		x.load.Modes = []stamp.Mode{stamp.Direct}
	}
	x.guest.start(ctx)
	if cut%3 == 2 {
		_, err := x.syncInside(ctx)
		x.report.Check(err, "sync under load")
	}
	if err := x.pause(ctx, d); err != nil {
		return fmt.Errorf("the load fails before the cut: %w", err)
	}
	points, err := x.rig.Points(ctx, x.vm)
	for _, p := range points {
		x.known[p.ID] = true
	}
	return err
}

// off pulls the plug.
func (x *puller) off(_ context.Context, rng *rand.Rand, p *Pull) error {
	if err := x.machine.Kill(); err != nil {
		return err
	}
	if err := x.guest.stop(); errors.Is(err, errStuck) {
		return err
	}
	p.Writes = x.log.Totals().Writes
	var err error
	p.Sectors, err = x.machine.Disk().Cut(rng, p.Keep)
	return errors.Join(err, x.machine.Close())
}

// lookAt reads the images from a copy of the disk as the cut left it: the truth, read by this machine's kernel.
func (x *puller) lookAt(ctx context.Context, p *Pull) ([]stamp.Image, error) {
	look := &rig.Loop{File: x.store + ".copy", Dir: filepath.Dir(x.rig.Source)}
	if err := copySparse(x.store, look.File); err != nil {
		return nil, err
	}
	if err := look.Mount(ctx); err != nil {
		return nil, err
	}
	images, err := x.readSource()
	if err == nil {
		found := x.log.CheckDurable(images)
		x.report.Check(found.Err(), "the store after power cut %d", p.Cut)
		p.Blocks = found.Lost
		err = x.begin()
	}
	return images, errors.Join(err, look.Unmount())
}

func copySparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.Create(to)
	if err != nil {
		return err
	}
	buf, zero := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); err == nil && off < st.Size(); off += int64(len(buf)) {
		n, readErr := src.ReadAt(buf, off)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			err = readErr
		} else if string(buf[:n]) != string(zero[:n]) {
			_, err = dst.WriteAt(buf[:n], off)
		}
	}
	return errors.Join(err, dst.Truncate(st.Size()), dst.Close())
}

// on brings the machine up again and waits for the unit, which starts by itself.
func (x *puller) on(ctx context.Context, p *Pull) error {
	began := time.Now()
	if err := x.machine.Boot(ctx); err != nil {
		return err
	}
	_, err := x.machine.Run(ctx, "systemctl", "start", "vhdrelay") // waits for the job of the boot
	p.Boot = time.Since(began).Round(time.Second).String()
	return err
}

// recovered wants a sound journal, every point that was known, and a first point that is the store, bit by bit.
func (x *puller) recovered(ctx context.Context, source []stamp.Image, p *Pull) error {
	if _, err := x.machine.Run(ctx, "vhdrelay", "journal", "check"); err != nil {
		return err
	}
	point, err := x.syncInside(ctx)
	if err != nil {
		return err
	}
	p.Point = point.ID
	images, err := x.readPoint(point)
	if err != nil {
		return err
	}
	return errors.Join(x.same(point, images, source), x.rig.Verify(ctx, x.vm, point.ID), x.allThere(ctx), x.suspects(ctx, p))
}

func (x *puller) allThere(ctx context.Context) error {
	points, err := x.rig.Points(ctx, x.vm)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, p := range points {
		there[p.ID] = true
	}
	for id := range x.known {
		if !there[id] {
			err = errors.Join(err, fmt.Errorf("point %s was listed before and is gone", id))
		}
	}
	return err
}

// suspects wants less than everything to be suspect: no full scan (I11). The load's own regions are.
func (x *puller) suspects(ctx context.Context, p *Pull) error {
	out, err := x.machine.Run(ctx, "vhdrelay", "status", "--json")
	if err != nil {
		return err
	}
	var status rig.Status
	if err := json.Unmarshal([]byte(out), &status); err != nil {
		return fmt.Errorf("status prints %q: %w", out, err)
	}
	now, ok := status.VM(x.vm)
	if !ok {
		return fmt.Errorf("status does not know %s: %s", x.vm, out)
	}
	p.Suspect = now.Recovery.SuspectBytes
	if p.Suspect > spanOf(x.disks) {
		return fmt.Errorf("%+v: more is suspect than the load can have written", now.Recovery)
	}
	return nil
}
