package appliance

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
)

// Able says what this process lacks to mount a store, before anything is touched; nil
// if nothing. fuse is the device, /dev/fuse.
func Able(fuse string) error {
	if !capable(unix.CAP_SYS_ADMIN) {
		return control.Refused("needs-root", "run it as root, or by systemd: systemctl start vhdrelay", "mounting needs root (CAP_SYS_ADMIN); this is user %d", os.Geteuid())
	}
	f, err := os.OpenFile(fuse, os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return control.Refused("needs-fuse", "load the module: modprobe fuse; in a container, give it the device", "there is no %s (fusermount is not needed)", fuse)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return control.Refused("needs-fuse", "load the module: modprobe fuse", "the kernel has no FUSE: %v", err)
	}
	return control.Refused("needs-fuse", "allow the device to this service or container (DeviceAllow=/dev/fuse rw)", "%v", err)
}

// capable tells whether a capability is in force in this process.
func capable(which int) bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	return data[which/32].Effective&(1<<(which%32)) != 0
}

// checkSource refuses a source that is not what it seems.
func checkSource(conf config.Store) error {
	served, err := fs.Served(conf.Source)
	if err != nil {
		return fmt.Errorf("store %s: %w", conf.Name, err)
	}
	if served {
		return control.Refused("source-shadowed", "unmount it there, or correct stores.source in the config",
			"store %s: %s lies on the mount of a vhdrelay, not on the disks themselves", conf.Name, conf.Source)
	}
	nested, err := fs.MountsBelow(conf.Source)
	if err != nil {
		return fmt.Errorf("store %s: %w", conf.Name, err)
	}
	if len(nested) > 0 {
		return control.Refused("nested-mount", "mount it elsewhere, or make it the source of a store of its own",
			"store %s: something is mounted inside its source, at %s", conf.Name, strings.Join(nested, ", "))
	}
	return nil
}

// mountError says what to do about a store that cannot be mounted.
func mountError(conf config.Store, err error) error {
	e := &control.Error{Exit: control.ExitFailed, Err: err, Message: fmt.Sprintf("store %s: %v", conf.Name, err)}
	switch {
	case errors.Is(err, fs.ErrNewer):
		e.Exit, e.Code, e.Action = control.ExitRefused, "mount-newer", "install the newer vhdrelay again and start it: guests wait for it. Or stop the virtual machines, then: systemctl stop vhdrelay; umount "+conf.Mount+"; and start this one"
	case errors.Is(err, fs.ErrOther):
		e.Exit, e.Code, e.Action = control.ExitRefused, "mount-other", "undo the change of the store in the config while images are open: guests wait. Or stop the virtual machines, then: systemctl stop vhdrelay, and start it"
	case errors.Is(err, fs.ErrSilent):
		e.Exit, e.Code, e.Action = control.ExitRefused, "mount-waits", waitsAction(conf.Mount)
	case errors.Is(err, fs.ErrDamaged):
		e.Code, e.Action = "mount-damaged", "report it with the log. Guests have to be started anew: systemctl stop vhdrelay, and start it"
	case errors.Is(err, fs.ErrNested):
		e.Code, e.Action = "mount-nested", "give source and mount directories that do not contain each other, links followed"
	case errors.Is(err, fs.ErrMounted):
		e.Code, e.Action = "mount-taken", "unmount what is mounted at "+conf.Mount+", or correct stores.mount in the config"
	case errors.Is(err, fs.ErrNotEmpty):
		e.Code, e.Action = "mount-not-empty", "look what the files in "+conf.Mount+" are: a VM may have run beside the shim; move them away"
	case errors.Is(err, os.ErrNotExist):
		e.Code, e.Action = "mount-missing", "make the directory: mkdir "+conf.Mount
	default:
		e.Code, e.Action = "mount-failed", "see the cause; the kernel's log may say more: dmesg"
	}
	return e
}

// waitsAction is what to do about a mount whose guests wait.
func waitsAction(mount string) string {
	return "start vhdrelay where its connection is kept: systemctl start vhdrelay; or give its guests up: umount -f " + mount
}

