package stage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// qemuDisk is an image of any format that qemu writes.
type qemuDisk struct {
	name, driver string
	options      string // of qemu-img create
	size         int64  // of the virtual disk, bytes
	block        int64  // of a dynamic VHD that qemu writes but does not make: it makes blocks of 2 MiB only
}

// create makes the image, empty.
func (d *qemuDisk) create(ctx context.Context, path string) error {
	if d.block != 0 {
		return os.WriteFile(path, imagetest.NewVHD(d.size, d.block, 1, nil, "").File(), 0o600)
	}
	args := []string{"create", "-q", "-f", d.driver}
	if d.options != "" {
		args = append(args, "-o", d.options)
	}
	return command(ctx, "qemu-img", append(args, path, fmt.Sprint(d.size))...)
}

// copy copies an image that nobody writes, and has qemu end what its writer left in a VHDX's log.
func (d *qemuDisk) copy(ctx context.Context, from, to string) error {
	if err := command(ctx, "cp", "--sparse=always", from, to); err != nil || d.driver != "vhdx" {
		return err
	}
	return command(ctx, "qemu-io", "-f", d.driver, "-c", "read -q 0 512", to) // opened for writing, which replays
}

// raw writes what qemu reads from a copy of the image, and leaves nothing else.
func (d *qemuDisk) raw(ctx context.Context, from, to string) error {
	copied := to + ".copy"
	if err := d.copy(ctx, from, copied); err != nil {
		return err
	}
	defer os.Remove(copied)
	return command(ctx, "qemu-img", "convert", "-t", "unsafe", "-f", d.driver, "-O", "raw", copied, to)
}

// equal compares an exported disk with what qemu reads from a copy of the image.
func (d *qemuDisk) equal(ctx context.Context, image, scratch, exported string) error {
	copied := filepath.Join(scratch, d.name)
	if err := d.copy(ctx, image, copied); err != nil {
		return err
	}
	defer os.Remove(copied)
	if err := command(ctx, "qemu-img", "compare", "-f", d.driver, "-F", "raw", copied, exported); err != nil {
		return err
	}
	info, err := os.Stat(exported)
	if err == nil && info.Size() != d.size { // compare takes zeros for no difference
		err = fmt.Errorf("the disk has %d bytes, exported are %d", d.size, info.Size())
	}
	return err
}

// blockdev is the image as a node of qemu-storage-daemon.
func (d *qemuDisk) blockdev(node, path string) string {
	return fmt.Sprintf("driver=%s,node-name=%s,discard=unmap,file.driver=file,file.filename=%s", d.driver, node, path)
}

// resize gives the disk another size, which only raw images can make smaller. Nobody may be writing. qemu resizes raw images
// and says of the others that it cannot; they grow by what their own tools write.
func (d *qemuDisk) resize(ctx context.Context, path string, size int64) (err error) {
	switch d.driver {
	case "raw":
		err = command(ctx, "qemu-img", "resize", "-q", "-f", "raw", "--shrink", path, fmt.Sprint(size))
	case "vpc":
		err = growVHD(path, size)
	case "vhdx":
		err = growVHDX(path, size)
	}
	if err == nil {
		d.size = size
	}
	return err
}

// resizeLive does the same of an image that a storage daemon has open; qemu can that with raw images only.
func (d *qemuDisk) resizeLive(m *rig.Monitor, node string, size int64) error {
	err := m.Do("block_resize", map[string]any{"node-name": node, "size": size})
	if err == nil {
		d.size = size
	}
	return err
}
