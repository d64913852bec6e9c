package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// steps in their order; each stands on what the one before it left.
var steps = []struct {
	name string
	run  func(*test, context.Context) error
}{
	{"make install puts binary, unit, manual and completions in place", (*test).install},
	{"systemd-analyze verify is clean", (*test).verifyUnit},
	{"systemd-analyze security says what the README says", (*test).security},
	{"a configuration that is wrong fails once and says where", (*test).wrongConfig},
	{"start reports readiness with the store mounted", (*test).start},
	{"the mount is in the host's mount namespace, and reaches those made before it", (*test).namespaces},
	{"a namespace option would hide it: the check above can fail", (*test).hidden},
	{"a virtual machine's process reads and writes its disk", (*test).machineProcess},
	{"a point is made and proves itself from outside", (*test).point},
	{"the status line counts the VMs", (*test).statusLine},
	{"the journal's lines are readable", (*test).journalLines},
	{"reload takes a change, refuses an error and says both", (*test).reload},
	{"stop takes the mount away and nobody can start beside it", (*test).stop},
	{"a restart after a clean stop finds nothing suspect", (*test).restart},
	{"after SIGKILL systemd brings the mount back", (*test).killed},
	{"the target's outage does not bite the watchdog", (*test).outage},
	{"a process that hangs is bitten by the watchdog and comes back", (*test).watchdog},
	{"a reboot keeps the order: disks before machines, machines stopped before disks", (*test).reboot},
	{"power off ends in time", (*test).powerOff},
	{"make uninstall leaves the configuration and nothing else", (*test).uninstall},
}

// want compares.
func want(what, got, wanted string) error {
	if got = strings.TrimSpace(got); got != wanted {
		return fmt.Errorf("%s is %q, want %q", what, got, wanted)
	}
	return nil
}

// property is one property of the unit.
func (t *test) property(ctx context.Context, name string) (string, error) {
	out, err := t.Run(ctx, "systemctl", "show", "vhdrelay", "--value", "-p", name)
	return strings.TrimSpace(out), err
}

// await asks for a property until it is as wished.
func (t *test) await(ctx context.Context, name string, good func(string) bool) error {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		value, err := t.property(ctx, name)
		if err != nil || good(value) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s stays %q: %w", name, value, context.Cause(ctx))
		case <-tick.C:
		}
	}
}

// grep wants a line in the unit's journal of this boot.
func (t *test) grep(ctx context.Context, pattern string) error {
	out, err := t.Run(ctx, "journalctl", "-b", "-u", "vhdrelay", "-o", "cat", "--no-pager")
	if err == nil && !regexp.MustCompile(pattern).MatchString(out) {
		err = fmt.Errorf("no line like %q in the journal:\n%s", pattern, out)
	}
	return err
}

func (t *test) install(ctx context.Context) error {
	if err := t.Install(ctx, t.port()); err != nil {
		return err
	}
	_, err := t.Shell(ctx, `for f in bin/vhdrelay lib/systemd/system/vhdrelay.service share/man/man8/vhdrelay.8 \
		share/bash-completion/completions/vhdrelay share/zsh/site-functions/_vhdrelay share/fish/vendor_completions.d/vhdrelay.fish; do
		test -s /usr/local/$f || { echo "$f is missing"; exit 1; }
	done
	test "$(stat -c %a /etc/vhdrelay/vhdrelay.yaml)" = 600
	vhdrelay version`)
	return err
}

func (t *test) verifyUnit(ctx context.Context) error {
	out, err := t.Shell(ctx, "systemd-analyze verify --man=no vhdrelay.service 2>&1")
	return errors.Join(err, want("what it says", out, ""))
}

// exposure is what the README says.
const exposure = "5.3 MEDIUM"

func (t *test) security(ctx context.Context) error {
	out, err := t.Run(ctx, "systemd-analyze", "security", "vhdrelay.service", "--no-pager")
	if err == nil && !strings.Contains(out, "vhdrelay.service: "+exposure) {
		lines := strings.Split(strings.TrimSpace(out), "\n")
		err = fmt.Errorf("want %s: %s", exposure, lines[len(lines)-1])
	}
	return err
}

