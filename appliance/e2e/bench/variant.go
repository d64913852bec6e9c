package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/fs"
)

// variant is one way to reach the same kind of file.
type variant struct {
	name    string
	file    string // what fio opens
	backing string // what holds the bytes
	offset  int64  // where in the file fio begins
	raw     bool   // its cache is meant to take the writes
	close   func() error
}

// The variants of the matrix.
const (
	rawFile  = "raw"
	shimOff  = "off"
	shimOn   = "on"
	qemuFUSE = "qemu"
)

// The one VM of a store and its one image, below a directory of that name.
const (
	vmName   = "bench"
	diskName = "disk.raw"
)

// makeImage makes an empty image file.
func makeImage(path string, size int64) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// rawVariant is the file itself, through the page cache.
func (b *bench) rawVariant(size int64) (*variant, error) {
	dir, err := b.place(rawFile)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, diskName)
	return &variant{name: rawFile, file: file, backing: file, raw: true, close: func() error { return os.RemoveAll(dir) }}, makeImage(file, size)
}

// store is an appliance that serves one image.
type store struct {
	*rig.Rig
	backing, mounted string
}

// configureStore makes an appliance with a directory of its own. extra are more lines of the replication section.
func (b *bench) configureStore(name string, opts rig.Options, extra string) (*store, error) {
	dir, err := b.place(name)
	if err != nil {
		return nil, err
	}
	opts.Dir, opts.Binary = dir, b.binary
	if opts.URL == "" {
		opts.URL = "dir://" + filepath.Join(dir, "target")
	}
	opts.Interval, opts.ApplyInterval = 24*time.Hour, 24*time.Hour // nobody seals but who asks
	r, err := rig.New(opts)
	if err != nil {
		return nil, err
	}
	s := &store{Rig: r, backing: filepath.Join(r.Source, vmName, diskName), mounted: filepath.Join(r.Mount, vmName, diskName)}
	return s, appendTo(filepath.Join(dir, "vhdrelay.yaml"), extra)
}

// serve starts an appliance over a new, empty image.
func (b *bench) serve(name string, size int64, opts rig.Options, extra string) (*store, error) {
	s, err := b.configureStore(name, opts, extra)
	if err != nil {
		return nil, err
	}
	if err := makeImage(s.backing, size); err != nil {
		return nil, err
	}
	return s, s.Start(b.ctx)
}

// appendTo adds to the configuration of a rig, whose last section is replication.
func appendTo(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// end stops the appliance and removes all it had.
func (s *store) end() error {
	return errors.Join(s.Stop(), fs.ReleaseMountPoint(s.Mount), os.RemoveAll(s.Dir))
}

// shimVariant is the file at the mount, tracked or not. A tracked one is initially replicated, so that the tracking is
// the everyday one.
func (b *bench) shimVariant(name string, size int64) (*variant, error) {
	extra := ""
	if name == shimOff {
		extra = "  tracking: \"off\"\n"
	}
	s, err := b.serve(name, size, rig.Options{}, extra)
	if err != nil {
		return nil, err
	}
	if name == shimOn {
		if _, err := s.Sync(b.ctx, vmName); err != nil {
			return nil, errors.Join(err, s.end())
		}
	}
	return &variant{name: name, file: s.mounted, backing: s.backing, close: s.end}, nil
}

// qemuVariant is the FUSE export of qemu-storage-daemon with a dirty bitmap: what else one would do on such a host.
func (b *bench) qemuVariant(size int64) (*variant, error) {
	dir, err := b.place(qemuFUSE)
	if err != nil {
		return nil, err
	}
	backing, export, socket := filepath.Join(dir, diskName), filepath.Join(dir, "export"), filepath.Join(dir, "qmp")
	if err := errors.Join(makeImage(backing, size), os.WriteFile(export, nil, 0o600)); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, "qemu-storage-daemon",
		"--chardev", "socket,id=c,server=on,wait=off,path="+socket, "--monitor", "chardev=c",
		"--blockdev", "driver=file,node-name=f,filename="+backing, "--blockdev", "driver=raw,node-name=d,file=f",
		"--export", "type=fuse,id=e,node-name=d,writable=on,growable=off,mountpoint="+export)
	cmd.Stderr = b.log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	v := &variant{name: qemuFUSE, file: export, backing: backing}
	v.close = func() error {
		_ = unix.Unmount(export, unix.MNT_DETACH)
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait() // ends of our signal
		return os.RemoveAll(dir)
	}
	if err := b.addBitmap(socket); err != nil {
		return nil, errors.Join(err, v.close())
	}
	return v, nil
}

// addBitmap enables a dirty bitmap on the exported node, with the granularity of our blocks.
func (b *bench) addBitmap(socket string) error {
	m, err := rig.DialMonitor(b.ctx, socket)
	if err != nil {
		return fmt.Errorf("qemu-storage-daemon: %w", err)
	}
	return errors.Join(m.Do("block-dirty-bitmap-add", map[string]any{"node": "d", "name": "b", "granularity": 4096}), m.Close())
}
