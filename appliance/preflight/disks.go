package preflight

import (
	"cmp"
	"encoding/binary"
	"errors"
	"io"
	iofs "io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image"
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
)

// disk is one image of a store.
type disk struct {
	vm, name  string
	path      string // in the file system
	info      image.Info
	err       error // why it cannot be protected as it is
	allocated int64 // bytes of the file that are not holes
	boot      boot
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
			d := disk{vm: vm, name: name, path: path}
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
	d.info, d.err = image.Probe(d.path, f, st.Size())
	d.allocated = st.Size()
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		d.allocated = min(st.Size(), sys.Blocks*512)
	}
	if d.err == nil {
		d.boot = bootOf(f)
	}
}

// missing is how many bytes of a disk have to be sent.
func (r *run) missing(d disk) int64 {
	if d.err != nil {
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
	switch {
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
	r.bootable(s, d)
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

// boot is how a machine would boot from a disk: a hint, no more.
type boot string

const (
	bootNone boot = ""
	bootUEFI boot = ", boots by UEFI: a generation 2 VM"
	bootBIOS boot = ", boots by BIOS: a generation 1 VM"
)

// Of the GUID partition table (UEFI 2.10, chapter 5) and the MBR.
const (
	sector       = 512
	mbrSignature = 0xaa55
	mbrEntries   = 446
	mbrActive    = 0x80
	gptMagic     = "EFI PART"
	gptMost      = 128 // entries that are looked at
)

// espType is the type of an EFI system partition, C12A7328-F81F-11D2-BA4B-00A0C93EC93B, as it lies on disk.
var espType = []byte{0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b}

// bootOf reads the partition tables of a raw or fixed image. What it cannot read it does not guess at.
func bootOf(r io.ReaderAt) boot {
	head := make([]byte, 2*sector)
	if _, err := r.ReadAt(head, 0); err != nil {
		return bootNone
	}
	if binary.LittleEndian.Uint16(head[510:]) != mbrSignature {
		return bootNone
	}
	if string(head[sector:sector+len(gptMagic)]) == gptMagic {
		return bootOfGPT(r, head[sector:])
	}
	for i := range 4 {
		if head[mbrEntries+16*i] == mbrActive {
			return bootBIOS
		}
	}
	return bootNone
}

func bootOfGPT(r io.ReaderAt, header []byte) boot {
	first := int64(binary.LittleEndian.Uint64(header[72:]))
	count, each := binary.LittleEndian.Uint32(header[80:]), int64(binary.LittleEndian.Uint32(header[84:]))
	if each < 128 || each > 4096 || first < 2 || first > 1<<40 {
		return bootNone
	}
	entry := make([]byte, len(espType))
	for i := range int64(min(count, gptMost)) {
		if _, err := r.ReadAt(entry, first*sector+i*each); err != nil {
			return bootNone
		}
		if slices.Equal(entry, espType) {
			return bootUEFI
		}
	}
	return bootNone
}
