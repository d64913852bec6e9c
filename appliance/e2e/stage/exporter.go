package stage

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// exporter is a qemu-storage-daemon that has images open and serves their disks as files, through FUSE mounts of its own.
type exporter struct {
	dir   string // of the files
	disks []*qemuDisk
	cmd   *exec.Cmd
}

// exportDir is where an exporter's files are, below a stage's directory.
const exportDir = "exported"

func newExporter(dir string, disks []*qemuDisk) *exporter {
	return &exporter{dir: filepath.Join(dir, exportDir), disks: disks}
}

// file is where the bytes of a disk are read and written.
func (x *exporter) file(name string) string { return filepath.Join(x.dir, name) }

// start opens the images in a directory and returns when all are served.
func (x *exporter) start(ctx context.Context, r *rig.Rig, images string) error {
	if err := os.MkdirAll(x.dir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(r.Dir, "qemu.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	var args []string
	for i, d := range x.disks {
		if err := os.WriteFile(x.file(d.name), nil, 0o600); err != nil {
			return err
		}
		node := fmt.Sprintf("d%d", i)
		args = append(args, "--blockdev", d.blockdev(node, filepath.Join(images, d.name)),
			"--export", fmt.Sprintf("type=fuse,id=e%d,node-name=%s,writable=on,mountpoint=%s", i, node, x.file(d.name)))
	}
	x.cmd = exec.Command("qemu-storage-daemon", args...)
	x.cmd.Stdout, x.cmd.Stderr = log, log
	if err := x.cmd.Start(); err != nil {
		return err
	}
	err = r.Await(ctx, "the exports of "+images, func() (bool, error) {
		for _, d := range x.disks {
			if !rig.Mounted(x.file(d.name)) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		x.end(unix.SIGKILL)
	}
	return err
}

// end ends it with a signal and unmounts what it served.
func (x *exporter) end(sig unix.Signal) {
	if x.cmd == nil {
		return
	}
	_ = x.cmd.Process.Signal(sig)
	_ = x.cmd.Wait() // of our signal
	x.cmd = nil
	unmountExports(filepath.Dir(x.dir))
}

// unmountExports unmounts what an exporter below a stage's directory left.
func unmountExports(dir string) {
	files, err := filepath.Glob(filepath.Join(dir, exportDir, "*"))
	for _, file := range files {
		for err == nil {
			err = unix.Unmount(file, unix.MNT_DETACH)
		}
		err = nil
	}
}

// gone waits until a process that was killed has nothing open any more.
func gone(ctx context.Context, r *rig.Rig, pid int) error {
	return r.Await(ctx, fmt.Sprintf("the end of process %d", pid), func() (bool, error) {
		open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		return err != nil || len(open) == 0, nil
	})
}
