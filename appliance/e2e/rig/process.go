package rig

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is one run of a program.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has been waited for, with err set
	err  error
}

// start runs a program in the background, both outputs appended to a log file; more are its file descriptors from 3 on.
func start(logFile string, env []string, more []*os.File, binary string, args ...string) (*process, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s start %v\n", time.Now().UTC().Format(time.RFC3339Nano), args)
	p := &process{cmd: exec.Command(binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env, p.cmd.ExtraFiles = log, log, env, more
	// A group of its own: an interrupt of the terminal is for the harness, which ends the appliance in its own order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

var errStays = errors.New("the process does not end")

// end sends a signal and waits; nil, and one that has ended, is no error.
func (p *process) end(sig unix.Signal, within time.Duration) error {
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%v: %w", sig, err)
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("%w: %v after %v", errStays, sig, within)
	}
}

// quit makes a Go program print its goroutines into its log; it ends of that.
func (p *process) quit() { _ = p.end(unix.SIGQUIT, killTimeout) }
