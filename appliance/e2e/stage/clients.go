package stage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// client is a program, or what one does by habit, that works with disks at the mount. What it leaves there is compared
// with the newest point.
type client struct {
	name  string   // of its VM as well
	tools []string // COMMAND or COMMAND:PACKAGE, where Debian's package is not named like the command
	long  bool     // not in Small
	run   func(x *clients, ctx context.Context) error
}

// allClients are in the README's table, in this order.
var allClients = []client{
	{"qemu-io", []string{"qemu-io:qemu-utils"}, false, scripted(qemuIO)},
	{"qemu-img", []string{"qemu-img:qemu-utils"}, true, scripted(qemuImg)},
	{"qemu-system", []string{"qemu-system-x86_64:qemu-system-x86"}, false, scripted(qemuSystem)},
	{"storage-daemon", []string{"qemu-storage-daemon:qemu-system-common", "qemu-io:qemu-utils"}, true, scripted(storageDaemon)},
	{"loop", []string{"losetup:util-linux", "fstrim:util-linux", "mkfs.ext4:e2fsprogs"}, true, (*clients).loop},
	{"copies", []string{"fallocate:util-linux", "tar"}, false, scripted(copies)},
	{"rsync", []string{"rsync"}, true, scripted(rsync)},
	{"libvirt", []string{"setpriv:util-linux", "setfattr:attr", "qemu-io:qemu-utils"}, false, (*clients).libvirt},
	{"moved-in", []string{"qemu-io:qemu-utils"}, false, (*clients).movedIn},
	{"samba", []string{"smbd:samba", "smbclient"}, true, (*clients).samba},
	{"handles", nil, false, (*clients).handles},
}

// clientTimeout is for one client; each takes seconds.
const clientTimeout = 2 * time.Minute

// Clients lets programs that exist work at the mount, each with a VM of its own.
func Clients(ctx context.Context, e *Env, r *Report) error { return playClients(ctx, e, r, true) }

// ClientsSmall is Clients for a test: those that every machine has the tools for.
func ClientsSmall(ctx context.Context, e *Env, r *Report) error { return playClients(ctx, e, r, false) }

// clients is the appliance and the client that has its turn.
type clients struct {
	client
	env *Env
	rig *rig.Rig
}

// playClients seals only when it is asked to: what a point moved is then what its client did.
func playClients(ctx context.Context, e *Env, r *Report, all bool) (err error) {
	appliance, _, end, err := e.appliance(ctx, "clients", rig.Options{Interval: time.Hour})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	if err := appliance.Start(ctx); err != nil {
		return err
	}
	for _, c := range allClients {
		if c.long && !all {
			continue
		}
		x := &clients{client: c, env: e, rig: appliance}
		x.turn(ctx, r)
	}
	return appliance.Stop()
}

// turn is one client's.
func (x *clients) turn(ctx context.Context, r *Report) {
	if lacking := x.lacking(); len(lacking) > 0 {
		x.env.say("client %s is left out: apt-get install %s", x.name, strings.Join(lacking, " "))
		r.Figure(x.name, "left out, not installed: %s", strings.Join(lacking, " "))
		return
	}
	ctx, cancel := context.WithTimeout(ctx, clientTimeout)
	defer cancel()
	began := time.Now()
	err := os.MkdirAll(x.scratch(), 0o700)
	if err == nil {
		err = os.Mkdir(x.dir(), 0o755)
	}
	if err == nil {
		err = x.run(x, ctx)
	}
	if !r.Check(err, "client %s", x.name) {
		return
	}
	point, err := x.judge(ctx)
	if r.Check(err, "client %s: the newest point", x.name) {
		r.Figure(x.name, "point %s is equal, %v", point, time.Since(began).Round(100*time.Millisecond))
	}
}

// lacking are the packages of the commands that are not there.
func (x *clients) lacking() []string {
	var packages []string
	for _, tool := range x.tools {
		name, pkg, ok := strings.Cut(tool, ":")
		if !ok {
			pkg = name
		}
		if _, err := exec.LookPath(name); err != nil {
			packages = append(packages, pkg)
		}
	}
	return packages
}

func (x *clients) dir() string     { return filepath.Join(x.rig.Mount, x.name) }
func (x *clients) source() string  { return filepath.Join(x.rig.Source, x.name) }
func (x *clients) scratch() string { return filepath.Join(x.rig.Dir, "scratch", x.name) }
func (x *clients) export() string  { return filepath.Join(x.rig.Dir, "export", x.name) }

// scripted is a client that is a shell script, run twice: the first time, ROUND=1, makes the disks. Only the second time,
// when they are replicated, a change that was not tracked would be missing from the point.
func scripted(script string) func(*clients, context.Context) error {
	return func(x *clients, ctx context.Context) error {
		if err := x.script(ctx, script, "ROUND=1"); err != nil {
			return err
		}
		if _, err := x.judge(ctx); err != nil {
			return err
		}
		return x.script(ctx, script, "ROUND=2")
	}
}

// script runs a shell script in the VM's directory at the mount, which must end well. TMP is an own directory elsewhere.
func (x *clients) script(ctx context.Context, text string, env ...string) error {
	cmd := exec.CommandContext(ctx, "sh", "-eu")
	cmd.Dir = x.dir()
	cmd.Stdin = strings.NewReader("set -x\n" + text)
	cmd.Env = append(append(os.Environ(), "TMP="+x.scratch(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin"), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// judge makes a point and compares its disks with the files in the store and at the mount.
func (x *clients) judge(ctx context.Context) (string, error) {
	result, err := x.rig.Sync(ctx, x.name)
	if err != nil {
		return "", err
	}
	if err := x.rig.Export(ctx, x.name, result.Point, x.export()); err != nil {
		return "", err
	}
	files, err := os.ReadDir(x.source())
	if err != nil {
		return "", err
	}
	disks := 0
	for _, f := range files {
		if ext := filepath.Ext(f.Name()); ext != ".raw" && ext != ".vhd" {
			continue
		}
		disks++
		if err := x.same(ctx, f.Name()); err != nil {
			return "", err
		}
	}
	if disks == 0 {
		return "", errors.New("the client left no disk")
	}
	return result.Point, nil
}

// same compares a disk at three places. A fixed VHD is its data and a footer.
func (x *clients) same(ctx context.Context, name string) error {
	source := filepath.Join(x.source(), name)
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	size := info.Size()
	if filepath.Ext(name) == ".vhd" {
		size -= footer
	}
	exported, err := os.Stat(rig.Exported(x.export(), name))
	if err != nil {
		return err
	}
	if exported.Size() < size {
		return fmt.Errorf("%s: the point has %d bytes, the store %d", name, exported.Size(), size)
	}
	n := fmt.Sprint(size)
	return errors.Join(
		command(ctx, "cmp", "-n", n, source, rig.Exported(x.export(), name)),
		command(ctx, "cmp", source, filepath.Join(x.dir(), name)))
}
