package appliance

import (
	"path"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/config"
)

// belongs tells which VM an image is a disk of, by its path relative to the
// store's source. The config's VMs come first, in their order; then a directory of
// the store is one VM with everything below it, and an image at the root is a VM
// of its own, named like the file. Not ok: the config leaves the image out, with
// exclude, or because it lists the disks of the VM that the directory would be.
func belongs(store config.Store, image string) (vm, disk string, ok bool) {
	for _, v := range store.VMs {
		if selects(v, image) {
			return v.Name, diskName(v.Name, image), !excludes(v, image)
		}
	}
	dir, rest, nested := strings.Cut(image, "/")
	if !nested {
		dir, rest = image, image
	}
	for _, v := range store.VMs {
		if v.Name == dir {
			return v.Name, rest, false
		}
	}
	return dir, rest, true
}

// selects tells whether the config puts the image to v, exclude aside.
func selects(v config.VM, image string) bool {
	if len(v.Disks) == 0 {
		return image == v.Name || strings.HasPrefix(image, v.Name+"/")
	}
	return anyMatches(v.Disks, image, v.Name)
}

func excludes(v config.VM, image string) bool { return anyMatches(v.Exclude, image, v.Name) }

func anyMatches(globs []string, image, vm string) bool {
	for _, glob := range globs {
		if globMatches(glob, image, vm) {
			return true
		}
	}
	return false
}

// globMatches takes globs relative to the source, and to the VM's own directory.
func globMatches(glob, image, vm string) bool {
	if ok, err := path.Match(glob, image); err == nil && ok {
		return true
	}
	rest, below := strings.CutPrefix(image, vm+"/")
	ok, err := path.Match(glob, rest)
	return below && err == nil && ok
}

// diskName is the disk's path relative to its VM.
func diskName(vm, image string) string {
	if rest, below := strings.CutPrefix(image, vm+"/"); below {
		return rest
	}
	return image
}
