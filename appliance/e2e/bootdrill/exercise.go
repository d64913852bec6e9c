package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/stage"
)

// drill says what a guest's disk is and what is done to it.
type drill struct {
	name, about string
	image       string   // the disk in the store
	format      string   // qemu's name of its format
	convert     []string // qemu-img's options for it
	size        int64    // of the virtual disk in bytes, whole MiB
	packages    string   // for the guest to install
	sources     string   // for the guest to unpack
	journal     string   // of the database
	interval    bool     // the newest point is to be one that nobody asked for
	handover    bool     // the appliance is killed, again and again, instead of the host
}

var (
	dynamicVHD  = []string{"-O", "vpc", "-o", "subformat=dynamic,force_size=on"}
	dynamicVHDX = []string{"-O", "vhdx", "-o", "subformat=dynamic"}
)

var drills = []drill{
	{name: "vhd", about: "a Debian on a dynamic VHD installs, counts in a database, loses its host: the point of a sync boots", image: "os.vhd", format: "vpc",
		convert: dynamicVHD, size: 1536 << 20, packages: "sqlite3", journal: "delete"},
	{name: "vhdx", about: "the same on a dynamic VHDX: an interval's point boots", image: "os.vhdx", format: "vhdx",
		convert: dynamicVHDX, size: 1536 << 20, packages: "sqlite3", journal: "wal", interval: true},
	{name: "untar", about: "a Debian on a dynamic VHD untars and checksums a kernel's source while the appliance is killed again and again", image: "os.vhd", format: "vpc",
		convert: dynamicVHD, size: 4096 << 20, packages: "xz-utils", sources: "linux-source-6.1", handover: true},
}

// vm is the guest's directory in the store.
const vm = "debian"

// exercise is one run of a drill.
type exercise struct {
	options
	drill
	report    *stage.Report
	dir       string
	target    *rig.Target
	appliance *rig.Rig
	machine   *guest.Machine
	acks      *acks
}

// run makes all of it, does the drill, and ends what it started. What a drill that passed leaves is removed.
func (x *exercise) run(ctx context.Context) (err error) {
	if err := clean(x.dir); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, x.close())
		if err == nil && len(x.report.Failures()) == 0 {
			err = clean(x.dir)
		}
	}()
	if err := x.setup(ctx); err != nil {
		return err
	}
	if err := x.boot(ctx); err != nil {
		return err
	}
	if x.handover {
		return x.untar(ctx)
	}
	return x.loseTheHost(ctx)
}

// clean removes a drill's directory with what an interrupted run left mounted in it.
func clean(dir string) error {
	mount := filepath.Join(dir, "mount")
	for unix.Unmount(mount, unix.MNT_DETACH) == nil {
	}
	if err := rig.Thaw(mount); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

func (x *exercise) close() (err error) {
	if x.machine != nil {
		err = x.machine.Close() // first, so that nobody waits for the mount
	}
	if x.appliance != nil {
		err = errors.Join(err, x.appliance.Close())
	}
	if x.target != nil {
		err = errors.Join(err, x.target.Close())
	}
	return err
}

// setup makes target, store and appliance, which begins to replicate while nobody uses the disk yet.
func (x *exercise) setup(ctx context.Context) (err error) {
	if x.azure {
		x.target, err = rig.AzureTarget(ctx, filepath.Join(x.dir, "azurite"))
	} else {
		x.target, err = rig.DirTarget(filepath.Join(x.dir, "replicas"))
	}
	if err != nil {
		return err
	}
	o := rig.Options{Dir: x.dir, Binary: x.binary, URL: x.target.URL, Key: x.target.Key, Keeper: x.handover && x.spoil != "alone"}
	if x.appliance, err = rig.New(o); err != nil {
		return err
	}
	if err := x.makeDisk(ctx, filepath.Join(x.appliance.Source, vm, x.image)); err != nil {
		return err
	}
	return x.appliance.Start(ctx)
}

func (x *exercise) makeDisk(ctx context.Context, to string) error {
	image, err := guest.Cached(ctx, x.cache, os.Stdout)
	if err != nil {
		return err
	}
	module, err := guest.Module()
	if err != nil {
		return err
	}
	raw := filepath.Join(x.dir, "disk.raw")
	b := guest.Bootable{Image: image, Size: x.size, Packages: x.packages, Sources: x.sources}
	if err := errors.Join(b.Make(ctx, module, raw), os.MkdirAll(filepath.Dir(to), 0o700)); err != nil {
		return err
	}
	if err := command(ctx, "qemu-img", append(append([]string{"convert", "-f", "raw"}, x.convert...), raw, to)...); err != nil {
		return err
	}
	return os.Remove(raw)
}

// boot starts the guest at the mount.
func (x *exercise) boot(ctx context.Context) (err error) {
	began := time.Now()
	x.acks = newAcks()
	d := guest.Drive{Dir: filepath.Join(x.dir, "machine"), File: filepath.Join(x.appliance.Mount, vm, x.image), Format: x.format, Heard: x.acks.hear}
	x.machine, err = d.Start(ctx)
	if err == nil {
		x.say("the guest is up after %v", time.Since(began).Round(time.Second))
		_, err = x.machine.Shell(ctx, onOwnDisk)
	}
	return err
}

// onOwnDisk wants the root where the boot loader said, and nothing else to be there.
const onOwnDisk = `test "$(findmnt -n -o SOURCE /)" = /dev/vda1
test "$(lsblk -n -d -o NAME | grep -c -v -e zram -e loop)" = 1`

func (x *exercise) say(format string, args ...any) {
	fmt.Printf("%s %s\n", time.Now().UTC().Format(time.TimeOnly), fmt.Sprintf(format, args...))
}

// command runs a tool; what it printed is in the error.
func command(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w\n%s", name, args, err, out)
	}
	return nil
}

// await waits until the VM's status is as wished.
func (x *exercise) await(ctx context.Context, what string, done func(rig.VM) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return x.appliance.Await(ctx, what, func() (bool, error) {
		now, err := x.appliance.VM(ctx, vm)
		return err == nil && done(now), nil
	})
}

// patience is for what an emulated machine, or an appliance beside one, takes long for.
const patience = 10 * time.Minute
