package stage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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

// plugDisks: the load leaves most of the wide one alone, so that a full scan after a cut is told from a comparison of what
// was active.
var plugDisks = []disk{{name: "os.vhd", size: 48 << 20}, {name: "data.raw", size: 64 << 20}, {name: "wide.raw", size: 256 << 20, span: 8 << 20}}

// storeBytes is the size of the disk with store and state.
const storeBytes = 1 << 30

// Run boots the machine and pulls.
func (p Plug) Run(ctx context.Context, e *Env, r *Report) (err error) {
	dir, err := e.fresh("plug")
	if err != nil {
		return err
	}
	target, err := rig.AzureTarget(ctx, filepath.Join(dir, "azurite"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	tree := filepath.Join(dir, "host") // first a tree, later where a copy of the disk is looked at
	appliance, err := rig.New(rig.Options{Dir: dir, Binary: e.Binary, URL: target.URL, Key: target.Key, Source: filepath.Join(tree, "vhd")})
	if err != nil {
		return err
	}
	g, err := newGuest(ctx, e, r, appliance, plugDisks)
	if err != nil {
		return err
	}
	g.slack = 3 * time.Second // the guest's clock begins at a whole second
	x := &puller{guest: g, plug: p, store: filepath.Join(dir, "store.img"), known: map[string]bool{}}
	if err := errors.Join(vm.Ext4(ctx, x.store, "store", tree, storeBytes), os.RemoveAll(tree)); err != nil {
		return err
	}
	x.machine, err = vm.New(ctx, vm.Options{Dir: filepath.Join(dir, "machine"), Image: p.Image, Payload: p.Payload, Store: x.store})
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, x.machine.Kill()) // first, so that no write hangs
		_ = g.stop()
		err = errors.Join(err, x.machine.Close())
	}()
	return x.run(ctx)
}

type puller struct {
	*guest
	plug    Plug
	machine *vm.Machine
	store   string          // the disk's file
	known   map[string]bool // points that somebody was told of
}

func (x *puller) run(ctx context.Context) error {
	x.load.Rate, x.load.Writers = 4_000_000, 8 // the processor is emulated, an answer takes its time
	x.load.Open = func(path string, flags int) (stamp.File, error) {
		return x.machine.Open(ctx, "/vhd"+strings.TrimPrefix(path, x.rig.Mount), flags), nil
	}
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

// install boots the machine and starts the appliance in it for the first time.
func (x *puller) install(ctx context.Context) error {
	if err := x.machine.Boot(ctx); err != nil {
		return err
	}
	u, err := url.Parse(x.rig.URL)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		return err
	}
	config := fmt.Sprintf("state_dir: /srv/state\nstores:\n  - {name: main, source: /srv/vhd, mount: /vhd}\ntarget:\n  url: %s\n"+
		"  credentials: {type: shared_key, file: /run/credentials/vhdrelay.service/target}\nreplication: {interval: 5s, apply_interval: 20s}\n", x.rig.URL)
	if err := errors.Join(
		x.machine.Install(ctx, port),
		x.machine.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", config, 0o600),
		x.machine.Put(ctx, "/etc/credstore/vhdrelay.target", x.rig.Key, 0o600),
	); err != nil {
		return err
	}
	if _, err := x.machine.Shell(ctx, "mkdir /vhd && systemctl enable -q --now vhdrelay && sync"); err != nil {
		return err
	}
	return x.replicated(ctx)
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
	x.report.Check(x.recovered(ctx, source, &p), "power cut %d", cut)
	p.Failures = x.report.Failures()[before:]
	x.env.say("power cut %d: %+v", cut, p)
	return p, nil
}

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

// syncInside asks the appliance in the machine for a point and judges it out here.
func (x *puller) syncInside(ctx context.Context) (rig.Point, error) {
	bounds := stamp.Bounds{After: x.log.Tick(), Before: math.MaxInt64}
	out, err := x.machine.Run(ctx, "vhdrelay", "sync", x.vm, "--wait", "--json")
	if err != nil {
		return rig.Point{}, err
	}
	bounds.Before = x.log.Tick()
	var result rig.SyncResult
	if err := json.Unmarshal([]byte(out), &result); err != nil {
		return rig.Point{}, fmt.Errorf("sync prints %q: %w", out, err)
	}
	points, err := x.rig.Points(ctx, x.vm)
	if err != nil {
		return rig.Point{}, err
	}
	for _, p := range points {
		if p.ID == result.Point {
			return p, x.check(ctx, p, bounds)
		}
	}
	return rig.Point{}, fmt.Errorf("sync said point %q, the target does not have it", result.Point)
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
	for i := range images {
		if n := images[i].Differences(source[i]); n != 0 {
			return fmt.Errorf("point %s, disk %s differs from the store in %d blocks", point.ID, x.disks[i].name, n)
		}
	}
	return errors.Join(x.rig.Verify(ctx, x.vm, point.ID), x.allThere(ctx), x.suspects(ctx, p))
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
