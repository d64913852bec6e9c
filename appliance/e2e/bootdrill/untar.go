package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// untarScript unpacks the source and reads it back from the disk, round after round, until it is told that it is enough. The checksums were
// made outside.
const untarScript = `#!/bin/sh
set -eu
stty -F /dev/ttyS1 raw -echo
cd /var/tmp
dpkg-deb -x /var/local/sources/linux-source*.deb deb
n=0
while [ ! -e /run/enough ]; do
	rm -rf tree
	mkdir tree
	tar -C tree --wildcards -xJf deb/usr/src/linux-source*.tar.xz $(cat /usr/local/lib/parts)
	sync
	echo 3 >/proc/sys/vm/drop_caches
	(cd tree && sha256sum --quiet -c /usr/local/lib/sums)
	n=$((n + 1))
	echo $n >/dev/ttyS1
done
`

// parts are those of the source that the guest unpacks: an emulated processor needs minutes for them, and all of it is read.
var parts = []string{"linux-source-*/fs", "linux-source-*/kernel", "linux-source-*/mm", "linux-source-*/net", "linux-source-*/sound"}

// untar lets the guest work while the appliance is killed, and wants it not to notice.
func (x *exercise) untar(ctx context.Context) error {
	if err := x.beginUntar(ctx); err != nil {
		return err
	}
	longest, err := x.killAll(ctx)
	if err == nil {
		x.report.Figure("kills", "%d, longest until the next process answers %v", x.kills, longest.Round(time.Millisecond))
		err = x.endUntar(ctx)
	}
	x.report.Check(x.unharmed(ctx), "the guest's kernel")
	if err != nil || len(x.report.Failures()) > 0 {
		return err
	}
	return x.equalAtRest(ctx)
}

func (x *exercise) beginUntar(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if _, err := x.machine.Shell(ctx, install); err != nil {
		return err
	}
	sums, n, err := x.sums(ctx)
	if err != nil {
		return err
	}
	x.report.Figure("source", "%d files", n)
	if err := errors.Join(
		x.machine.Put(ctx, "/usr/local/lib/sums", sums, 0o644),
		x.machine.Put(ctx, "/usr/local/lib/parts", strings.Join(parts, " "), 0o644),
		x.machine.Put(ctx, "/usr/local/bin/untar", untarScript, 0o755),
	); err != nil {
		return err
	}
	_, err = x.machine.Run(ctx, "systemd-run", "-q", "--unit=untar", "-p", "RemainAfterExit=yes", "/usr/local/bin/untar")
	return errors.Join(err, x.await(ctx, "the first point", func(now rig.VM) bool { return now.LastPoint != nil }))
}

// sums are the checksums of the parts' files, from the package as the mirror gave it.
func (x *exercise) sums(ctx context.Context) (text string, n int, err error) {
	debs, err := filepath.Glob(filepath.Join(x.cache, "guest-*", "*", "linux-source-*.deb"))
	if err != nil || len(debs) == 0 {
		return "", 0, fmt.Errorf("no package of sources below %s: %w", x.cache, err)
	}
	tree := filepath.Join(x.dir, "deb")
	if err := command(ctx, "dpkg-deb", "-x", debs[0], tree); err != nil {
		return "", 0, err
	}
	defer os.RemoveAll(tree)
	tarballs, err := filepath.Glob(filepath.Join(tree, "usr", "src", "*.tar.xz"))
	if err != nil || len(tarballs) != 1 {
		return "", 0, fmt.Errorf("%s: %v, %w", debs[0], tarballs, err)
	}
	cmd := exec.CommandContext(ctx, "xz", "-dc", tarballs[0])
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", 0, err
	}
	if err := cmd.Start(); err != nil {
		return "", 0, err
	}
	text, n, err = checksums(tar.NewReader(out))
	return text, n, errors.Join(err, cmd.Wait())
}

// checksums writes what sha256sum -c reads, of the parts' regular files.
func checksums(in *tar.Reader) (string, int, error) {
	var b strings.Builder
	n := 0
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return b.String(), n, nil
		}
		if err != nil {
			return "", 0, err
		}
		if h.Typeflag != tar.TypeReg || !within(h.Name) {
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, in); err != nil {
			return "", 0, err
		}
		fmt.Fprintf(&b, "%x  %s\n", sum.Sum(nil), h.Name)
		n++
	}
}

