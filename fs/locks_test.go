package fs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// lockKinds are the three kinds of locks there are: by process, by open file description and range, by open file
// description. try fails where wait would wait; both lock the bytes from off on, flock the file.
var lockKinds = map[string]struct{ try, wait, free func(fd int, off int64) error }{
	"posix": {rangeLock(unix.F_SETLK, unix.F_WRLCK), rangeLock(unix.F_SETLKW, unix.F_WRLCK), rangeLock(unix.F_SETLK, unix.F_UNLCK)},
	"ofd":   {rangeLock(unix.F_OFD_SETLK, unix.F_WRLCK), rangeLock(unix.F_OFD_SETLKW, unix.F_WRLCK), rangeLock(unix.F_OFD_SETLK, unix.F_UNLCK)},
	"flock": {fileLock(unix.LOCK_EX | unix.LOCK_NB), fileLock(unix.LOCK_EX), fileLock(unix.LOCK_UN)},
}

const lockedBytes = 100

func rangeLock(cmd int, kind int16) func(int, int64) error {
	return func(fd int, off int64) error {
		for {
			err := unix.FcntlFlock(uintptr(fd), cmd, &unix.Flock_t{Type: kind, Start: off, Len: lockedBytes})
			if err != unix.EINTR {
				return err
			}
		}
	}
}

func fileLock(how int) func(int, int64) error {
	return func(fd int, _ int64) error {
		for {
			if err := unix.Flock(fd, how); err != unix.EINTR {
				return err
			}
		}
	}
}

// childLock opens args[1] and does what each line says with locks of the kind args[0]: "try 0", "wait 0", "free 0". It
// answers with a line each.
func childLock(args []string) error {
	f, err := os.OpenFile(args[1], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	kind := lockKinds[args[0]]
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, number, _ := strings.Cut(lines.Text(), " ")
		off, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return err
		}
		do := map[string]func(int, int64) error{"try": kind.try, "wait": kind.wait, "free": kind.free}[verb]
		if err := do(int(f.Fd()), off); errors.Is(err, unix.EAGAIN) {
			fmt.Println("held by another")
		} else if err != nil {
			return err
		} else {
			fmt.Println("done")
		}
	}
	return lines.Err()
}

// locker is the other process.
type locker struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func startLocker(t *testing.T, kind, name string) *locker {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := &locker{t: t, cmd: exec.Command(exe, kind, name)}
	l.cmd.Env = append(os.Environ(), childEnv+"=lock")
	l.cmd.Stderr = os.Stderr
	in, err := l.cmd.StdinPipe()
	out, err2 := l.cmd.StdoutPipe()
	if err := errors.Join(err, err2, l.cmd.Start()); err != nil {
		t.Fatal(err)
	}
	l.in, l.out = in, bufio.NewReader(out)
	t.Cleanup(l.kill)
	return l
}

func (l *locker) kill() {
	l.cmd.Process.Kill()
	l.cmd.Wait()
}

func (l *locker) say(command string) {
	l.t.Helper()
	if _, err := fmt.Fprintln(l.in, command); err != nil {
		l.t.Fatal(err)
	}
}

func (l *locker) want(answer string) {
	l.t.Helper()
	if got, err := l.out.ReadString('\n'); strings.TrimSpace(got) != answer {
		l.t.Errorf("%q, %v, want %q", got, err, answer)
	}
}

// TestLocksBetweenProcesses: a lock at the mount keeps another process out, lets it in when it is free, and ends with
// the process that has it. libvirt and QEMU rely on each kind.
func TestLocksBetweenProcesses(t *testing.T) {
	m := newTestStore(t)
	for _, name := range []string{"disk.vhd", "note"} {
		mustWrite(t, m.path(name), make([]byte, 4*lockedBytes))
		for kind, lock := range lockKinds {
			t.Run(kind+" "+name, func(t *testing.T) {
				f := open(t, m.path(name), os.O_RDWR)
				fd := int(f.Fd())
				other := startLocker(t, kind, m.path(name))
				if err := lock.try(fd, 0); err != nil {
					t.Fatal(err)
				}
				other.say("try 0")
				other.want("held by another")
				if kind != "flock" {
					other.say(fmt.Sprintf("try %d", lockedBytes))
					other.want("done")
				}
				other.say("wait 0")
				if err := lock.free(fd, 0); err != nil {
					t.Fatal(err)
				}
				other.want("done")
				wantErrno(t, "try", lock.try(fd, 0), unix.EAGAIN)
				other.kill()
				if err := lock.wait(fd, 0); err != nil {
					t.Errorf("after the other one's death: %v", err)
				}
			})
		}
	}
}