// wrongConfig also shows that the installed configuration, with its placeholders, is refused and not tried for ever.
func (t *test) wrongConfig(ctx context.Context) error {
	if err := t.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", t.config("5s")+"surprise: 1\n", 0o600); err != nil {
		return err
	}
	if _, err := t.Run(ctx, "systemctl", "start", "vhdrelay"); err == nil {
		return errors.New("it starts")
	}
	state, err := t.property(ctx, "ActiveState")
	restarts, err2 := t.property(ctx, "NRestarts")
	return errors.Join(err, err2, want("the state", state, "failed"), want("the number of restarts", restarts, "0"), t.grep(ctx, `vhdrelay\.yaml:\d+:\d+: .*surprise`))
}

// early is a service with a mount namespace of its own, made before the store is mounted: virtlogd, a container's, …
const early = "systemd-run -q --unit=early -p PrivateTmp=yes -p PrivateMounts=yes sleep infinity"

func (t *test) start(ctx context.Context) error {
	if _, err := t.Shell(ctx, early); err != nil {
		return err
	}
	if err := errors.Join(
		t.Put(ctx, "/etc/credstore/vhdrelay.target", t.azure.Key(), 0o600),
		t.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", t.config("5s"), 0o600),
	); err != nil {
		return err
	}
	began := time.Now()
	// One command, so that nothing happens between readiness and the look.
	_, err := t.Shell(ctx, "mkdir /vhd && systemctl start vhdrelay && mountpoint -q /vhd && test -e /vhd/web01/os.raw")
	fmt.Printf("     ready after %v\n", time.Since(began).Round(time.Millisecond))
	return err
}

func (t *test) namespaces(ctx context.Context) error {
	_, err := t.Shell(ctx, `pid=$(systemctl show -p MainPID --value vhdrelay)
	test "$(readlink /proc/$pid/ns/mnt)" = "$(readlink /proc/1/ns/mnt)" || { echo "the appliance has a mount namespace of its own"; exit 1; }
	early=$(systemctl show -p MainPID --value early)
	test "$(readlink /proc/$early/ns/mnt)" != "$(readlink /proc/1/ns/mnt)" || { echo "the test has no namespace to look from"; exit 1; }
	nsenter -t "$early" -m test -e /vhd/web01/os.raw || { echo "an older mount namespace does not see the store"; exit 1; }
	systemctl stop early`)
	return err
}

// hidden shows what the unit avoids, and that namespaces would notice. It stops, so that the next process takes no mount over.
func (t *test) hidden(ctx context.Context) error {
	const dropIn = "/etc/systemd/system/vhdrelay.service.d/hide.conf"
	if err := t.Put(ctx, dropIn, "[Service]\nPrivateTmp=yes\n", 0o644); err != nil {
		return err
	}
	_, err := t.Shell(ctx, `systemctl daemon-reload && systemctl stop vhdrelay && systemctl start vhdrelay
	pid=$(systemctl show -p MainPID --value vhdrelay)
	nsenter -t "$pid" -m test -e /vhd/web01/os.raw || { echo "the appliance itself does not see the store"; exit 1; }
	if mountpoint -q /vhd; then echo "the host sees a mount made in a namespace"; exit 1; fi`)
	_, err2 := t.Shell(ctx, "rm "+dropIn+" && systemctl daemon-reload && systemctl stop vhdrelay && systemctl start vhdrelay && test -e /vhd/web01/os.raw")
	return errors.Join(err, err2)
}

// machineProcess does what libvirt does: it gives the disk to the machine's user, which then runs in a sandbox.
func (t *test) machineProcess(ctx context.Context) error {
	machine := "[Service]\nType=oneshot\nUser=libvirt-qemu\nPrivateTmp=yes\nProtectHome=yes\nPrivateMounts=yes\n"
	for _, c := range []string{"write -P 0xa7 1M 256k", "flush", "read -P 0xa7 1M 256k", "read -P 0 0 1M"} {
		machine += "ExecStart=qemu-io -f raw -t none -c \"" + c + "\" /vhd/web01/os.raw\n"
	}
	if err := t.Put(ctx, "/run/systemd/system/machine.service", machine, 0o644); err != nil {
		return err
	}
	_, err := t.Shell(ctx, `chown libvirt-qemu /vhd/web01/os.raw && chmod 600 /vhd/web01/os.raw
	systemctl daemon-reload && systemctl start machine || { journalctl -u machine -o cat; exit 1; }
	test "$(stat -c %U /srv/vhd/web01/os.raw)" = libvirt-qemu
	if setpriv --reuid nobody --clear-groups cat /vhd/web01/os.raw >/dev/null 2>&1; then echo "everybody may read it"; exit 1; fi`)
	return err
}

