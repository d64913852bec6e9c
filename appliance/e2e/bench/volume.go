package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// volume is an ext4 of its own on a loop device, so that what a directory costs can be read at its disk.
type volume struct {
	b           *bench
	dir, device string
}

// newVolume makes a volume of the given bytes, sparse.
func (b *bench) newVolume(name string, size int64) (*volume, error) {
	dir, err := b.place(name)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(b.dir, name+".ext4")
	if err := makeImage(file, size); err != nil {
		return nil, err
	}
	// Everything is initialised here: a kernel thread that does it later would be counted.
	if _, err := b.command("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", file); err != nil {
		return nil, err
	}
	device, err := b.command("losetup", "--find", "--show", file)
	if err != nil {
		return nil, err
	}
	v := &volume{b: b, dir: dir, device: strings.TrimSpace(device)}
	if err := unix.Mount(v.device, dir, "ext4", unix.MS_NOATIME, ""); err != nil {
		return nil, errors.Join(fmt.Errorf("mount %s: %w", v.device, err), v.detach())
	}
	return v, nil
}

func (v *volume) detach() error {
	_, err := v.b.command("losetup", "--detach", v.device)
	return err
}

// close unmounts it and gives the device back; the file goes with the directory of the run.
func (v *volume) close() error {
	return errors.Join(unix.Unmount(v.dir, 0), v.detach())
}

// traffic is what a block device has seen.
type traffic struct {
	written int64 // bytes
	flushes int64 // of its cache: each sync of a file has one
}

// traffic writes everything back first, if synced, and reads the counters.
func (v *volume) traffic(synced bool) (traffic, error) {
	if synced {
		f, err := os.Open(v.dir)
		if err != nil {
			return traffic{}, err
		}
		defer f.Close()
		if err := unix.Syncfs(int(f.Fd())); err != nil {
			return traffic{}, err
		}
	}
	data, err := os.ReadFile(filepath.Join("/sys/class/block", filepath.Base(v.device), "stat"))
	if err != nil {
		return traffic{}, err
	}
	return parseTraffic(string(data))
}

// Columns of /sys/block/*/stat, from the kernel's Documentation/block/stat.rst; a sector there is 512 bytes.
const (
	statWriteSectors = 6
	statFlushes      = 15
)

func parseTraffic(stat string) (traffic, error) {
	fields := strings.Fields(stat)
	if len(fields) <= statFlushes {
		return traffic{}, fmt.Errorf("block device statistics have %d columns", len(fields))
	}
	sectors, err := strconv.ParseInt(fields[statWriteSectors], 10, 64)
	flushes, err2 := strconv.ParseInt(fields[statFlushes], 10, 64)
	return traffic{written: sectors * 512, flushes: flushes}, errors.Join(err, err2)
}
