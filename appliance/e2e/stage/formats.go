package stage

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// qemuDisks are the formats that qemu writes, at several block sizes. Their sizes are no whole blocks.
var qemuDisks = []qemuDisk{
	{"dynamic.vhd", "vpc", "subformat=dynamic,force_size=on", 33<<20 + 512<<10, 0},
	{"half.vhd", "vpc", "", 20<<20 + 12<<10, 512 << 10},
	{"one.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 21 << 20, 0},
	{"plain.raw", "raw", "", 16<<20 + 4608, 0},
	{"eight.vhdx", "vhdx", "subformat=dynamic,block_size=8M", 45 << 20, 0},
	{"big.vhdx", "vhdx", "subformat=dynamic,block_size=32M", 100 << 20, 0},
	{"fixed.vhdx", "vhdx", "subformat=fixed,block_size=2M", 25 << 20, 0},
}

const formatsVM = "formats"

// formats is the appliance and what is written through it.
type formats struct {
	env    *Env
	rig    *rig.Rig
	report *Report
	rng    *rand.Rand

	resized int // disks
}

// Formats has qemu-io, and qemu-storage-daemon in between, write to images with a block table at the mount, with seals in
// the middle. Each time the writer has ended, the newest point must be what qemu reads from the image; every second time the
// appliance is killed before. Between the writers disks get other sizes.
func Formats(ctx context.Context, e *Env, r *Report) error {
	return playFormats(ctx, e, r, formatsPlan{qemuDisks, e.count(10, 2), 200, 100 << 30, 300})
}

// FormatsSmall is Formats for a test.
func FormatsSmall(ctx context.Context, e *Env, r *Report) error {
	return playFormats(ctx, e, r, formatsPlan{qemuDisks[:4], 3, 70, 2 << 30, 12})
}

// formatsPlan is how much of it.
type formatsPlan struct {
	disks       []qemuDisk
	rounds, ops int
	size        int64 // of a disk with little data, bytes
	data        int   // MiB in it
}

func playFormats(ctx context.Context, e *Env, r *Report, p formatsPlan) (err error) {
	appliance, target, end, err := e.appliance(ctx, "formats", rig.Options{ApplyInterval: 10 * time.Second})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	f := &formats{env: e, rig: appliance, report: r, rng: e.rng(11)}
	for _, d := range []qemuDisk{
		{"large.vhdx", "vhdx", "subformat=dynamic,block_size=1M", p.size, 0},
		{"large.vhd", "vpc", "subformat=dynamic,force_size=on", p.size, 0},
	} {
		if err := f.sparse(ctx, target, &d, p.data); err != nil {
			return fmt.Errorf("%s with little data: %w", d.name, err)
		}
	}
	var disks []*qemuDisk
	for _, d := range p.disks {
		disks = append(disks, &d)
	}
	if err := errors.Join(appliance.Start(ctx), f.create(ctx, disks)); err != nil {
		return err
	}
	for round := range p.rounds {
		if err := f.round(ctx, disks, round, p.ops); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	r.Figure("operations", "%d on each of %d images, %d points equal, %d disks resized", p.rounds*p.ops, len(p.disks), p.rounds, f.resized)
	return appliance.Stop()
}

// sparse runs the appliance over a large dynamic disk with little data, which is all that may be moved.
func (f *formats) sparse(ctx context.Context, target *rig.Target, d *qemuDisk, data int) error {
	vm := "sparse-" + d.name
	path := filepath.Join(f.rig.Source, vm, d.name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(path))
	if err := d.create(ctx, path); err != nil {
		return err
	}
	args := []string{"-f", d.driver, "-t", "unsafe"}
	for i := range int64(data) {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 1M", 1+i%255, i*(d.size/int64(data))>>20<<20))
	}
	if err := command(ctx, "qemu-io", append(args, path)...); err != nil {
		return err
	}
	before, began := sentTo(target), time.Now()
	if err := f.rig.Start(ctx); err != nil {
		return err
	}
	result, err := f.rig.Sync(ctx, vm)
	if err != nil {
		return err
	}
	took := time.Since(began)
	moved, err := movedTo(target, filepath.Join(f.rig.Dir, "replicas", vm, d.name, "replica.vhd"))
	if err != nil {
		return err
	}
	moved -= before
	f.report.Figure(d.name, "%d MiB moved for %d MiB in %d GiB, in %v", moved>>20, data, d.size>>30, took.Round(100*time.Millisecond))
	if data := int64(data) << 20; moved < data || moved > data+sparseOverhead {
		f.report.Fail("%s: %d bytes moved for %d bytes of data", d.name, moved, data)
	}
	if err := f.rig.Verify(ctx, vm, result.Point); err != nil {
		return err
	}
	if _, err := f.rig.Run(ctx, "unprotect", vm, "--yes"); err != nil {
		return err
	}
	return f.rig.Stop()
}

// sentTo is what has gone over the wire so far; nothing does to a directory.
func sentTo(target *rig.Target) int64 {
	if target.Proxy == nil {
		return 0
	}
	return target.Proxy.Sent()
}

// movedTo is what went to the target: over the wire, or in a directory what the replica takes.
func movedTo(target *rig.Target, replica string) (int64, error) {
	if target.Proxy != nil {
		return target.Proxy.Sent(), nil
	}
	return rig.Allocated(replica)
}

func (f *formats) path(name string) string { return filepath.Join(f.rig.Mount, formatsVM, name) }

func (f *formats) create(ctx context.Context, disks []*qemuDisk) error {
	if err := os.Mkdir(f.path(""), 0o755); err != nil {
		return err
	}
	for _, d := range disks {
		if err := d.create(ctx, f.path(d.name)); err != nil {
			return err
		}
	}
	return nil
}

// round writes to all disks, while epochs are sealed, and judges what came of it.
func (f *formats) round(ctx context.Context, disks []*qemuDisk, round, ops int) error {
	for _, d := range disks {
		for part := range 2 {
			if err := f.resize(ctx, d, round); err != nil {
				return fmt.Errorf("resize %s: %w", d.name, err)
			}
			if err := f.write(ctx, d, ops/2, part == 1 && round%2 == 1); err != nil {
				return err
			}
			if _, err := f.rig.Run(ctx, "sync", formatsVM); err != nil && round > 0 {
				return err
			}
		}
	}
	if round%2 == 1 {
		if err := errors.Join(f.rig.Kill(), f.rig.Start(ctx)); err != nil {
			return err
		}
	}
	return f.judge(ctx, disks)
}

// resize gives a disk another size, now and then; the first round is initial replication.
func (f *formats) resize(ctx context.Context, d *qemuDisk, round int) error {
	if round == 0 || f.rng.IntN(3) != 0 {
		return nil
	}
	f.resized++
	return d.resize(ctx, f.path(d.name), f.another(d))
}

// another is another size for a disk, in whole sectors: larger, or of a raw one also smaller.
func (f *formats) another(d *qemuDisk) int64 {
	n := (f.rng.Int64N(2<<20/sectorSize) + 1) * sectorSize
	if d.driver == "raw" && f.rng.IntN(2) == 0 {
		return d.size - n
	}
	return d.size + n
}

// write has qemu do random operations, itself or through a daemon's NBD export, while the appliance seals.
func (f *formats) write(ctx context.Context, d *qemuDisk, ops int, daemon bool) error {
	var args []string
	if daemon {
		socket := filepath.Join(f.rig.Dir, "nbd.sock")
		stop, err := f.daemon(ctx, d, socket)
		if err != nil {
			return err
		}
		defer stop()
		args = []string{"-f", "raw", "-d", "unmap"}
		args = append(f.operations(args, d.size, ops), "nbd+unix:///d?socket="+socket)
	} else {
		cache := "writeback"
		if d.driver != "raw" && f.rng.IntN(2) == 0 { // a raw image of this size has no whole blocks for O_DIRECT
			cache = "none"
		}
		args = append(f.operations([]string{"-f", d.driver, "-d", "unmap", "-t", cache}, d.size, ops), f.path(d.name))
	}
	sealed := make(chan error, 1)
	go func() { // in the middle: such an epoch may be a point or not
		_, err := f.rig.Run(ctx, "sync", formatsVM)
		sealed <- err
	}()
	err := command(ctx, "qemu-io", args...)
	<-sealed
	return err
}

// operations are qemu-io's, in whole sectors.
func (f *formats) operations(args []string, size int64, ops int) []string {
	for range ops {
		n := (f.rng.Int64N(128) + 1) * 512
		if f.rng.IntN(6) == 0 {
			n = (f.rng.Int64N(6000) + 1) * 512
		}
		off := f.rng.Int64N((size-n)/512) * 512
		command := fmt.Sprintf("write -q -P %d %d %d", f.rng.IntN(255)+1, off, n)
		switch f.rng.IntN(10) {
		case 0:
			command = fmt.Sprintf("write -q -z %d %d", off, n)
		case 1:
			command = fmt.Sprintf("discard -q %d %d", off, n)
		case 2:
			command = fmt.Sprintf("write -q -P 0 %d %d", off, n)
		case 3:
			command = "flush"
		}
		args = append(args, "-c", command)
	}
	return args
}

// daemon exports a disk; stop ends it. A raw disk may get another size before, while the daemon has it open.
func (f *formats) daemon(ctx context.Context, d *qemuDisk, socket string) (stop func(), err error) {
	monitor := filepath.Join(f.rig.Dir, "qmp.sock")
	for _, s := range []string{socket, monitor} {
		if err := os.Remove(s); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	cmd := exec.CommandContext(ctx, "qemu-storage-daemon", "--blockdev", d.blockdev("d", f.path(d.name)),
		"--chardev", "socket,id=c,server=on,wait=off,path="+monitor, "--monitor", "chardev=c", "--nbd-server", "addr.type=unix,addr.path="+socket)
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it says that it was interrupted
	}
	m, err := rig.DialMonitor(ctx, monitor)
	if err == nil && d.driver == "raw" {
		f.resized++
		err = d.resizeLive(m, "d", f.another(d))
	}
	if err == nil {
		err = errors.Join(m.Do("block-export-add", map[string]any{"type": "nbd", "id": "d", "node-name": "d", "name": "d", "writable": true}), m.Close())
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// judge makes a point and compares its disks with what qemu reads from the images.
func (f *formats) judge(ctx context.Context, disks []*qemuDisk) error {
	result, err := f.rig.Sync(ctx, formatsVM)
	if err != nil {
		return err
	}
	dir := filepath.Join(f.rig.Dir, "export")
	if err := f.rig.Export(ctx, formatsVM, result.Point, dir); err != nil {
		return err
	}
	for _, d := range disks {
		err := d.equal(ctx, filepath.Join(f.rig.Source, formatsVM, d.name), f.rig.Dir, rig.Exported(dir, d.name))
		f.report.Check(err, "point %s, disk %s", result.Point, d.name)
	}
	return f.rig.Verify(ctx, formatsVM, result.Point)
}
