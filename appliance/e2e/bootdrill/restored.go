package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest"
	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// restoredGuest is a machine from an exported disk.
type restoredGuest struct {
	*exercise
	file     string
	promised int // commits that must be there
	machine  *guest.Machine
}

// fileSystem names the root's file system within a disk, as e2fsprogs take it.
func fileSystem(disk string) string { return disk + "?offset=" + strconv.Itoa(guest.Partition) }

// provenHere replays the journal on a copy of the file system, and wants it to be without a flaw then.
func (r *restoredGuest) provenHere(ctx context.Context) error {
	// e2fsck opens a file anew after the replay, and forgets the offset.
	err := command(ctx, "dd", "if="+r.file, "of="+r.copied(), "bs="+strconv.Itoa(guest.Partition), "skip=1", "conv=sparse", "status=none")
	if err != nil {
		return err
	}
	check := rig.Loop{File: r.copied()}
	return check.Check(ctx)
}

// copied is a copy of the file system, its journal replayed.
func (r *restoredGuest) copied() string { return filepath.Join(r.dir, "restored.ext4") }

// changeByte changes one byte in the middle of the database. The copy tells where it is.
func (r *restoredGuest) changeByte(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "debugfs", "-R", "blocks "+database, r.copied()).Output()
	if err != nil {
		return err
	}
	blocks := strings.Fields(string(out))
	if len(blocks) == 0 {
		return errors.New("the database has no blocks")
	}
	block, err := strconv.ParseInt(blocks[len(blocks)/2], 10, 64)
	if err != nil {
		return err
	}
	const blockSize, middle = 4096, 2048
	f, err := os.OpenFile(r.file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	at, b := guest.Partition+block*blockSize+middle, []byte{0}
	if _, err := f.ReadAt(b, at); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, at)
	return err
}

// boot boots the exported disk itself, as the fixed VHD that it is. A reader that takes the geometry for the size would cut it.
func (r *restoredGuest) boot(ctx context.Context) (err error) {
	d := guest.Drive{Dir: filepath.Join(r.dir, "restored"), File: r.file, Format: "vpc"}
	r.machine, err = d.Start(ctx)
	return err
}

// examine looks at everything the guest had, lets it go on, powers it off, and looks at its file system once more.
func (r *restoredGuest) examine(ctx context.Context) error {
	for _, c := range []struct {
		what string
		look func(context.Context) error
	}{
		{"size", r.size}, {"boot", r.booted}, {"package", r.installed}, {"database", r.counted}, {"going on", r.goesOn},
	} {
		r.report.Check(c.look(ctx), "the restored guest's %s", c.what)
	}
	if _, err := r.machine.Shell(ctx, "systemctl --no-block poweroff"); err != nil && !guest.Gone(err) {
		return errors.Join(err, r.machine.Close())
	}
	if err := errors.Join(r.machine.Ended(ctx), r.machine.Close()); err != nil {
		return err
	}
	r.report.Check(command(ctx, "e2fsck", "-f", "-n", fileSystem(r.file)), "the file system after a clean end")
	return nil
}

func (r *restoredGuest) size(ctx context.Context) error {
	out, err := r.machine.Run(ctx, "blockdev", "--getsize64", "/dev/vda")
	if err == nil && strings.TrimSpace(out) != strconv.FormatInt(r.drill.size, 10) {
		err = fmt.Errorf("the disk has %s bytes, not %d", strings.TrimSpace(out), r.drill.size)
	}
	return err
}

// booted wants a root that was recovered by its journal, as after a loss of power, and no complaint of the kernel.
func (r *restoredGuest) booted(ctx context.Context) error {
	out, err := r.machine.Shell(ctx, onOwnDisk+"\ndmesg")
	if err != nil {
		return err
	}
	if !strings.Contains(out, "recovery complete") {
		err = errors.Join(err, errors.New("the journal was not replayed: the guest was not killed while it wrote"))
	}
	return errors.Join(err, noTrouble(out), noErrors(ctx, r.machine))
}

// noErrors wants the root's file system not to have met an error, ever.
func noErrors(ctx context.Context, m *guest.Machine) error {
	out, err := m.Run(ctx, "cat", "/sys/fs/ext4/vda1/errors_count")
	if err == nil && strings.TrimSpace(out) != "0" {
		err = fmt.Errorf("the file system counts %s errors", strings.TrimSpace(out))
	}
	return err
}

// trouble is what a kernel says of a disk that fails, of a file system that is not whole, and of a disk that does not answer.
var trouble = regexp.MustCompile(`(?i)I/O error|EXT4-fs error|EXT4-fs warning|read-only|aborting journal|blocked for more than|critical (medium|target) error`)

// harmless is what it says of a sound one.
var harmless = regexp.MustCompile(`write access will be enabled during recovery|Write protecting the kernel read-only data`)

// noTrouble wants no such line in a kernel's log.
func noTrouble(log string) error {
	var found []string
	for line := range strings.Lines(log) {
		if trouble.MatchString(line) && !harmless.MatchString(line) {
			found = append(found, strings.TrimSpace(line))
		}
	}
	if len(found) > 0 {
		const most = 10
		return fmt.Errorf("%d lines of the kernel's log, the first: %s", len(found), strings.Join(found[:min(most, len(found))], "\n"))
	}
	return nil
}

// installed wants the package whole; the image leaves documentation out (image.sh).
func (r *restoredGuest) installed(ctx context.Context) error {
	_, err := r.machine.Shell(ctx, `test -z "$(dpkg --audit)"
test "$(dpkg-query -f '${Status}' -W sqlite3)" = "install ok installed"
for deb in /var/local/packages/*.deb; do
	name=$(dpkg-deb -f "$deb" Package)
	if dpkg -V "$name" | grep -v -e /usr/share/doc/ -e /usr/share/man/ -e /usr/share/locale/; then exit 1; fi
done`)
	return err
}

// counted judges the database.
func (r *restoredGuest) counted(ctx context.Context) error {
	out, err := r.machine.Run(ctx, "sqlite3", database, `PRAGMA integrity_check;
SELECT count(*), coalesce(max(n),0), coalesce(sum(text IS NOT printf('%0512d',n*2654435761)),0) FROM counter`)
	if err != nil {
		return err
	}
	n, err := judge(out, r.promised)
	r.report.Figure("restored commits", "%d", n)
	return err
}

// judge reads what the database says of itself: whole, no hole below the newest number, every row as it was written, and nothing
// missing that was promised.
func judge(out string, promised int) (newest int, err error) {
	var rows, wrong int
	first, rest, _ := strings.Cut(strings.TrimSpace(out), "\n")
	if first != "ok" {
		return 0, fmt.Errorf("the database is not whole: %s", out)
	}
	if n, _ := fmt.Sscanf(rest, "%d|%d|%d", &rows, &newest, &wrong); n != 3 {
		return 0, fmt.Errorf("the database says %q", out)
	}
	if rows != newest {
		err = fmt.Errorf("%d rows up to number %d: there are holes", rows, newest)
	}
	if wrong > 0 {
		err = errors.Join(err, fmt.Errorf("%d rows are not what was written", wrong))
	}
	if newest < promised {
		err = errors.Join(err, fmt.Errorf("the newest number is %d, and %d had been answered before the point", newest, promised))
	}
	return newest, err
}

// goesOn lets the guest count on.
func (r *restoredGuest) goesOn(ctx context.Context) error {
	_, err := r.machine.Run(ctx, "sqlite3", database, `INSERT INTO counter SELECT max(n)+1, 'after' FROM counter`)
	return err
}