// within says whether a name of the archive is below one of the parts.
func within(name string) bool {
	top, rest, _ := strings.Cut(name, "/")
	dir, _, below := strings.Cut(rest, "/")
	for _, p := range parts {
		if ok, _ := filepath.Match(p, top+"/"+dir); ok && below {
			return true
		}
	}
	return false
}

// meanPause is the time between two kills, on average, from when the next process answered.
const meanPause = 1500 * time.Millisecond

// killAll kills the process that serves, at moments of no meaning, and waits for the next one each time.
func (x *exercise) killAll(ctx context.Context) (longest time.Duration, err error) {
	rng := rand.New(rand.NewPCG(x.seed, 2))
	if x.spoil == "alone" {
		x.kills = 1 // there is no guest after it
	}
	for i := range x.kills {
		if err := pause(ctx, time.Duration(rng.Int64N(int64(2*meanPause)))); err != nil {
			return longest, err
		}
		took, err := x.killOne(ctx)
		if err != nil {
			return longest, fmt.Errorf("kill %d: %w", i+1, err)
		}
		longest = max(longest, took)
		const often = 20
		if i%often == often-1 {
			if err := x.atWork(ctx, i+1); err != nil {
				return longest, err
			}
		}
	}
	return longest, nil
}

// atWork wants the guest to be untarring or checking.
func (x *exercise) atWork(ctx context.Context, kill int) error {
	state, err := x.machine.Run(ctx, "systemctl", "show", "-P", "SubState", "untar")
	if err != nil {
		return err
	}
	x.say("kill %d: the guest is in round %d, %s", kill, x.acks.last()+1, strings.TrimSpace(state))
	if strings.TrimSpace(state) != "running" {
		return errors.New("the guest does not untar any more")
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

func (x *exercise) killOne(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	pid, began := x.appliance.Pid(), time.Now()
	if x.spoil == "alone" {
		return 0, errors.Join(x.appliance.Kill(), x.appliance.Start(ctx))
	}
	if err := x.appliance.Signal(unix.SIGKILL); err != nil {
		return 0, err
	}
	err := x.appliance.Followed(ctx, pid)
	return time.Since(began), err
}

// endUntar lets the guest finish its round.
func (x *exercise) endUntar(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	x.say("kills done in round %d", x.acks.last()+1)
	if _, err := x.machine.Shell(ctx, `touch /run/enough
while [ "$(systemctl show -P SubState untar)" = running ]; do sleep 2; done
test "$(systemctl show -P SubState untar)" = exited || { journalctl -u untar -o cat --no-pager; exit 1; }`); err != nil {
		return err
	}
	x.report.Figure("rounds", "%d of untar and checksum", x.acks.last())
	return x.acks.await(ctx, 1)
}

// unharmed wants nothing of a failing disk in the kernel's log, over the serial port and as the guest has it.
func (x *exercise) unharmed(ctx context.Context) error {
	serial, err := os.ReadFile(x.machine.SerialLog())
	if err != nil {
		return err
	}
	if err := noTrouble(string(serial)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	out, err := x.machine.Run(ctx, "dmesg")
	return errors.Join(err, noTrouble(out), noErrors(ctx, x.machine))
}

// equalAtRest powers the guest off and wants the newest point to be its disk.
func (x *exercise) equalAtRest(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	_, _ = x.machine.Shell(ctx, "systemctl --no-block poweroff") // the agent may be gone before it answers
	if err := errors.Join(x.machine.Ended(ctx), x.machine.Close()); err != nil {
		return err
	}
	synced, err := x.appliance.Sync(ctx, vm)
	if err != nil {
		return err
	}
	exported := filepath.Join(x.dir, "exported.raw")
	if _, err := x.appliance.Run(ctx, "export", vm+"/"+x.image, "--point", synced.Point, "--output", exported, "--format", "raw", "--target", x.target.URL); err != nil {
		return err
	}
	source := filepath.Join(x.appliance.Source, vm, x.image)
	x.report.Check(command(ctx, "qemu-img", "compare", "-f", "raw", "-F", x.format, exported, source), "point %s against the disk", synced.Point)
	x.report.Check(command(ctx, "e2fsck", "-f", "-n", fileSystem(exported)), "the file system")
	return x.appliance.Stop()
}
