package preflight

import (
	"cmp"
	"errors"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// Azure's limits of disks (AZURE.md 0.2 and 2), in bytes.
const (
	mib = 1 << 20
	// maxDisk is the largest replica: a page blob, less its footer, in whole MiB.
	maxDisk = target.MaxPages - mib
	// maxOSDisk is the largest disk that Azure boots from, and maxMBR what an MBR can address of it.
	maxOSDisk = 4095 << 30
	maxMBR    = 2 << 40
	// minDisk is the smallest managed disk that is imported.
	minDisk = 20 * mib
	// maxHyperV is the largest VHD that Hyper-V opens.
	maxHyperV = 2040 << 30
)

// disk is one image of a store.
type disk struct {
	vm, name  string
	source    string // of its store
	rel       string // its name there, with slashes
	path      string // in the file system
	info      image.Info
	err       error // why it cannot be protected as it is
	allocated int64 // bytes of the disk that are not holes
	boot      boot
	sector    int64    // bytes of a sector as the guest sees it, 0 if nothing says
	chain     []string // the image and what it lies over, if it has a parent
	broken    error    // why the chain ends early
}

// images lists the disks of the VM that is asked for, or all.
func (r *run) images() ([]disk, error) {
	var all []disk
	for _, s := range r.Config.Stores {
		all = append(all, r.imagesOf(s)...)
	}
	slices.SortFunc(all, func(x, y disk) int { return cmp.Or(cmp.Compare(x.vm, y.vm), cmp.Compare(x.name, y.name)) })
	if r.VM != "" && len(all) == 0 {
		return nil, control.NotFound("list the stores with: ls; a directory of a store is a VM", "there is no image of a VM %q", r.VM)
	}
	return all, nil
}

// imagesOf walks one store; a source that cannot be read is reported by its own check.
func (r *run) imagesOf(s config.Store) []disk {
	var all []disk
	_ = filepath.WalkDir(s.Source, func(path string, e iofs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil
		}
		rel, err := filepath.Rel(s.Source, path)
		if err != nil || !image.IsImageName(rel) && !image.IsUnsupportedName(rel) {
			return nil
		}
		vm, name, ok := r.Belongs(s, filepath.ToSlash(rel))
		if ok && (r.VM == "" || r.VM == vm) {
			d := disk{vm: vm, name: name, source: s.Source, rel: filepath.ToSlash(rel), path: path}
			d.look()
			all = append(all, d)
		}
		return nil
	})
	return all
}

// look reads the headers, and how much of the file is allocated.
func (d *disk) look() {
	f, err := os.Open(d.path)
	if err != nil {
		d.err = err
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		d.err = err
		return
	}
	d.info, d.err = formats.Probe(d.path, f, st.Size())
	d.allocated = st.Size()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		d.allocated = min(st.Size(), sys.Blocks*512)
	}
	switch {
	case d.info.Format == image.VHDDifferencing || d.info.Format == image.VHDXDifferencing:
		d.lookDown()
	case d.err == nil && d.info.Format.Translated():
		d.lookThrough(f, st.Size())
	case d.err == nil:
		d.boot, d.sector = bootOf(f)
	}
}

// lookThrough reads the disk behind a block table.
func (d *disk) lookThrough(f *os.File, size int64) {
	i, err := formats.Open(f, size)
	if err != nil {
		d.err = err
		return
	}
	d.allocated = i.Table.Allocated()
	d.boot, d.sector = bootOf(i.Disk)
	if d.info.Format != image.VHDDynamic {
		d.sector = i.Table.Sector // a VHDX says so itself
	}
}

// lookDown looks for everything that a differencing image lies over.
func (d *disk) lookDown() {
	dir, err := chain.OpenDir(d.source)
	if err != nil {
		d.broken = err
		return
	}
	defer dir.Close()
	members, err := chain.Walk(dir, d.rel)
	d.broken = err
	for _, m := range members {
		d.chain = append(d.chain, m.Name)
	}
	if err == nil && d.err == nil {
		d.err = d.lookThroughAll(dir)
	}
}

