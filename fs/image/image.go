package image

import (
	"path"
	"strings"
	"time"
)

// FileOffset is a byte offset in an image file.
type FileOffset int64

// DiskOffset is a byte offset in the virtual disk a guest sees.
type DiskOffset int64

// Format names an image format as status and records spell it.
type Format string

// The formats of disk images.
const (
	Raw              Format = "raw"
	VHDFixed         Format = "vhd-fixed"
	VHDDynamic       Format = "vhd-dynamic"
	VHDDifferencing  Format = "vhd-differencing"
	VHDXFixed        Format = "vhdx-fixed"
	VHDXDynamic      Format = "vhdx-dynamic"
	VHDXDifferencing Format = "vhdx-differencing"
)

// Formats that are recognised so that they can be refused by name. VHDX stands for a VHDX whose metadata could not be
// read far enough to say which kind it is.
const (
	VHDX  Format = "vhdx"
	QCOW2 Format = "qcow2"
	VMDK  Format = "vmdk"
	VDI   Format = "vdi"
)

// Translated says whether an image of this format has a block table: which block of the disk lies where in the file changes.
func (f Format) Translated() bool {
	switch f {
	case VHDDynamic, VHDDifferencing, VHDXFixed, VHDXDynamic, VHDXDifferencing:
		return true
	}
	return false
}

// Geometry is the CHS geometry of a VHD footer. It is never the size of the disk.
type Geometry struct {
	Cylinders uint16
	Heads     uint8
	Sectors   uint8 // per track
}

// Bytes is the capacity the geometry describes, in bytes.
func (g Geometry) Bytes() int64 {
	return int64(g.Cylinders) * int64(g.Heads) * int64(g.Sectors) * sectorSize
}

// Info is what Probe found out about an image file.
type Info struct {
	Format      Format
	FileSize    int64     // bytes of the file
	VirtualSize int64     // bytes of the virtual disk; 0 if the format is not protected
	ID          [16]byte  // unique id of a VHD, zero for other formats
	Geometry    Geometry  // of a VHD, informative
	Creator     string    // creator application of a VHD, as stored
	Created     time.Time // time stamp of a VHD's footer; zero for other formats
	// QEMUSize is what QEMU before 10 takes for the size of a VHD, if that is another than VirtualSize: its geometry.
	QEMUSize int64
	Notes    []string // oddities that do not prevent protection, one sentence each
}

var (
	imageNames       = []string{".vhd", ".vhdx", ".avhd", ".avhdx", ".img", ".raw"}
	unsupportedNames = []string{".qcow2", ".qcow", ".vmdk", ".vdi", ".qed", ".hdd"}
)

// IsImageName reports whether a file of this name is a disk of a store: .vhd, .vhdx, .avhd, .avhdx, .img or .raw in
// any case. Only the last element of name counts; a bare extension (".vhd") is no image.
func IsImageName(name string) bool { return hasExtension(name, imageNames) }

// IsUnsupportedName reports whether a file of this name is a disk image of a format that is served but never
// protected, so that status can warn about it.
func IsUnsupportedName(name string) bool { return hasExtension(name, unsupportedNames) }

func hasExtension(name string, extensions []string) bool {
	base := path.Base(name)
	ext := path.Ext(base)
	if ext == base {
		return false
	}
	for _, e := range extensions {
		if strings.EqualFold(ext, e) {
			return true
		}
	}
	return false
}
