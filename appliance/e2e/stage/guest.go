package stage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// disk is one disk of a guest: a fixed VHD if it is called so, else raw.
type disk struct {
	name string
	size int64 // virtual
	span int64 // the load stays below; 0: size
}

// standardDisks are those of the stamped VM. The load leaves most of wide.raw alone: what is suspect after a kill must
// not be all of it.
var standardDisks = []disk{
	{name: "os.vhd", size: 64 << 20},
	{name: "data.raw", size: 48 << 20},
	{name: "wide.raw", size: 256 << 20, span: 16 << 20},
}

// guest is a VM whose disks hold stamped blocks.
type guest struct {
	env     *Env
	report  *Report
	rig     *rig.Rig
	vm      string
	disks   []disk
	clock   stamp.Clock
	load    stamp.Load
	log     *stamp.Log // of the last era
	eras    []*era
	running *running
	scratch string
	slack   time.Duration // how far a point's time may be from its seal

	// at is where the load opens a disk, and whole makes a file with all bytes of the disk out of the image behind the mount;
	// nil: at the mount, and the image is that file.
	at    func(disk) string
	whole func(disk) (path string, err error)
}

// era is a history from one beginning; a crash starts the next.
type era struct {
	from time.Time
	log  *stamp.Log
	last *stamp.Cut // of the newest point that was checked
	upTo time.Time  // and the time of that point
}

// newGuest makes the images in the store, before the appliance sees it.
func newGuest(ctx context.Context, e *Env, r *Report, appliance *rig.Rig, disks []disk) (*guest, error) {
	g := &guest{env: e, report: r, rig: appliance, vm: "stamped", disks: disks, scratch: filepath.Join(appliance.Dir, "export"), slack: clockSlack}
	g.load.Seed = e.Seed
	for _, d := range disks {
		g.load.Span = append(g.load.Span, stamp.Span{To: d.span / stamp.BlockSize})
		if err := createDisk(ctx, filepath.Join(appliance.Source, g.vm, d.name), d.size); err != nil {
			return nil, err
		}
	}
	return g, g.begin()
}

// createDisk makes an empty fixed VHD or raw image.
func createDisk(ctx context.Context, path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	args := []string{"create", "-q", "-f", "raw", path, strconv.FormatInt(size, 10)}
	if filepath.Ext(path) == ".vhd" {
		args = []string{"create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size=on", path, strconv.FormatInt(size, 10)}
	}
	return command(ctx, "qemu-img", args...)
}

// command runs a tool; what it printed is in the error.
func command(ctx context.Context, name string, args ...string) error {
	_, err := output(ctx, name, args...)
	return err
}

func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return string(out), nil
}

// begin starts an era with what the store holds. Nothing may be writing.
func (g *guest) begin() error {
	images, err := g.readSource()
	if err != nil {
		return err
	}
	if g.log == nil {
		g.log = stamp.NewLog(&g.clock, images)
	} else {
		g.log = g.log.Next(images)
	}
	g.eras = append(g.eras, &era{from: time.Now(), log: g.log})
	return nil
}

// readSource reads the images behind the mount.
func (g *guest) readSource() ([]stamp.Image, error) {
	if g.whole != nil {
		return g.readImages(g.whole)
	}
	return g.readImages(func(d disk) (string, error) { return filepath.Join(g.rig.Source, g.vm, d.name), nil })
}

func (g *guest) readImages(path func(disk) (string, error)) ([]stamp.Image, error) {
	var images []stamp.Image
	for i, d := range g.disks {
		file, err := path(d)
		if err != nil {
			return nil, err
		}
		im, err := readImage(file, d.size, i)
		if err != nil {
			return nil, err
		}
		images = append(images, im)
	}
	return images, nil
}

func readImage(path string, size int64, number int) (stamp.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return stamp.Image{}, err
	}
	defer f.Close()
	return stamp.ReadImage(f, size, number)
}

// running is a load under way.
type running struct {
	cancel context.CancelFunc
	done   chan error
}

// start starts the load at the mount.
func (g *guest) start(ctx context.Context) {
	at := g.at
	if at == nil {
		at = func(d disk) string { return filepath.Join(g.rig.Mount, g.vm, d.name) }
	}
	var paths []string
	for _, d := range g.disks {
		paths = append(paths, at(d))
	}
	ctx, cancel := context.WithCancel(ctx)
	run := &running{cancel: cancel, done: make(chan error, 1)}
	load, log := g.load, g.log
	g.load.Seed++
	go func() { run.done <- load.Run(ctx, log, paths) }()
	g.running = run
}

// stuckAfter is how long a guest may take to come to rest; a write never waits for the target.
const stuckAfter = 30 * time.Second

var errStuck = errors.New("a guest write hangs")

