package preflight

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/fs"
)

// The kernels: README has the table.
var (
	kernelAll   = [2]int{6, 6} // shared mmap of images
	kernelLeast = [2]int{6, 1} // tested
)

// minFiles is how many descriptors the appliance should be allowed: a few for every open disk.
const minFiles = 4096

// capabilities are what serving needs, by number (capabilities(7)).
var capabilities = []struct {
	bit  int
	name string
}{{0, "CAP_CHOWN"}, {1, "CAP_DAC_OVERRIDE"}, {3, "CAP_FOWNER"}, {21, "CAP_SYS_ADMIN"}}

func (r *run) host() {
	r.kernel()
	r.fuse()
	r.permissions()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err == nil && limit.Max < minFiles {
		r.warn("files", "raise LimitNOFILE of the service to "+strconv.Itoa(minFiles), "a process may open %d files", limit.Max)
	}
}

func (r *run) kernel() {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		r.warn("kernel", "look at uname -r", "the kernel does not say its version: %v", err)
		return
	}
	release := unix.ByteSliceToString(u.Release[:])
	switch v, ok := kernelVersion(release); {
	case !ok:
		r.warn("kernel", "use a release kernel", "version %q is not understood", release)
	case less(v, kernelLeast):
		r.fail("kernel", "boot a kernel of 6.1 or later", "%s is too old", release)
	case less(v, kernelAll):
		r.warn("kernel", "none, unless a VM maps its disks shared: then boot 6.6 or later", "%s has no shared mmap of disk images", release)
	default:
		r.pass("kernel", "%s", release)
	}
}

// kernelVersion takes 6.18 out of 6.18.5-amd64.
func kernelVersion(release string) (v [2]int, ok bool) {
	parts := strings.FieldsFunc(release, func(c rune) bool { return c < '0' || c > '9' })
	if len(parts) < 2 {
		return v, false
	}
	for i := range v {
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

func less(a, b [2]int) bool { return slices.Compare(a[:], b[:]) < 0 }

func (r *run) fuse() {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		r.fail("fuse", "run: modprobe fuse; in a container, pass /dev/fuse in", "FUSE is not to be had: %v", err)
		return
	}
	_ = f.Close() // nothing was done with it
	r.pass("fuse", "/dev/fuse opens")
}

func (r *run) permissions() {
	effective, err := effectiveCapabilities()
	if err != nil {
		r.warn("permissions", "run it as root", "capabilities cannot be read: %v", err)
		return
	}
	var missing []string
	for _, c := range capabilities {
		if effective&(1<<c.bit) == 0 {
			missing = append(missing, c.name)
		}
	}
	if len(missing) > 0 {
		r.fail("permissions", "run it as root, as the unit does", "stores cannot be mounted and served without %s", strings.Join(missing, ", "))
		return
	}
	r.pass("permissions", "mounting and serving are allowed")
}

func effectiveCapabilities() (uint64, error) {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if hex, ok := strings.CutPrefix(lines.Text(), "CapEff:"); ok {
			return strconv.ParseUint(strings.TrimSpace(hex), 16, 64)
		}
	}
	return 0, errors.New("/proc/self/status has no CapEff")
}

func (r *run) stores() {
	for _, s := range r.Config.Stores {
		r.source(s)
		r.mount(s)
	}
}

// source wants a directory that nobody else gets at and whose file system keeps extended attributes: without them a marker
// file beside the image has to do.
func (r *run) source(s config.Store) {
	info, err := os.Stat(s.Source)
	switch {
	case err != nil:
		r.fail("source", "create it, or correct stores."+s.Name+".source", "store %s: %v", s.Name, err)
		return
	case !info.IsDir():
		r.fail("source", "correct stores."+s.Name+".source", "store %s: %s is no directory", s.Name, s.Source)
		return
	case reachable(s.Source):
		r.warn("source", "move it below a directory of mode 0700; its own mode is the mount's too",
			"store %s: others may enter %s and change disks beside the mount", s.Name, s.Source)
	default:
		r.pass("source", "store %s: %s", s.Name, s.Source)
	}
	r.clients(s, info)
	if err := tryAttribute(s.Source); err != nil {
		r.warn("attributes", "use a file system with user attributes, such as ext4 or xfs",
			"store %s: no extended attributes, marker files beside the images have to do: %v", s.Name, err)
	}
}

// reachable tells whether others than root may enter a directory, through all that lie above it.
func reachable(dir string) bool {
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil || info.Mode().Perm()&0o011 == 0 {
			return false
		}
		if dir == filepath.Dir(dir) {
			return true
		}
	}
}

// hypervisors are the users that VM managers run qemu as: Debian's and Red Hat's libvirt.
var hypervisors = []string{"libvirt-qemu", "qemu"}

// clients warns of a mount that a hypervisor cannot enter: the mode of the source's root is the mount's too, and the kernel
// keeps to it.
func (r *run) clients(s config.Store, source os.FileInfo) {
	if source.Mode().Perm()&0o001 != 0 {
		return
	}
	sys, ok := source.Sys().(*syscall.Stat_t)
	for _, name := range hypervisors {
		id, known := r.User(name)
		if !known || ok && int(sys.Uid) == id {
			continue
		}
		r.warn("mount-mode", "chmod 0711 "+s.Source+", and keep others out by the mode of "+filepath.Dir(filepath.Clean(s.Source))+"; none, if every VM runs as root",
			"store %s: %s has mode %#o, and so has %s: VMs that run as %s cannot open their disks there", s.Name, s.Source, source.Mode().Perm(), s.Mount, name)
		return
	}
}

// lookUp finds a user in the host's database.
func lookUp(name string) (id int, known bool) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, false
	}
	id, err = strconv.Atoi(u.Uid)
	return id, err == nil
}

func tryAttribute(dir string) error {
	const name = "user.vhdrelay.preflight"
	if err := unix.Setxattr(dir, name, []byte{1}, 0); err != nil {
		return err
	}
	return unix.Removexattr(dir, name)
}

func (r *run) mount(s config.Store) {
	if slices.Contains(r.Served, s.Mount) {
		r.pass("mount", "store %s: served at %s", s.Name, s.Mount)
		return
	}
	if _, err := fs.Dead(s.Mount); errors.Is(err, fs.ErrSilent) {
		r.fail("mount", "start vhdrelay where its connection is kept: systemctl start vhdrelay", "store %s: %v", s.Name, err)
		return
	}
	entries, err := os.ReadDir(s.Mount)
	switch {
	case errors.Is(err, os.ErrNotExist):
		r.fail("mount", "mkdir -p "+s.Mount, "store %s: %s does not exist", s.Name, s.Mount)
	case errors.Is(err, unix.ENOTCONN):
		r.warn("mount", "none: the start takes it away", "store %s: a dead mount lies on %s", s.Name, s.Mount)
	case err != nil:
		r.fail("mount", "look at the mount point", "store %s: %v", s.Name, err)
	case len(entries) > 0:
		r.fail("mount", "choose an empty directory, or move what is there to "+s.Source,
			"store %s: %s is not empty: it holds %q%s", s.Name, s.Mount, entries[0].Name(), more(len(entries)-1))
	case filepath.Clean(s.Mount) == filepath.Clean(s.Source):
		r.fail("mount", "choose another directory", "store %s: source and mount are the same", s.Name)
	default:
		r.pass("mount", "store %s: %s is empty", s.Name, s.Mount)
	}
}

func more(n int) string {
	if n <= 0 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n)
}
