package appliance

import (
	"path"
	"strings"

	"github.com/vhdrelay/vhdrelay/appliance/config"
)

// belongs tells which VM an image is a disk of, by its path relative to the
// store's source. The config's VMs come first, in their order; then a directory of
// the store is one VM with everything below it, and an image at the root is a VM
// of its own, named like the file.
func belongs(store config.Store, image string) (vm, disk string, ok bool) {
	for _, v := range store.VMs {
		if matchesVM(v, image) {
			return v.Name, diskName(v.Name, image), true
		}
		if len(v.Disks) == 0 && strings.HasPrefix(image, v.Name+"/") {
			return "", "", false // excluded
		}
	}
	dir, rest, nested := strings.Cut(image, "/")
	if !nested {
		return image, image, true
	}
	return dir, rest, true
}

func matchesVM(v config.VM, image string) bool {
	for _, glob := range v.Exclude {
		if globMatches(glob, image, v.Name) {
			return false
		}
	}
	if len(v.Disks) == 0 {
		return strings.HasPrefix(image, v.Name+"/")
	}
	for _, glob := range v.Disks {
		if globMatches(glob, image, v.Name) {
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
