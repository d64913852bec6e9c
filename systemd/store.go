package systemd

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// Stored returns what an earlier process of the unit gave to Store, by name, and what the manager passed otherwise. Call it
// once, before anything else opens files for children.
func Stored() map[string]*os.File {
	all := map[string]*os.File{}
	for _, f := range activation.Files(true) {
		all[f.Name()] = f
	}
	return all
}

// barrierWithin bounds how long the manager may take to say that it has what was sent.
const barrierWithin = 5 * time.Second

// Store has the manager keep a duplicate of f for the next process of the unit (FDSTORE=1), and returns when it has it.
// Without a manager it is ErrNoManager. A unit without FileDescriptorStoreMax= throws it away in silence.
//
// The manager does not poll it (FDPOLL=0): it would be woken for every request of a guest. So one whose other end is gone
// stays until Unstore.
func (n *Notifier) Store(name string, f *os.File) error {
	if n == nil || n.send == nil {
		return ErrNoManager
	}
	if err := sendFile("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, f); err != nil {
		return fmt.Errorf("giving %s to systemd: %w", name, err)
	}
	return n.Barrier()
}

// Unstore has the manager forget what is stored under name.
func (n *Notifier) Unstore(name string) error { return n.notify("FDSTOREREMOVE=1\nFDNAME=" + name) }

// Barrier returns when the manager has read everything sent before (sd_notify_barrier(3)): it closes what it is sent. Without a
// manager it returns at once.
func (n *Notifier) Barrier() error {
	if !n.Manages() {
		return nil
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	err = sendFile("BARRIER=1", w)
	w.Close()
	if err != nil {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	if err := r.SetReadDeadline(time.Now().Add(barrierWithin)); err != nil {
		return err
	}
	if _, err := r.Read(make([]byte, 1)); os.IsTimeout(err) {
		return fmt.Errorf("waiting for systemd: %w", err)
	}
	return nil
}

// sendFile sends a message with a descriptor to the manager's socket.
func sendFile(state string, f *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendmsg(fd, []byte(state), unix.UnixRights(int(f.Fd())), &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}, 0)
}

// Ends says whether the manager wants the unit to stop for good, as opposed to a restart, or to a signal that somebody sent.
// False if that cannot be said.
func Ends() bool {
	unit := ownUnit("/proc/self/cgroup")
	jobs, err := exec.Command("systemctl", "--no-pager", "--no-legend", "--plain", "list-jobs", unit).Output()
	return err == nil && stops(string(jobs), unit)
}

// stops reads a list of jobs: number, unit, type, state.
func stops(jobs, unit string) bool {
	for line := range strings.Lines(jobs) {
		f := strings.Fields(line)
		if len(f) >= 3 && f[1] == unit && f[2] == "stop" {
			return true
		}
	}
	return false
}

// ownUnit is the service this process is of; UnitName if that does not show.
func ownUnit(cgroup string) string {
	text, err := os.ReadFile(cgroup)
	if err != nil {
		return UnitName
	}
	for line := range strings.Lines(string(text)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) == 3 && strings.HasSuffix(parts[2], ".service") {
			return path.Base(parts[2])
		}
	}
	return UnitName
}
