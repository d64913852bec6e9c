package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
)

func (t *test) stop(ctx context.Context) error {
	began := time.Now()
	if _, err := t.Run(ctx, "systemctl", "stop", "vhdrelay"); err != nil {
		return err
	}
	fmt.Printf("     stopped after %v\n", time.Since(began).Round(time.Millisecond))
	result, err := t.property(ctx, "Result")
	_, err2 := t.Shell(ctx, `if mountpoint -q /vhd; then echo "it is mounted"; exit 1; fi
	if touch /vhd/x 2>/dev/null; then echo "one can write below the mount"; exit 1; fi
	vhdrelay journal check`)
	return errors.Join(err, err2, want("the result", result, "success"))
}

// write changes a little of the disk, as a guest does, and says whether it was answered.
const write = `qemu-io -f raw -t none -c "write -P 0x11 2M 64k" /vhd/web01/os.raw`

// suspect is what the last start found suspect, in bytes.
func (t *test) suspect(ctx context.Context) (string, error) {
	out, err := t.Shell(ctx, `vhdrelay status --json | sed -n 's/.*"suspect_bytes": \([0-9]*\).*/\1/p' | head -n 1`)
	return strings.TrimSpace(out), err
}

func (t *test) restart(ctx context.Context) error {
	if _, err := t.Shell(ctx, "systemctl start vhdrelay && "+write+" && systemctl restart vhdrelay && "+write); err != nil {
		return err
	}
	bytes, err := t.suspect(ctx)
	return errors.Join(err, want("what is suspect", bytes, "0"))
}

// killed wants the mount back within seconds, the active region compared, and a point after it.
func (t *test) killed(ctx context.Context) error {
	before, err := t.property(ctx, "NRestarts")
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := t.Shell(ctx, write+" && systemctl kill -s KILL vhdrelay"); err != nil {
		return err
	}
	if err := t.back(ctx, before); err != nil {
		return err
	}
	fmt.Printf("     served again after %v\n", time.Since(began).Round(time.Millisecond))
	bytes, err := t.suspect(ctx)
	if n, bad := strconv.ParseInt(bytes, 10, 64); err == nil && (bad != nil || n == 0 || n > 8<<20) {
		err = fmt.Errorf("%s bytes are suspect, want the active region or two", bytes)
	}
	_, err2 := t.Shell(ctx, write+" && vhdrelay sync web01 --wait && vhdrelay verify web01")
	return errors.Join(err, err2)
}

// back waits for the next process to be ready.
func (t *test) back(ctx context.Context, restartsBefore string) error {
	if err := t.await(ctx, "NRestarts", func(n string) bool { return n != restartsBefore }); err != nil {
		return err
	}
	if err := t.await(ctx, "ActiveState", func(s string) bool { return s == "active" }); err != nil {
		return err
	}
	_, err := t.Shell(ctx, "mountpoint -q /vhd && test -e /vhd/web01/os.raw")
	return err
}

// bite is the watchdog's time for these steps; the unit's own would only make them longer.
const bite = 12 * time.Second

// outage cuts the way to the target for three times the watchdog's time, and a guest goes on.
func (t *test) outage(ctx context.Context) error {
	dropIn := fmt.Sprintf("[Service]\nWatchdogSec=%d\nTimeoutAbortSec=5\n", int(bite.Seconds()))
	if err := t.Put(ctx, "/etc/systemd/system/vhdrelay.service.d/watchdog.conf", dropIn, 0o644); err != nil {
		return err
	}
	if _, err := t.Shell(ctx, "systemctl daemon-reload && systemctl restart vhdrelay"); err != nil {
		return err
	}
	before, err := t.property(ctx, "MainPID")
	if err != nil {
		return err
	}
	if err := t.azure.Suspend(); err != nil { // connections hang, the worst kind
		return err
	}
	_, err = t.Shell(ctx, fmt.Sprintf(`end=$(($(date +%%s) + %d)); while [ $(date +%%s) -lt $end ]; do %s >/dev/null; sleep 1; done`, int(3*bite.Seconds()), write))
	after, err2 := t.property(ctx, "MainPID")
	err = errors.Join(err, err2, want("the process", after, before), t.azure.Resume())
	if err != nil {
		return err
	}
	_, err = t.Shell(ctx, "vhdrelay sync web01 --wait")
	return err
}

