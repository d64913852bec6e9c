package stage

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stamp"
)

// unquietDisks are written while they are sealed and while processes are killed.
var unquietDisks = []qemuDisk{
	{"dynamic.vhd", "vpc", "subformat=dynamic,force_size=on", 128 << 20, 0},
	{"half.vhd", "vpc", "", 64 << 20, 512 << 10},
	{"one.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 96 << 20, 0},
	{"eight.vhdx", "vhdx", "subformat=dynamic,block_size=8M", 128 << 20, 0},
}

// leastImageBlock is the smallest block of an image here. A write that crosses it may be two writes to the file, and so be
// torn by a seal as by a power cut.
const leastImageBlock = 512 << 10

// Unquiet has qemu-storage-daemon write stamped blocks to images with a block table, and never lets it come to rest: not for
// a seal, and not when the appliance is killed and the next process takes over, when it is killed with its mount, or when the
// daemon is. Every point is an admissible cut of what was written.
func Unquiet(ctx context.Context, e *Env, r *Report) error {
	return playUnquiet(ctx, e, r, e.count(100, 10))
}

// UnquietSmall is Unquiet for a test.
func UnquietSmall(ctx context.Context, e *Env, r *Report) error { return playUnquiet(ctx, e, r, 4) }

func playUnquiet(ctx context.Context, e *Env, r *Report, kills int) (err error) {
	appliance, _, end, err := e.appliance(ctx, "formats-kills", rig.Options{Keeper: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	u, err := newUnquiet(ctx, e, r, appliance)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, u.leave()) }()
	if err := errors.Join(appliance.Start(ctx), u.work(ctx)); err != nil {
		return err
	}
	if err := u.replicated(ctx); err != nil {
		return err
	}
	for i := range kills {
		if err := u.round(ctx, i); err != nil {
			return fmt.Errorf("kill %d: %w", i+1, err)
		}
	}
	r.Check(u.guest.stop(), "the load after the last kill")
	u.exporter.end(unix.SIGTERM)
	if err := u.atRest(ctx); err != nil {
		return err
	}
	r.Figure("kills", "%d, %v; longest until the next process answers %v", kills, u.ends, u.longest.Round(time.Millisecond))
	return errors.Join(u.checkAll(ctx, mostPoints), appliance.Stop())
}

// unquiet is a VM with such disks.
type unquiet struct {
	*guest
	exporter *exporter
	images   []*qemuDisk
	rng      *rand.Rand
	ends     map[string]int
	longest  time.Duration
}

func newUnquiet(ctx context.Context, e *Env, r *Report, appliance *rig.Rig) (*unquiet, error) {
	g := &guest{env: e, report: r, rig: appliance, vm: formatsVM, scratch: filepath.Join(appliance.Dir, "export"), slack: clockSlack}
	u := &unquiet{guest: g, rng: e.rng(12), ends: map[string]int{}}
	if err := os.MkdirAll(u.store(), 0o700); err != nil {
		return nil, err
	}
	for _, d := range unquietDisks {
		u.images = append(u.images, &d)
		g.disks = append(g.disks, disk{name: d.name, size: d.size})
		if err := d.create(ctx, filepath.Join(u.store(), d.name)); err != nil {
			return nil, err
		}
	}
	u.exporter = newExporter(appliance.Dir, u.images)
	g.at = func(d disk) string { return u.exporter.file(d.name) }
	g.whole = func(d disk) (string, error) { return u.whole(ctx, d) }
	g.load = stamp.Load{Seed: e.Seed, Where: wandering(e.Seed, g.disks), Whole: leastImageBlock / stamp.BlockSize}
	return u, g.begin()
}

// store is where the images are, behind the mount.
func (u *unquiet) store() string { return filepath.Join(u.rig.Source, u.vm) }

// whole has qemu read a disk out of a copy of its image.
func (u *unquiet) whole(ctx context.Context, d disk) (string, error) {
	to := filepath.Join(u.rig.Dir, d.name+".whole")
	for _, im := range u.images {
		if im.name == d.name {
			return to, im.raw(ctx, filepath.Join(u.store(), d.name), to)
		}
	}
	return "", fmt.Errorf("no image %s", d.name)
}

// wanderEvery is after how many writes to a disk the load goes to another place, where blocks are not there yet, for a while.
const (
	wanderEvery  = 200
	wanderBlocks = 2 << 20 / stamp.BlockSize
)

func wandering(seed uint64, disks []disk) func(int) stamp.Span {
	writes := make([]atomic.Uint64, len(disks))
	return func(disk int) stamp.Span {
		turn := writes[disk].Add(1) / wanderEvery
		places := disks[disk].size / stamp.BlockSize / wanderBlocks
		from := rand.New(rand.NewPCG(seed+uint64(disk), turn)).Int64N(places) * wanderBlocks
		return stamp.Span{From: from, To: from + wanderBlocks}
	}
}

// work has the daemon open the images at the mount, and starts the load.
func (u *unquiet) work(ctx context.Context) error {
	if err := u.exporter.start(ctx, u.rig, filepath.Join(u.rig.Mount, u.vm)); err != nil {
		return err
	}
	u.guest.start(ctx)
	return nil
}

// leave ends what may still run.
func (u *unquiet) leave() error {
	err := u.guest.stop()
	u.exporter.end(unix.SIGKILL)
	return err
}

// round waits for a moment of no meaning and kills somebody.
func (u *unquiet) round(ctx context.Context, i int) error {
	if err := u.pause(ctx, time.Duration(u.rng.Int64N(int64(4*time.Second)))); err != nil {
		return fmt.Errorf("the load fails: %w", err)
	}
	kinds := []struct {
		name string
		kill func(context.Context) error
		ask  bool // for a point afterwards
	}{
		{"taken over", u.takenOver, i%checkEvery == 0}, {"taken over", u.takenOver, i%checkEvery == 0},
		{"with its mount", u.withItsMount, true}, {"the writer", u.writer, true},
	}
	kind := kinds[u.rng.IntN(len(kinds))]
	if i < len(kinds) {
		kind = kinds[len(kinds)-1-i] // each at least once
	}
	u.ends[kind.name]++
	u.env.say("kill %d: %s", i+1, kind.name)
	if err := kind.kill(ctx); err != nil {
		return fmt.Errorf("%s: %w", kind.name, err)
	}
	if !kind.ask {
		return nil
	}
	if err := u.pause(ctx, time.Duration(u.rng.Int64N(int64(time.Second)))); err != nil {
		return fmt.Errorf("the load fails: %w", err)
	}
	_, err := u.sync(ctx)
	u.report.Check(err, "after kill %d (%s)", i+1, kind.name)
	return nil
}

// takenOver kills the process that serves; the next one has the mount, and nobody sees an error.
func (u *unquiet) takenOver(ctx context.Context) error {
	pid, began := u.rig.Pid(), time.Now()
	if err := u.rig.Signal(unix.SIGKILL); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	err := u.rig.Followed(ctx, pid)
	u.longest = max(u.longest, time.Since(began))
	return err
}

// withItsMount kills whoever has the mount, so that the load fails and its daemon leaves the images as they are.
func (u *unquiet) withItsMount(ctx context.Context) error {
	pid := u.rig.Pid()
	if err := u.rig.Kill(); err != nil {
		return err
	}
	if err := gone(ctx, u.rig, pid); err != nil {
		return err
	}
	if err := u.fails(); err != nil {
		return err
	}
	return errors.Join(u.rig.Start(ctx), u.work(ctx))
}

// writer kills the daemon; the appliance seals what it left until the next one opens it.
func (u *unquiet) writer(ctx context.Context) error {
	u.exporter.end(unix.SIGKILL)
	if err := u.fails(); err != nil {
		return err
	}
	_, err := u.sync(ctx)
	u.report.Check(err, "of what a killed writer left")
	return u.work(ctx)
}

// fails lets the load end with what it stands on, and begins the next era with what the images hold: all that was answered.
func (u *unquiet) fails() error {
	if err := u.guest.stop(); errors.Is(err, errStuck) {
		return err
	}
	u.exporter.end(unix.SIGKILL)
	images, err := u.readSource()
	if err != nil {
		return err
	}
	all := stamp.Bounds{After: math.MaxInt64, Before: math.MaxInt64}
	u.report.Check(u.log.Check(images, all, nil).Err(), "the images after a kill")
	return u.begin()
}

// atRest makes a point while nothing writes: it is what qemu reads from the images, byte for byte.
func (u *unquiet) atRest(ctx context.Context) error {
	point, err := u.sync(ctx)
	if err != nil {
		return err
	}
	for _, d := range u.images {
		err := d.equal(ctx, filepath.Join(u.store(), d.name), u.rig.Dir, rig.Exported(u.scratch, d.name))
		u.report.Check(err, "at rest: point %s, disk %s", point.ID, d.name)
	}
	return u.rig.Verify(ctx, u.vm, point.ID)
}
