package fs

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Holder is a process that keeps a mount busy.
type Holder struct {
	PID  int
	Path string // below the mount, "." for the mount itself
}

// Holders lists the processes that have files open below a mount, or their working directory there. It reads links in
// /proc and asks nothing of the mount. Users in the kernel (loop devices, NFS) and processes that see the mount under
// another path are not found.
func Holders(mount string) ([]Holder, error) {
	mount, err := resolveDead(mount)
	if err != nil {
		return nil, err
	}
	all, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var found []Holder
	for _, p := range all {
		pid, err := strconv.Atoi(p.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		for _, path := range openBelow(filepath.Join("/proc", p.Name()), mount) {
			found = append(found, Holder{PID: pid, Path: path})
		}
	}
	return found, nil
}

// openBelow lists what a process holds below dir, each path once.
func openBelow(proc, dir string) []string {
	links := []string{filepath.Join(proc, "cwd")}
	fds, _ := os.ReadDir(filepath.Join(proc, "fd")) // it may have ended
	for _, fd := range fds {
		links = append(links, filepath.Join(proc, "fd", fd.Name()))
	}
	var paths []string
	for _, link := range links {
		to, err := os.Readlink(link)
		if err != nil || !within(to, dir) {
			continue
		}
		rel := strings.TrimPrefix(strings.TrimPrefix(to, dir), "/")
		if rel == "" {
			rel = "."
		}
		if !slices.Contains(paths, rel) {
			paths = append(paths, rel)
		}
	}
	return paths
}