// holder names the process that has a directory locked, as " (vhdrelay, pid 123)"; ""
// if the kernel does not say.
func holder(dir string) string {
	var st unix.Stat_t
	table, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Stat(dir, &st) != nil {
		return ""
	}
	pid := lockOwner(string(table), st.Dev, st.Ino)
	if pid <= 0 {
		return ""
	}
	return fmt.Sprintf(" (%s)", process(pid))
}

// lockOwner finds the owner of a flock in the text of /proc/locks, 0 if there is none:
//
//	1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF
func lockOwner(table string, dev, ino uint64) int {
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(dev), unix.Minor(dev), ino)
	for line := range strings.Lines(table) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil {
			return pid
		}
	}
	return 0
}

// process is a process for people: its name, as far as the kernel keeps it, and its id.
func process(pid int) string {
	name, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
	if err != nil {
		return fmt.Sprintf("pid %d, ended", pid)
	}
	return fmt.Sprintf("%s, pid %d", strings.TrimSpace(string(name)), pid)
}

// hostFaults is what is wrong around a store while it is served.
type hostFaults struct {
	nested    []string // places inside the source with something mounted on them
	shadowed  bool     // the source's path leads to another directory by now
	unmounted bool     // an operator took the mount away
}

func (f hostFaults) equal(g hostFaults) bool {
	return f.shadowed == g.shadowed && f.unmounted == g.unmounted && slices.Equal(f.nested, g.nested)
}

// look finds what has become wrong around the store since the last time.
func (s *store) look() {
	nested, err := fs.MountsBelow(s.conf.Source)
	if err != nil {
		nested = nil // the source is shadowed or gone, which shows below
	}
	faults := hostFaults{nested: nested, shadowed: !s.leadsToSource(), unmounted: s.isUnmounted()}
	s.mu.Lock()
	changed := !faults.equal(s.mu.host)
	s.mu.host = faults
	s.mu.Unlock()
	if !changed {
		return
	}
	for _, r := range s.hostReasons(faults) {
		s.log.Warn(r.Message, "code", r.Code, "action", r.Action)
	}
}

// leadsToSource tells whether the configured path is the directory that is served.
func (s *store) leadsToSource() bool {
	if s.lock == nil {
		return true
	}
	served, err := s.lock.Stat()
	if err != nil {
		return true
	}
	there, err := os.Stat(s.conf.Source)
	return err == nil && os.SameFile(served, there)
}

// isUnmounted tells whether the mount was taken away on demand.
func (s *store) isUnmounted() bool {
	if s.srv == nil || !s.leaving.Load() {
		return false
	}
	select {
	case <-s.srv.Done():
		return true
	default:
		return false
	}
}

// hostReasons is what the status says of a store's faults.
func (s *store) hostReasons(f hostFaults) []control.Reason {
	var all []control.Reason
	if f.unmounted {
		all = append(all, critical("store-unmounted", "restart vhdrelay to serve it again: systemctl restart vhdrelay", "store %s was unmounted with vhdrelay unmount", s.conf.Name))
	}
	if f.shadowed {
		all = append(all, critical("source-shadowed", "undo it, then restart vhdrelay", "store %s: %s is another directory now: it was moved, or something is mounted over it; new disks cannot be tracked", s.conf.Name, s.conf.Source))
	}
	if len(f.nested) > 0 {
		all = append(all, warning("nested-mount", "mount it elsewhere, or make it the source of a store of its own", "store %s: what is mounted inside its source is not served: %s", s.conf.Name, strings.Join(f.nested, ", ")))
	}
	return all
}

// hostReasonsLocked is what is wrong around the images of a VM.
func (s *store) hostReasonsLocked(vm string) []control.Reason {
	var reasons []control.Reason
	mine := false
	for _, a := range s.mu.images {
		mine = mine || a.vm.name == vm
	}
	to, moved := s.mu.moved[vm]
	if mine || moved {
		reasons = s.hostReasons(s.mu.host)
	}
	if moved && !mine {
		reasons = append(reasons, warning("vm-moved", "none, if it was meant: the points of "+vm+" stay. To keep a VM's replica over the renaming of its directory: stop vhdrelay, rename, name the VM and its disks in stores.vms, start",
			"its images were moved, to %s: they are another VM there and are replicated anew", to))
	}
	return append(append(reasons, s.foreignReasonsLocked(vm)...), s.app.configReasons()...)
}
