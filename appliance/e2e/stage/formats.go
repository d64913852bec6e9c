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

// translatedDisk is an image with a block table that qemu makes and writes at the mount.
type translatedDisk struct {
	name, driver, options string
	size                  int64
}

// translatedDisks are the formats that qemu writes, at several block sizes. Their sizes are no whole blocks.
var translatedDisks = []translatedDisk{
	{"dynamic.vhd", "vpc", "subformat=dynamic,force_size=on", 33<<20 + 512<<10},
	{"one.vhdx", "vhdx", "subformat=dynamic,block_size=1M", 21 << 20},
	{"eight.vhdx", "vhdx", "subformat=dynamic,block_size=8M", 45 << 20},
	{"big.vhdx", "vhdx", "subformat=dynamic,block_size=32M", 100 << 20},
	{"fixed.vhdx", "vhdx", "subformat=fixed,block_size=2M", 25 << 20},
}

const formatsVM = "formats"

// formats is the appliance and what is written through it.
type formats struct {
	env    *Env
	rig    *rig.Rig
	report *Report
	rng    *rand.Rand
}

// Formats has qemu-io, and qemu-storage-daemon in between, write to images with a block table at the mount, with seals in
// the middle. Each time the writer has ended, the newest point must be what qemu reads from the image; every second time the
// appliance is killed before.
func Formats(ctx context.Context, e *Env, r *Report) error {
	return playFormats(ctx, e, r, formatsPlan{translatedDisks, e.count(10, 2), 200, 100 << 30, 300})
}

// FormatsSmall is Formats for a test.
func FormatsSmall(ctx context.Context, e *Env, r *Report) error {
	return playFormats(ctx, e, r, formatsPlan{translatedDisks[:3], 3, 70, 2 << 30, 12})
}

// formatsPlan is how much of it.
type formatsPlan struct {
	disks       []translatedDisk
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
	if err := f.sparse(ctx, target, p); err != nil {
		return fmt.Errorf("a disk with little data: %w", err)
	}
	if err := f.create(ctx, p.disks); err != nil {
		return err
	}
	for round := range p.rounds {
		if err := f.round(ctx, p.disks, round, p.ops); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
	}
	r.Figure("operations", "%d on each of %d images, %d points equal", p.rounds*p.ops, len(p.disks), p.rounds)
	return appliance.Stop()
}

// sparse starts the appliance over a large dynamic disk with little data, which is all that may be moved.
func (f *formats) sparse(ctx context.Context, target *rig.Target, p formatsPlan) error {
	const vm, name = "sparse", "large.vhdx"
	path := filepath.Join(f.rig.Source, vm, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := command(ctx, "qemu-img", "create", "-q", "-f", "vhdx", "-o", "subformat=dynamic,block_size=1M", path, fmt.Sprint(p.size)); err != nil {
		return err
	}
	args := []string{"-f", "vhdx", "-t", "unsafe"}
	for i := range int64(p.data) {
		args = append(args, "-c", fmt.Sprintf("write -q -P %d %d 1M", 1+i%255, i*(p.size/int64(p.data))>>20<<20))
	}
	if err := command(ctx, "qemu-io", append(args, path)...); err != nil {
		return err
	}
	began := time.Now()
	if err := f.rig.Start(ctx); err != nil {
		return err
	}
	result, err := f.rig.Sync(ctx, vm)
	if err != nil {
		return err
	}
	took := time.Since(began)
	moved, err := movedTo(target, filepath.Join(f.rig.Dir, "replicas", vm, name, "replica.vhd"))
	if err != nil {
		return err
	}
	f.report.Figure("little data", "%d MiB moved for %d MiB in %d GiB, in %v", moved>>20, p.data, p.size>>30, took.Round(100*time.Millisecond))
	if data := int64(p.data) << 20; moved < data || moved > data+sparseOverhead {
		f.report.Fail("%d bytes moved for %d bytes of data", moved, data)
	}
	if err := f.rig.Verify(ctx, vm, result.Point); err != nil {
		return err
	}
	_, err = f.rig.Run(ctx, "unprotect", vm, "--yes")
	return err
}

// movedTo is what went to the target: over the wire, or in a directory what the replica takes.
func movedTo(target *rig.Target, replica string) (int64, error) {
	if target.Proxy != nil {
		return target.Proxy.Sent(), nil
	}
	return rig.Allocated(replica)
}

func (f *formats) path(name string) string { return filepath.Join(f.rig.Mount, formatsVM, name) }

func (f *formats) create(ctx context.Context, disks []translatedDisk) error {
	if err := os.Mkdir(f.path(""), 0o755); err != nil {
		return err
	}
	for _, d := range disks {
		if err := command(ctx, "qemu-img", "create", "-q", "-f", d.driver, "-o", d.options, f.path(d.name), fmt.Sprint(d.size)); err != nil {
			return err
		}
	}
	return nil
}

// round writes to all disks, while epochs are sealed, and judges what came of it.
func (f *formats) round(ctx context.Context, disks []translatedDisk, round, ops int) error {
	for _, d := range disks {
		for part := range 2 {
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

// write has qemu do random operations, itself or through a daemon's NBD export, while the appliance seals.
func (f *formats) write(ctx context.Context, d translatedDisk, ops int, daemon bool) error {
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
		args = append(f.operations([]string{"-f", d.driver, "-d", "unmap", "-t", []string{"writeback", "none"}[f.rng.IntN(2)]}, d.size, ops), f.path(d.name))
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

// daemon exports a disk; stop ends it.
func (f *formats) daemon(ctx context.Context, d translatedDisk, socket string) (stop func(), err error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "qemu-storage-daemon", "--blockdev",
		fmt.Sprintf("driver=%s,node-name=d,discard=unmap,file.driver=file,file.filename=%s", d.driver, f.path(d.name)),
		"--nbd-server", "addr.type=unix,addr.path="+socket, "--export", "type=nbd,id=d,node-name=d,name=d,writable=on")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait() // it says that it was interrupted
	}
	err = f.rig.Await(ctx, "the export of "+d.name, func() (bool, error) {
		_, err := os.Stat(socket)
		return err == nil, nil
	})
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// judge makes a point and compares its disks with what qemu reads from the images.
func (f *formats) judge(ctx context.Context, disks []translatedDisk) error {
	result, err := f.rig.Sync(ctx, formatsVM)
	if err != nil {
		return err
	}
	dir := filepath.Join(f.rig.Dir, "export")
	if err := f.rig.Export(ctx, formatsVM, result.Point, dir); err != nil {
		return err
	}
	for _, d := range disks {
		copied := filepath.Join(f.rig.Dir, d.name)
		if err := command(ctx, "cp", "--sparse=always", filepath.Join(f.rig.Source, formatsVM, d.name), copied); err != nil {
			return err
		}
		exported := rig.Exported(dir, d.name)
		err := command(ctx, "qemu-img", "compare", "-f", d.driver, "-F", "raw", copied, exported)
		info, statErr := os.Stat(exported)
		if err = errors.Join(err, statErr); err == nil && info.Size() != d.size { // compare takes zeros for no difference
			err = fmt.Errorf("the disk has %d bytes, exported are %d", d.size, info.Size())
		}
		f.report.Check(err, "point %s, disk %s", result.Point, d.name)
	}
	return f.rig.Verify(ctx, formatsVM, result.Point)
}