// stop lets the load come to rest and returns its error. A dead mount is its usual error.
func (g *guest) stop() error {
	if g.running == nil {
		return nil
	}
	run := g.running
	g.running = nil
	run.cancel()
	timer := time.NewTimer(stuckAfter)
	defer timer.Stop()
	select {
	case err := <-run.done:
		return err
	case <-timer.C:
		return fmt.Errorf("%w: not answered %v after the load was stopped", errStuck, stuckAfter)
	}
}

// eraOf finds the era a point was sealed in, by its time.
func (g *guest) eraOf(p rig.Point) *era {
	found := g.eras[0]
	for _, e := range g.eras {
		if !e.from.After(p.Time) {
			found = e
		}
	}
	return found
}

// clockSlack is how far a point's time may be from its seal where one clock serves both.
const clockSlack = time.Second

// check exports a point and judges it. bounds are what the caller knows of the seal.
func (g *guest) check(ctx context.Context, p rig.Point, bounds stamp.Bounds) error {
	if err := g.rig.Export(ctx, g.vm, p.ID, g.scratch); err != nil {
		return err
	}
	images, err := g.readPoint(p)
	if err != nil {
		return err
	}
	e := g.eraOf(p)
	bounds = bounds.And(e.log.Around(p.Time.Add(-g.slack), p.Time.Add(g.slack)))
	previous := e.last
	if p.Time.Before(e.upTo) {
		previous = nil
	}
	cut := e.log.Check(images, bounds, previous)
	if previous == e.last && cut.OK() {
		e.last, e.upTo = cut, p.Time
	}
	if err := cut.Err(); err != nil {
		kept := fmt.Sprintf("%s-%s", g.scratch, p.ID)
		return errors.Join(fmt.Errorf("point %s: %w\n  the images are kept in %s", p.ID, err, kept), os.RemoveAll(kept), os.Rename(g.scratch, kept))
	}
	return nil
}

// readPoint reads the exported disks of a point. A point made before a disk's initial replication was done does not have
// that disk.
func (g *guest) readPoint(p rig.Point) ([]stamp.Image, error) {
	images := make([]stamp.Image, len(g.disks))
	for i, d := range g.disks {
		if !p.Has(d.name) {
			continue
		}
		var err error
		if images[i], err = readImage(rig.Exported(g.scratch, d.name), d.size, i); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// sync asks for a point under load and judges it.
func (g *guest) sync(ctx context.Context) (rig.Point, error) {
	bounds := stamp.Bounds{After: g.log.Tick(), Before: math.MaxInt64}
	result, err := g.rig.Sync(ctx, g.vm)
	if err != nil {
		return rig.Point{}, err
	}
	bounds.Before = g.log.Tick()
	return g.judgeSync(ctx, result, bounds)
}

// judgeSync judges the point that a sync said it made.
func (g *guest) judgeSync(ctx context.Context, said rig.SyncResult, bounds stamp.Bounds) (rig.Point, error) {
	points, err := g.rig.Points(ctx, g.vm)
	if err != nil {
		return rig.Point{}, err
	}
	for _, p := range points {
		if p.ID == said.Point {
			return p, g.check(ctx, p, bounds)
		}
	}
	return rig.Point{}, fmt.Errorf("sync said point %s, points does not list it", said.Point)
}

// checkAll exports and judges all points, or the last ten and an even sample of the others if they are more than most.
func (g *guest) checkAll(ctx context.Context, most int) error {
	points, err := g.rig.Points(ctx, g.vm)
	if err != nil {
		return err
	}
	chosen := sample(points, most)
	g.env.say("%d points, %d are checked", len(points), len(chosen))
	for _, e := range g.eras {
		e.last, e.upTo = nil, time.Time{}
	}
	for _, p := range chosen {
		g.report.Check(g.check(ctx, p, stamp.NoBounds), "VM %s", g.vm)
	}
	g.report.Figure("points", "%d, checked %d", len(points), len(chosen))
	return nil
}

func sample(points []rig.Point, most int) []rig.Point {
	if len(points) <= most {
		return points
	}
	const newest = 10
	var out []rig.Point
	old := points[:len(points)-newest]
	for i := range most - newest {
		out = append(out, old[i*len(old)/(most-newest)])
	}
	return append(out, points[len(points)-newest:]...)
}

// replicated waits until the VM has a point with all of its disks.
func (g *guest) replicated(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	return g.rig.Await(ctx, "the first whole point of "+g.vm, func() (bool, error) {
		points, err := g.rig.Points(ctx, g.vm)
		return err == nil && len(points) > 0 && len(points[len(points)-1].Disks) == len(g.disks), nil
	})
}

// await waits until the VM's status is as wished.
func (g *guest) await(ctx context.Context, within time.Duration, what string, done func(rig.VM) bool) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last rig.VM
	err := g.rig.Await(ctx, what, func() (bool, error) {
		vm, err := g.rig.VM(ctx, g.vm)
		if ctx.Err() != nil {
			return false, nil
		}
		last = vm
		return err == nil && done(vm), err
	})
	if err != nil {
		return fmt.Errorf("%w; status was %+v", err, last)
	}
	return nil
}
