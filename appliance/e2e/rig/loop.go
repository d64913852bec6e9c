package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Loop is an ext4 file system in a file, on a loop device.
type Loop struct {
	File   string
	Dir    string // where it is mounted
	device string
}

// Format makes the file, sparse, and an empty file system in it. A file that is there keeps its size if size is 0.
func (l *Loop) Format(ctx context.Context, size int64) error {
	if size > 0 {
		f, err := os.OpenFile(l.File, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
			return err
		}
	}
	return tool(ctx, "mkfs.ext4", "-q", "-F", "-E", "nodiscard", l.File)
}

// Mount attaches the file and mounts it.
func (l *Loop) Mount(ctx context.Context, options ...string) error {
	if err := os.MkdirAll(l.Dir, 0o700); err != nil {
		return err
	}
	args := []string{"--find", "--show"}
	for _, o := range options {
		if o == "ro" {
			args = append(args, "--read-only")
		}
	}
	out, err := exec.CommandContext(ctx, "losetup", append(args, l.File)...).Output()
	if err != nil {
		return fmt.Errorf("losetup %s: %w", l.File, err)
	}
	l.device = strings.TrimSpace(string(out))
	options = append(options, "noatime")
	if err := tool(ctx, "mount", "-t", "ext4", "-o", strings.Join(options, ","), l.device, l.Dir); err != nil {
		return errors.Join(err, l.detach())
	}
	return nil
}

// goingDown is EXT4_IOC_SHUTDOWN, _IOR('X', 125, __u32) of the kernel's fs/ext4/ext4.h; noLogFlush is its flag.
const (
	goingDown  = 0x8004587d
	noLogFlush = 2
)

// Cut is a power cut: nothing in memory, the journal's log included, reaches the device any more.
func (l *Loop) Cut() error {
	f, err := os.Open(l.Dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), goingDown, noLogFlush)
}

const unmountTimeout = 20 * time.Second

// Unmount ends it; files must be closed, but those of a process that was just killed may take a moment.
func (l *Loop) Unmount() error {
	if l.device == "" {
		return nil
	}
	deadline := time.Now().Add(unmountTimeout)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Unmount(l.Dir, 0)
		if err == nil || errors.Is(err, unix.EINVAL) {
			return l.detach()
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return errors.Join(fmt.Errorf("unmount %s: %w", l.Dir, err), l.Abandon())
		}
		<-tick.C
	}
}

// Abandon detaches it whatever is open: its device failed, or somebody stays inside.
func (l *Loop) Abandon() error {
	if l.device == "" {
		return nil
	}
	_ = unix.Unmount(l.Dir, unix.MNT_DETACH) // not mounted is as good
	return l.detach()
}

func (l *Loop) detach() error {
	device := l.device
	l.device = ""
	return tool(context.Background(), "losetup", "--detach", device)
}

// Detached unmounts and detaches what an earlier run left at dir; its loop devices go with the last user.
func Detached(dir string) {
	out, err := exec.Command("findmnt", "-n", "-o", "SOURCE", dir).Output()
	for err == nil && unix.Unmount(dir, unix.MNT_DETACH) == nil {
		_ = exec.Command("losetup", "--detach", strings.TrimSpace(string(out))).Run() // gone already is as good
	}
}

func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// Check replays the journal of a file system that is not mounted, as a mount would, and wants it to be flawless then.
func (l *Loop) Check(ctx context.Context) error {
	err := tool(ctx, "e2fsck", "-E", "journal_only", "-y", l.File)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		err = nil // 1: corrected, that is, replayed (e2fsck(8))
	}
	if err != nil {
		return err
	}
	return tool(ctx, "e2fsck", "-f", "-n", l.File)
}
