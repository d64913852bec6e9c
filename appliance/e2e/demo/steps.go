package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// readyTimeout bounds every wait of the demo for something that takes a moment.
const readyTimeout = 30 * time.Second

// demo is the machine that is lost: its disks, its appliance, and the inventory
// of its files, which is kept outside.
type demo struct {
	ctx       context.Context
	dir       string
	url, key  string
	server    *exec.Cmd
	exited    chan struct{}
	mounted   []string
	inventory map[string]map[string][sha256.Size]byte // by disk, then path
}

func say(text string) { fmt.Printf("\n\033[1m── %s\033[0m\n", text) }

func (d *demo) path(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// touch makes an empty file and returns its path; the error comes with the next use.
func (d *demo) touch(parts ...string) string {
	p := d.path(parts...)
	_ = os.WriteFile(p, nil, 0o600)
	return p
}

func (d *demo) writeConfig() error {
	if err := os.WriteFile(d.path("key"), []byte(d.key), 0o600); err != nil {
		return err
	}
	config := fmt.Sprintf(`state_dir: %[1]s/state
control_socket: %[1]s/control.sock
stores:
  - name: main
    source: %[1]s/store
    mount: %[1]s/vhd
target:
  url: %[2]s
  credentials: {type: shared_key, file: %[1]s/key}
replication: {interval: %[3]s, apply_interval: 15s}
metrics_listen: ""
`, d.dir, d.url, interval)
	return os.WriteFile(d.path("vhdrelay.yaml"), []byte(config), 0o600)
}

// binary is what `make build` made.
func binary() string { return filepath.Join("bin", "vhdrelay") }

func (d *demo) runQuiet(name string, args ...string) error {
	out, err := exec.CommandContext(d.ctx, name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// runShown shows a command of the operator, and its output.
func (d *demo) runShown(args ...string) error {
	fmt.Printf("$ vhdrelay %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(d.ctx, binary(), append(args, "--config", d.path("vhdrelay.yaml"))...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// runShownEnv is runShown on another machine: no config, a credential in the environment.
func (d *demo) runShownEnv(env string, args ...string) error {
	fmt.Printf("$ AZURE_STORAGE_KEY=… vhdrelay %s\n", strings.Join(args, " "))
	cmd := exec.CommandContext(d.ctx, binary(), args...)
	cmd.Env = append(os.Environ(), env)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// serve starts the appliance and returns when it answers.
func (d *demo) serve() error {
	fmt.Println("$ vhdrelay serve &")
	log, err := os.OpenFile(d.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	d.server = exec.Command(binary(), "serve", "--config", d.path("vhdrelay.yaml"))
	d.server.Stdout, d.server.Stderr = log, log
	d.server.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := d.server.Start(); err != nil {
		return err
	}
	d.exited = make(chan struct{})
	go func() { _ = d.server.Wait(); close(d.exited) }()
	return d.await("the appliance", func() bool {
		_, err := os.Stat(d.path("vhd", vm, "os.vhd"))
		return err == nil && d.status() != nil
	})
}

func (d *demo) await(what string, ready func() bool) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(readyTimeout); time.Now().Before(deadline); {
		if ready() {
			return nil
		}
		select {
		case <-d.ctx.Done():
			return d.ctx.Err()
		case <-d.exited:
			log, _ := os.ReadFile(d.path("log"))
			return fmt.Errorf("%s has ended:\n%s", what, log)
		case <-tick.C:
		}
	}
	log, _ := os.ReadFile(d.path("log"))
	return fmt.Errorf("%s is not ready after %s:\n%s", what, readyTimeout, log)
}

// status is nil while the appliance does not answer.
func (d *demo) status() *control.VM {
	out, err := exec.CommandContext(d.ctx, binary(), "status", vm, "--json", "--config", d.path("vhdrelay.yaml")).Output()
	var s control.Status
	if err != nil || json.Unmarshal(out, &s) != nil || len(s.VMs) == 0 {
		return nil
	}
	return &s.VMs[0]
}

func (d *demo) kill() error {
	if d.server == nil {
		return nil
	}
	err := d.server.Process.Kill()
	<-d.exited
	d.server = nil
	for len(d.mounted) > 0 {
		d.unmount()
	}
	return errors.Join(err, unix.Unmount(d.path("vhd"), unix.MNT_DETACH))
}

// work mounts both file systems over the served disks and changes them.
func (d *demo) work(round string) error {
	for _, disk := range []string{"os.vhd", "data.raw"} {
		if err := d.mount(d.path("vhd", vm, disk)); err != nil {
			return err
		}
		if err := change(d.mounted[len(d.mounted)-1], round); err != nil {
			return err
		}
	}
	for len(d.mounted) > 0 {
		d.unmount()
	}
	return nil
}

func (d *demo) mount(image string) error {
	at := d.path("guest-" + filepath.Base(image))
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	if err := d.runQuiet("mount", "-o", "loop", image, at); err != nil {
		return err
	}
	d.mounted = append(d.mounted, at)
	return nil
}

func (d *demo) unmount() {
	last := len(d.mounted) - 1
	if exec.Command("umount", d.mounted[last]).Run() != nil {
		_ = exec.Command("umount", "-l", d.mounted[last]).Run() // its disk is gone: nothing can be written back
	}
	d.mounted = d.mounted[:last]
}

// change adds, rewrites and removes files.
func change(root, round string) error {
	r := rand.New(rand.NewPCG(1, uint64(len(round))))
	var files []string
	err := filepath.WalkDir(root, func(path string, e iofs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for i := range 300 {
		for j := range block {
			block[j] = byte(r.Uint32())
		}
		victim := files[r.IntN(len(files))]
		switch i % 3 {
		case 0:
			err = os.WriteFile(filepath.Join(root, fmt.Sprintf("%s-%d", round, i)), block[:r.IntN(len(block))], 0o600)
		case 1:
			err = os.WriteFile(victim, block[:r.IntN(4096)], 0o600)
		case 2:
			err = os.Remove(victim)
		}
		if err != nil && !errors.Is(err, iofs.ErrNotExist) {
			return err
		}
	}
	unix.Sync()
	return nil
}

// killAtWork kills the appliance while a guest writes to a third of a disk.
func (d *demo) killAtWork() error {
	disk, err := os.OpenFile(d.path("vhd", vm, "data.raw"), os.O_WRONLY|unix.O_DSYNC, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	old := make([]byte, 1<<20)
	source, err := os.Open(d.path("store", vm, "data.raw"))
	if err != nil {
		return err
	}
	defer source.Close()
	for i := range int64(40) { // the same bytes: the file system stays whole, the appliance cannot know
		if _, err := source.ReadAt(old, i<<20); err != nil {
			return err
		}
		if _, err := disk.WriteAt(old, i<<20); err != nil {
			return err
		}
	}
	fmt.Println("$ kill -9 $(pidof vhdrelay)")
	return d.kill()
}

// takeInventory notes every file's checksum, outside of the machine.
func (d *demo) takeInventory() (err error) {
	d.inventory = map[string]map[string][sha256.Size]byte{}
	for _, disk := range []string{"os.vhd", "data.raw"} {
		if err := d.mount(d.path("vhd", vm, disk)); err != nil {
			return err
		}
		d.inventory[disk], err = inventory(d.mounted[len(d.mounted)-1])
		if err != nil {
			return err
		}
		d.unmount()
	}
	return nil
}

func inventory(root string) (map[string][sha256.Size]byte, error) {
	files := map[string][sha256.Size]byte{}
	err := filepath.WalkDir(root, func(path string, e iofs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, root)] = sha256.Sum256(data)
		return err
	})
	return files, err
}

// report prints what replication cost.
func (d *demo) report() error {
	out, err := exec.CommandContext(d.ctx, binary(), "points", vm, "--json", "--config", d.path("vhdrelay.yaml")).Output()
	if err != nil {
		return err
	}
	var points control.Points
	if err := json.Unmarshal(out, &points); err != nil {
		return err
	}
	var changed, stored int64
	for _, p := range points.Points {
		for _, disk := range p.Disks {
			changed += disk.ChangedBytes
			stored += disk.StoredBytes
		}
	}
	s := d.status()
	if s == nil || s.DurableRPOSeconds == nil {
		return errors.New("the appliance reports no recovery point")
	}
	fmt.Printf("RPO %.1f s; %d points carry %.1f MiB of changes in %.1f MiB shipped (initial replication aside).\n",
		*s.DurableRPOSeconds, len(points.Points), float64(changed)/(1<<20), float64(stored)/(1<<20))
	return nil
}

func (d *demo) destroy() error {
	var errs []error
	for _, gone := range []string{"store", "state", "vhd", "vhdrelay.yaml", "key"} {
		unseal(d.path(gone))
		errs = append(errs, os.RemoveAll(d.path(gone)))
	}
	return errors.Join(errs...)
}

// unseal takes the immutable flag off the closed mount point.
func unseal(path string) {
	if filepath.Base(path) == "vhd" {
		_ = exec.Command("chattr", "-i", path).Run()
	}
}

// checkRestored proves file systems and every file.
func (d *demo) checkRestored() error {
	total := 0
	for disk, want := range d.inventory {
		restored := d.path("restored", strings.TrimSuffix(disk, filepath.Ext(disk))+".vhd")
		if err := d.runQuiet("e2fsck", "-fn", restored); err != nil {
			return fmt.Errorf("%s: file system: %w", disk, err)
		}
		if err := d.mount(restored); err != nil {
			return err
		}
		got, err := inventory(d.mounted[len(d.mounted)-1])
		d.unmount()
		if err != nil {
			return err
		}
		if err := same(want, got); err != nil {
			return fmt.Errorf("%s: %w", disk, err)
		}
		total += len(want)
	}
	fmt.Printf("Both file systems are clean, all %d files are there, byte for byte.\n", total)
	return nil
}

func same(want, got map[string][sha256.Size]byte) error {
	for path, sum := range want {
		other, ok := got[path]
		if !ok {
			return fmt.Errorf("%s is missing", path)
		}
		if !bytes.Equal(sum[:], other[:]) {
			return fmt.Errorf("%s differs", path)
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d files came back, %d were there", len(got), len(want))
	}
	return nil
}

func (d *demo) cleanUp() {
	for len(d.mounted) > 0 {
		d.unmount()
	}
	if d.server != nil {
		_ = d.kill()
	}
	unseal(d.path("vhd"))
}
