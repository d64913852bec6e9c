package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// keeperEnv names the directory of a keeper; set, this program is one.
const keeperEnv = "VHDRELAY_KEEPER"

// Keeper must be called first in the main function of every program that uses Options.Keeper. Where the program was started
// as a keeper it is one until it is told to stop (is), and the program exits with code.
//
// A keeper does for the appliance what a service manager does: it keeps its descriptors (FDSTORE=1), hands them to the next
// process, and starts that when one ends. It is a process of its own, because what waits for an answer of a mount cannot
// be killed, and must not be what has the mount's connection open.
func Keeper() (code int, is bool) {
	dir := os.Getenv(keeperEnv)
	if dir == "" {
		return 0, false
	}
	k := &keeper{dir: dir}
	code, err := k.run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "keeper:", err)
	}
	return code, true
}

type keeper struct {
	dir string
	mu  struct {
		sync.Mutex
		names []string
		files []*os.File
		pid   int
	}
}

// restartPause keeps a process that ends at once from taking the machine.
const restartPause = 50 * time.Millisecond

func (k *keeper) run(args []string) (code int, err error) {
	runtime.LockOSThread() // the children end with this thread
	socket := filepath.Join(k.dir, "notify")
	_ = os.Remove(socket)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return 1, err
	}
	go k.listen(conn)
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM)
	for {
		cmd, err := k.start(args, socket)
		if err != nil {
			return 1, err
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err := k.note(exitCode(err)); err != nil {
				return 1, err
			}
			time.Sleep(restartPause)
		case <-stop:
			_ = cmd.Process.Signal(unix.SIGTERM)
			return exitCode(<-ended), nil
		}
	}
}

// note keeps how a process ended: a line each.
func (k *keeper) note(code int) error {
	f, err := os.OpenFile(filepath.Join(k.dir, "exits"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, code)
	return errors.Join(err, f.Close())
}

func exitCode(err error) int {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	return 1
}

// start starts the next process with what is kept. The shell is there to name the process itself in LISTEN_PID.
func (k *keeper) start(args []string, socket string) (*exec.Cmd, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$0" "$@"`}, args...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, keeperEnv+"=") {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET="+socket, "PATH="+filepath.Join(k.dir, "bin")+":"+os.Getenv("PATH"))
	if len(k.mu.files) > 0 {
		cmd.ExtraFiles = k.mu.files
		cmd.Env = append(cmd.Env, "LISTEN_FDS="+strconv.Itoa(len(k.mu.files)), "LISTEN_FDNAMES="+strings.Join(k.mu.names, ":"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	file := filepath.Join(k.dir, "pid")
	err := os.WriteFile(file+".new", []byte(strconv.Itoa(cmd.Process.Pid)), 0o600)
	return cmd, errors.Join(err, os.Rename(file+".new", file))
}

// listen does what the messages of the processes ask for.
func (k *keeper) listen(conn *net.UnixConn) {
	msg, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, m, _, _, err := conn.ReadMsgUnix(msg, oob)
		if err != nil {
			fmt.Fprintln(os.Stderr, "keeper:", err)
			return
		}
		k.handle(string(msg[:n]), descriptors(oob[:m]))
	}
}

func descriptors(oob []byte) (files []*os.File) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range all {
		fds, err := unix.ParseUnixRights(&all[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	return files
}

func (k *keeper) handle(msg string, files []*os.File) {
	var name string
	var store, remove bool
	for line := range strings.Lines(msg) {
		line = strings.TrimSpace(line)
		if v, ok := strings.CutPrefix(line, "FDNAME="); ok {
			name = v
		}
		store, remove = store || line == "FDSTORE=1", remove || line == "FDSTOREREMOVE=1"
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, f := range files {
		if !store { // a barrier: it wants to be closed
			f.Close()
			continue
		}
		k.mu.names, k.mu.files = append(k.mu.names, name), append(k.mu.files, f)
	}
	for i := len(k.mu.names) - 1; remove && i >= 0; i-- {
		if k.mu.names[i] == name {
			k.mu.files[i].Close()
			k.mu.names, k.mu.files = append(k.mu.names[:i:i], k.mu.names[i+1:]...), append(k.mu.files[:i:i], k.mu.files[i+1:]...)
		}
	}
}

// keep makes what a keeper needs: its directory, and a systemctl that knows whether the stop is one for good.
func (r *Rig) keep() (env []string, err error) {
	dir := filepath.Join(r.Dir, "keeper")
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o700); err != nil {
		return nil, err
	}
	_ = os.Remove(filepath.Join(dir, "stopping"))
	_ = os.Remove(filepath.Join(dir, "pid"))
	if err := r.Install(r.Binary); err != nil {
		return nil, err
	}
	script := "#!/bin/sh\nfor unit; do :; done\nif test -e " + filepath.Join(dir, "stopping") + "; then echo 7 $unit stop running; else echo 7 $unit restart running; fi\n"
	return []string{keeperEnv + "=" + dir}, os.WriteFile(filepath.Join(dir, "bin", "systemctl"), []byte(script), 0o700)
}

// installed is where a keeper finds the appliance.
func (r *Rig) installed() string { return filepath.Join(r.Dir, "keeper", "vhdrelay") }

// Install puts another appliance in place of the one that runs, as an upgrade does: the keeper's next start, and every command
// from now on, is of that one.
func (r *Rig) Install(binary string) error {
	r.Binary = binary
	_ = os.Remove(r.installed() + ".new")
	if err := os.Symlink(binary, r.installed()+".new"); err != nil {
		return err
	}
	return os.Rename(r.installed()+".new", r.installed())
}

// Exits are the codes with which processes ended that a keeper followed up, the newest last; 1 stands for a signal's.
func (r *Rig) Exits() (codes []int, err error) {
	text, err := os.ReadFile(filepath.Join(r.Dir, "keeper", "exits"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for line := range strings.Lines(string(text)) {
		code, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			return nil, err
		}
		codes = append(codes, code)
	}
	return codes, err
}

// Followed waits until another process than pid serves and answers its operator.
func (r *Rig) Followed(ctx context.Context, pid int) error {
	return r.Await(ctx, "the next process", func() (bool, error) {
		if r.Pid() == pid {
			return false, nil
		}
		_, err := r.Status(ctx)
		return err == nil, nil
	})
}

// Serves says whether the process that serves is the installed one.
func (r *Rig) Serves() bool {
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", r.Pid()))
	return err == nil && exe == r.Binary
}

// served is the process that serves, under a keeper; 0 if none was started yet.
func (r *Rig) served() int {
	text, err := os.ReadFile(filepath.Join(r.Dir, "keeper", "pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(string(text))
	return pid
}

// Signal sends a signal to the process that serves; under a keeper another one comes after its end.
func (r *Rig) Signal(sig unix.Signal) error { return unix.Kill(r.Pid(), sig) }