// watchdog stops the process, as a hang would.
func (t *test) watchdog(ctx context.Context) error {
	before, err := t.property(ctx, "NRestarts")
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := t.Run(ctx, "systemctl", "kill", "-s", "STOP", "vhdrelay"); err != nil {
		return err
	}
	if err := t.back(ctx, before); err != nil {
		return err
	}
	fmt.Printf("     served again after %v with WatchdogSec=%v\n", time.Since(began).Round(time.Millisecond), bite)
	out, err := t.Run(ctx, "journalctl", "-b", "-u", "vhdrelay", "-o", "cat", "--no-pager")
	if err == nil && !(strings.Contains(out, "Watchdog timeout") && strings.Contains(out, "SIGABRT: abort")) {
		err = fmt.Errorf("watchdog and goroutines are not in the journal:\n%s", out)
	}
	_, err2 := t.Shell(ctx, write+" && rm /etc/systemd/system/vhdrelay.service.d/watchdog.conf && systemctl daemon-reload")
	return errors.Join(err, err2)
}

// hypervisor stands for virtqemud: it notes whether its disks are there when it starts and when it stops. Its ordering is
// the unit's alone.
const hypervisor = `[Unit]
Description=stands for a hypervisor
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=sh -c 'test -e /vhd/web01/os.raw && echo started with disks >> /var/lib/order || echo started without >> /var/lib/order'
ExecStop=sh -c 'test -e /vhd/web01/os.raw && echo stopped with disks >> /var/lib/order || echo stopped without >> /var/lib/order; sync'
[Install]
WantedBy=multi-user.target
`

func (t *test) reboot(ctx context.Context) error {
	if err := t.Put(ctx, "/etc/systemd/system/virtqemud.service", hypervisor, 0o644); err != nil {
		return err
	}
	if _, err := t.Shell(ctx, "systemctl daemon-reload && systemctl enable -q virtqemud vhdrelay && systemctl start virtqemud && systemctl --no-block reboot"); err != nil && !guest.Gone(err) {
		return err
	}
	began := time.Now()
	if err := t.Rebooted(ctx); err != nil {
		return err
	}
	fmt.Printf("     down and up in %v\n", time.Since(began).Round(time.Second))
	if _, err := t.Shell(ctx, "systemctl start virtqemud"); err != nil { // waits for the job of the boot
		return err
	}
	order, err := t.Run(ctx, "cat", "/var/lib/order")
	bytes, err2 := t.suspect(ctx)
	_, err3 := t.Run(ctx, "vhdrelay", "sync", "web01", "--wait")
	return errors.Join(err, err2, err3, want("the order", order, "started with disks\nstopped with disks\nstarted with disks"),
		want("what is suspect after a reboot", bytes, "0"))
}

func (t *test) powerOff(ctx context.Context) error {
	if _, err := t.Shell(ctx, write+" && systemctl --no-block poweroff"); err != nil && !guest.Gone(err) {
		return err
	}
	began := time.Now()
	err := t.Ended(ctx)
	fmt.Printf("     down in %v\n", time.Since(began).Round(time.Second))
	return err
}

func (t *test) uninstall(ctx context.Context) error {
	module, err := guest.Module()
	if err != nil {
		return err
	}
	tree := filepath.Join(t.dir, "payload", "tree")
	cmd := exec.CommandContext(ctx, "make", "-s", "uninstall", "DESTDIR="+tree)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "MAKEFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make uninstall: %w\n%s", err, text)
	}
	var left []string
	err = filepath.WalkDir(tree, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			left = append(left, strings.TrimPrefix(path, tree))
		}
		return err
	})
	return errors.Join(err, want("what is left", strings.Join(left, " "), "/etc/vhdrelay/vhdrelay.yaml"))
}
