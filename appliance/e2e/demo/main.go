// Command demo runs the main job of the appliance end to end on this machine and
// says what it does: replicate a VM to the Azure emulator while it is written to,
// survive a SIGKILL, lose the host, and bring the VM back from the target alone.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/pageblob/azurite"
)

const (
	vm       = "web01"
	diskSize = 256 << 20 // bytes of each disk
	interval = 5 * time.Second
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	started := time.Now()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
	fmt.Printf("\nThe demo took %s. Everything it made is gone again; your own start is in README.md, Install.\n", time.Since(started).Round(time.Second))
}

// run narrates; each step is one thing an operator would do.
func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return fmt.Errorf("it mounts file systems: run it as root")
	}
	dir, err := os.MkdirTemp("", "vhdrelay-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	say("A target: the Azure emulator (Azurite), in memory.")
	blob, err := azurite.Start(ctx, azurite.Options{})
	if err != nil {
		return err
	}
	defer blob.Close()
	d := &demo{ctx: ctx, dir: dir, url: blob.Endpoint() + "/demo", key: blob.Key()}
	defer d.cleanUp()

	for _, step := range []func() error{d.makeDisks, d.start, d.replicate, d.writeMore, d.crash, d.writeAgain, d.loseHost, d.bringBack} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// makeDisks fills the store: a fixed VHD and a raw disk, each an ext4 full of real files.
func (d *demo) makeDisks() error {
	say("A store with one VM of two disks: os.vhd (fixed VHD) and data.raw, each an ext4 with thousands of files.")
	root, err := exec.CommandContext(d.ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return fmt.Errorf("the demo's files are Go's own sources: %w", err)
	}
	files := filepath.Join(strings.TrimSpace(string(root)), "src")
	if err := os.MkdirAll(d.path("store", vm), 0o700); err != nil {
		return err
	}
	if err := os.Mkdir(d.path("vhd"), 0o700); err != nil {
		return err
	}
	if err := d.runQuiet("qemu-img", "create", "-q", "-f", "vpc", "-o", "subformat=fixed,force_size", d.path("store", vm, "os.vhd"), fmt.Sprint(diskSize)); err != nil {
		return err
	}
	if err := os.Truncate(d.touch("store", vm, "data.raw"), diskSize); err != nil {
		return err
	}
	for disk, tree := range map[string]string{"os.vhd": "cmd", "data.raw": "net"} {
		if err := d.runQuiet("mkfs.ext4", "-q", "-F", "-d", filepath.Join(files, tree), d.path("store", vm, disk), fmt.Sprint(diskSize/1024, "k")); err != nil {
			return err
		}
	}
	return d.writeConfig()
}

func (d *demo) start() error {
	say("The appliance: it serves store/ at vhd/, where the VM opens its disks.")
	if err := d.runShown("check-config"); err != nil {
		return err
	}
	return d.serve()
}

func (d *demo) replicate() error {
	say("Initial replication, then the first recovery point. The disks can be written to meanwhile.")
	return d.runShown("sync", vm, "--wait")
}

// writeMore changes both file systems through the mount, like a guest would.
func (d *demo) writeMore() error {
	say("The VM works: both file systems are mounted over the served disks, files come, change and go.")
	if err := d.work("first"); err != nil {
		return err
	}
	if err := d.runShown("sync", vm, "--wait"); err != nil {
		return err
	}
	if err := d.runShown("status", vm); err != nil {
		return err
	}
	return d.runShown("points", vm)
}

func (d *demo) crash() error {
	say("SIGKILL in the middle of work, and a restart: only the regions that were active are compared, nothing is sent again.")
	if err := d.killAtWork(); err != nil {
		return err
	}
	if err := d.serve(); err != nil {
		return err
	}
	if err := d.runShown("sync", vm, "--wait"); err != nil {
		return err
	}
	return d.runShown("status", vm)
}

func (d *demo) writeAgain() error {
	say("The VM goes on; the last recovery point before the disaster.")
	if err := d.work("second"); err != nil {
		return err
	}
	if err := d.takeInventory(); err != nil {
		return err
	}
	if err := d.runShown("sync", vm, "--wait"); err != nil {
		return err
	}
	return d.report()
}

func (d *demo) loseHost() error {
	say("The host burns down: process, store and state directory are gone.")
	if err := d.kill(); err != nil {
		return err
	}
	return d.destroy()
}

func (d *demo) bringBack() error {
	say("Any machine with the binary and the credential: the newest point comes back as disks.")
	env := "AZURE_STORAGE_KEY=" + d.key
	if err := d.runShownEnv(env, "points", vm, "--target", d.url); err != nil {
		return err
	}
	if err := d.runShownEnv(env, "export", vm, "--point", "latest", "--output", d.path("restored"), "--target", d.url); err != nil {
		return err
	}
	if err := d.runShownEnv(env, "verify", vm, "--target", d.url); err != nil {
		return err
	}
	return d.checkRestored()
}
