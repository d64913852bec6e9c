package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// SocketMode is the mode of the control socket: whoever may open it may do everything.
const SocketMode fs.FileMode = 0o600

// dialTimeout bounds the question whether anybody answers on a socket. On this machine the answer is immediate, or the
// other side's queue is full, which is an answer too.
const dialTimeout = 5 * time.Second

// listener removes its socket and gives up its lock when it is closed.
type listener struct {
	*net.UnixListener
	path string
	lock *os.File
}

// Listen opens the control socket at path. It returns an *Error with CodeRunning if another appliance has it, and replaces
// the socket file that a dead one left. Between the two stands a lock file, path.lock, so that two appliances that start
// together cannot both find the same stale socket; a dial before replacing respects whoever listens without the lock.
func Listen(path string) (net.Listener, error) {
	lock, err := lockFile(path + ".lock")
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, running(path)
	}
	if err != nil {
		return nil, fmt.Errorf("locking the control socket: %w", err)
	}
	ln, err := bind(path)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &listener{UnixListener: ln, path: path, lock: lock}, nil
}

func running(path string) *Error {
	return Refused(CodeRunning, "stop the other one first, or give this one its own control_socket and state_dir",
		"another appliance%s answers on %s", holder(path), path)
}

// holder names the process that has the socket's lock, as " (pid 123)"; "" if it left no word.
func holder(path string) string {
	raw, err := os.ReadFile(path + ".lock")
	if pid := strings.TrimSpace(string(raw)); err == nil && pid != "" {
		return " (pid " + pid + ")"
	}
	return ""
}

func lockFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	// For whoever is refused; the lock counts, not what is written here.
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	if err = errors.Join(err, f.Truncate(int64(len(strconv.Itoa(os.Getpid()))+1))); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// bind makes the socket inside a directory that nobody else may enter and renames it into place once its mode is right: a
// chmod after a bind in the open would leave a moment for others to connect.
func bind(path string) (*net.UnixListener, error) {
	if err := stale(path); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(filepath.Dir(path), ".c")
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	defer os.RemoveAll(dir)
	temporary := filepath.Join(dir, "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(temporary, SocketMode), os.Rename(temporary, path)); err != nil {
		ln.Close()
		return nil, fmt.Errorf("opening the control socket: %w", err)
	}
	return ln, nil
}

// stale returns nil if path is free or is a socket on which nobody answers.
func stale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("opening the control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("opening the control socket: %s exists and is no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, dialTimeout)
	if err == nil {
		conn.Close()
		return running(path)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return fmt.Errorf("asking who listens on %s: %w", path, err)
}

// Close stops listening and removes the socket. The lock file stays: removing it would let two processes lock two files.
func (l *listener) Close() error {
	if l.lock == nil {
		return nil
	}
	err := errors.Join(ignoreAbsent(os.Remove(l.path)), l.UnixListener.Close(), l.lock.Close())
	l.lock = nil
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