// lookThroughAll reads the disk that all images of a chain make.
func (d *disk) lookThroughAll(dir *chain.Dir) error {
	c, err := chain.OpenFile(dir, d.rel, chain.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	d.allocated = 0
	for e := range c.Extents(0, c.Size()) {
		if e.From == image.FromFile {
			d.allocated += e.Len
		}
	}
	d.boot, d.sector = bootOf(c)
	if d.info.Format == image.VHDXDifferencing {
		d.sector = c.Members[0].Table.Sector // it says so itself
	}
	return nil
}

// missing is how many bytes of a disk have to be sent.
func (r *run) missing(d disk) int64 {
	if d.err != nil || d.broken != nil || r.below(d) {
		return 0
	}
	if r.Missing != nil {
		if n, known := r.Missing(d.vm, d.name); known {
			return n
		}
	}
	return d.allocated
}

func (r *run) disks(images []disk) {
	if len(images) == 0 {
		r.warn("disks", "put images into the source of a store: "+strings.Join(r.sources(), ", "), "there is no disk image")
	}
	r.all = images
	for _, d := range images {
		r.disk(d)
	}
}

func (r *run) sources() (all []string) {
	for _, s := range r.Config.Stores {
		all = append(all, s.Source)
	}
	return all
}

// disk says the worst of one disk, or what it is.
func (r *run) disk(d disk) {
	s := subject{d.vm, d.name}
	v := d.info.VirtualSize
	r.chain(s, d)
	switch {
	case d.broken != nil:
		return // said already
	case r.below(d):
		r.add(s, "disk-parent", control.CheckPass, "", "%s: no disk of its own, others lie over it", d.info.Format)
		return
	case errors.Is(d.err, image.ErrUnsupported):
		r.add(s, "disk-format", control.CheckFail, "convert it to a fixed VHD or raw, e.g.: qemu-img convert -O vpc -o subformat=fixed,force_size", "%v", d.err)
		return
	case errors.Is(d.err, image.ErrNotYet):
		r.add(s, "disk-format", control.CheckWarn, "wait until it is copied", "%v", d.err)
		return
	case d.err != nil:
		r.add(s, "disk-format", control.CheckFail, "repair or replace the image", "%v", d.err)
		return
	case v > maxDisk:
		r.add(s, "disk-size", control.CheckFail, "make it smaller, or exclude it in the config", "%s, a page blob holds %s", size(v), size(maxDisk))
		return
	}
	r.add(s, "disk", control.CheckPass, "", "%s, %s, %s allocated%s", d.info.Format, size(v), size(d.allocated), d.boot)
	if v < minDisk {
		r.add(s, "disk-small", control.CheckWarn, "none, if it need not become a managed disk", "%s: Azure imports no disk below %s", size(v), size(minDisk))
	}
	if padded := image.PaddedSize(v); padded != v {
		r.add(s, "disk-alignment", control.CheckWarn, "none: its replica is padded with zeros", "%d bytes are no whole MiB: the replica has %s", v, size(padded))
	}
	r.readers(s, d)
	r.bootable(s, d)
}

// chain says what an image lies over, and if that is not all there which link is missing.
func (r *run) chain(s subject, d disk) {
	e := (*image.Error)(nil)
	switch {
	case errors.As(d.broken, &e) && e.Hint != "":
		r.add(s, "disk-chain", control.CheckFail, e.Hint, "%v", d.broken)
	case d.broken != nil:
		r.add(s, "disk-chain", control.CheckFail, "repair or replace the parent", "%v", d.broken)
	case d.chain != nil:
		r.add(s, "disk-chain", control.CheckPass, "", "%s", strings.Join(d.chain, " over "))
	}
}

// below tells whether another image that is looked at lies over the disk's.
func (r *run) below(d disk) bool {
	for _, o := range r.all {
		if o.path != d.path && o.source == d.source && slices.Contains(o.chain, d.rel) {
			return true
		}
	}
	return false
}

// readers names who will not take the disk, or a copy of it, for what it is.
func (r *run) readers(s subject, d disk) {
	v := d.info.VirtualSize
	if v > maxHyperV {
		r.add(s, "disk-hyperv", control.CheckWarn, "none for Azure; for Hyper-V export it with --format vhdx", "%s: Hyper-V opens a VHD of at most %s", size(v), size(maxHyperV))
	}
	if d.sector == sector4K {
		r.add(s, "disk-sectors", control.CheckWarn, "give the guest a disk of 512-byte sectors and copy the file systems, before you rely on a failover",
			"sectors of 4096 bytes: a VHD has 512, so a machine that gets the replica does not find the partitions")
	}
	if q := d.info.QEMUSize; q != 0 {
		r.add(s, "disk-geometry", control.CheckWarn, "let no qemu before 10 open the image, or open it with force_size=on", "qemu before 10 takes the geometry, %d bytes, for the size, which is %d; the replica says what all understand", q, v)
	}
}

// bootable holds a disk that a machine boots from against what Azure boots.
func (r *run) bootable(s subject, d disk) {
	v := d.info.VirtualSize
	switch {
	case d.boot == bootUEFI && v > maxOSDisk:
		r.add(s, "disk-os", control.CheckFail, "shrink it, or boot from another disk", "%s: Azure boots from at most %s", size(v), size(maxOSDisk))
	case d.boot == bootBIOS && v > maxMBR:
		r.add(s, "disk-os", control.CheckFail, "convert it to GPT, or shrink it", "%s with an MBR: only %s can be used to boot", size(v), size(maxMBR))
	}
}