// point syncs in the guest and reads the point on this machine, which has the target and nothing else.
func (t *test) point(ctx context.Context) error {
	out, err := t.Run(ctx, "vhdrelay", "sync", "web01", "--wait", "--json")
	if err != nil {
		return err
	}
	var synced struct {
		Point string `json:"point"`
	}
	if err := json.Unmarshal([]byte(out), &synced); err != nil {
		return fmt.Errorf("sync prints %q: %w", out, err)
	}
	binary, file := filepath.Join(t.dir, "payload", "tree", "usr", "local", "bin", "vhdrelay"), filepath.Join(t.dir, "export.raw")
	cmd := exec.CommandContext(ctx, binary, "export", "web01/os.raw", "--point", synced.Point, "--output", file, "--format", "raw", "--force", "--target", t.url())
	cmd.Env = append(os.Environ(), "AZURE_STORAGE_KEY="+t.azure.Key(), "AZURE_STORAGE_ACCOUNT="+t.azure.Account())
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("export of %s: %w\n%s", synced.Point, err, text)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	if len(data) != diskSize {
		return fmt.Errorf("the exported disk has %d bytes", len(data))
	}
	for i, b := range data {
		inside := i >= 1<<20 && i < 1<<20+256<<10
		if inside && b != 0xa7 || !inside && b != 0 {
			return fmt.Errorf("byte %d of point %s is %#x", i, synced.Point, b)
		}
	}
	return nil
}

func (t *test) statusLine(ctx context.Context) error {
	return t.await(ctx, "StatusText", func(s string) bool { return s == "1 VMs, 1 Normal" })
}

// journalLines wants of every line a priority that fits, no time but the journal's, and key=value text.
func (t *test) journalLines(ctx context.Context) error {
	pid, err := t.property(ctx, "MainPID")
	if err != nil {
		return err
	}
	out, err := t.Run(ctx, "journalctl", "-b", "_PID="+pid, "-o", "json", "--no-pager")
	if err != nil {
		return err
	}
	seen := map[string]int{}
	priority := map[string]string{"ERROR": "3", "WARN": "4", "INFO": "6"}
	for line := range strings.Lines(out) {
		var entry struct{ MESSAGE, PRIORITY string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			return fmt.Errorf("a line the journal does not take for text: %s", line)
		}
		m := regexp.MustCompile(`^level=(\w+) msg=`).FindStringSubmatch(entry.MESSAGE)
		if m == nil || entry.PRIORITY != priority[m[1]] || strings.Contains(entry.MESSAGE, "time=") {
			return fmt.Errorf("priority %s: %s", entry.PRIORITY, entry.MESSAGE)
		}
		seen[m[1]]++
	}
	if seen["INFO"] == 0 {
		return fmt.Errorf("no lines: %v", seen)
	}
	return t.grep(ctx, "msg=serving ")
}

func (t *test) reload(ctx context.Context) error {
	before, err := t.property(ctx, "MainPID")
	if err != nil {
		return err
	}
	if err := t.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", t.config("7s"), 0o600); err != nil {
		return err
	}
	if _, err := t.Run(ctx, "systemctl", "reload", "vhdrelay"); err != nil {
		return err
	}
	if err := t.awaitLine(ctx, `config reloaded`); err != nil {
		return err
	}
	out, err := t.Run(ctx, "vhdrelay", "status", "--json")
	if err == nil && !strings.Contains(out, `"interval_seconds": 7`) {
		err = fmt.Errorf("the new interval is not in force: %s", out)
	}
	if err != nil {
		return err
	}
	if err := t.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", t.config("7 parsecs"), 0o600); err != nil {
		return err
	}
	if _, err := t.Run(ctx, "systemctl", "reload", "vhdrelay"); err != nil {
		return err
	}
	err = t.awaitLine(ctx, `config not reloaded.*parsecs`)
	after, err2 := t.property(ctx, "MainPID")
	return errors.Join(err, err2, want("the process", after, before), t.Put(ctx, "/etc/vhdrelay/vhdrelay.yaml", t.config("5s"), 0o600))
}

// awaitLine waits for a line of the unit, now or earlier in this boot.
func (t *test) awaitLine(ctx context.Context, pattern string) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		err := t.grep(ctx, pattern)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}
