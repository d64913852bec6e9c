package guest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/guest/wire"
)

// Options say which machine to build. All but Memory are needed.
type Options struct {
	Dir     string // for root disk, sockets and logs
	Image   Image
	Payload string // ext4 labelled payload: the agent at its root, and what is to be installed
	Store   string // raw file with an ext4 labelled store, mounted at /srv
	Memory  int    // MiB, 1024
}

// Machine is a guest with its disks. Its root disk is a layer over the image that is the machine's own.
type Machine struct {
	Options
	disk *Disk
	qemu *process
	link *link
	boot string
}

// bootTimeout is long: the processor is emulated, and the machine may be busy.
const bootTimeout = 10 * time.Minute

// New makes the machine; Boot starts it.
func New(ctx context.Context, o Options) (*Machine, error) {
	if o.Memory == 0 {
		o.Memory = 1024
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{Options: o}
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", o.Image.Root, m.path("root.qcow2"))
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("qemu-img: %w\n%s", err, text)
	}
	return m, nil
}

func (m *Machine) path(name string) string { return filepath.Join(m.Dir, name) }

// SerialLog is where the kernel's console goes, of all boots.
func (m *Machine) SerialLog() string { return m.path("serial.log") }

// Boot starts qemu and returns when the agent says hello.
func (m *Machine) Boot(ctx context.Context) (err error) {
	if m.qemu != nil {
		return errors.New("the guest is running")
	}
	if m.disk, err = ServeDisk(m.Store, m.path("store.sock")); err != nil {
		return err
	}
	ln, err := net.Listen("unix", m.path("agent.sock"))
	if err != nil {
		return errors.Join(err, m.disk.Close())
	}
	defer ln.Close()
	if m.qemu, err = start(m.path("qemu.log"), m.args()); err != nil {
		return errors.Join(err, m.disk.Close())
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	if err = m.connect(ctx, ln); err == nil {
		m.boot, err = m.link.up(ctx, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("boot: %w, see %s", err, m.SerialLog()), m.Close())
	}
	return nil
}

// connect waits for qemu to open the agent's port.
func (m *Machine) connect(ctx context.Context, ln net.Listener) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	ended, qemu := make(chan struct{}), m.qemu
	defer close(ended)
	go func() {
		select {
		case <-qemu.done:
			ln.Close()
		case <-ended:
		}
	}()
	conn, err := ln.Accept()
	if err != nil {
		return fmt.Errorf("qemu does not start: %w, see %s", err, m.path("qemu.log"))
	}
	m.link = newLink(conn)
	return nil
}

// cpu is without cmpxchg16b: qemu 7.2 gets it wrong where it has no lock prefix, and kernels from 6.5 on allocate memory with it
// (a Debian kernel 6.12 panics within seconds).
const cpu = "max,cx16=off"

func (m *Machine) args() []string {
	return []string{
		"-name", "vhdrelay-guest", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", cpu, "-smp", "2", "-m", fmt.Sprint(m.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc,clock=host",
		"-kernel", m.Image.Kernel, "-initrd", m.Image.Initrd,
		"-append", "root=/dev/vda rw console=ttyS0 quiet loglevel=4 mitigations=off panic=1 systemd.show_status=0 net.ifnames=0",
		"-chardev", "file,id=serial,append=on,path=" + m.SerialLog(), "-serial", "chardev:serial",
		"-drive", "if=virtio,format=qcow2,cache=writeback,file=" + m.path("root.qcow2"),
		"-drive", "if=virtio,format=raw,readonly=on,file=" + m.Payload,
		"-drive", "if=virtio,format=raw,cache=writeback,file=nbd+unix:///?socket=" + m.path("store.sock"),
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=" + m.path("agent.sock"), "-device", "virtserialport,chardev=agent,name=agent",
		"-device", "virtio-rng-pci", "-nic", "user,model=virtio-net-pci",
	}
}

// Rebooted waits for the next boot of a guest that was told to reboot.
func (m *Machine) Rebooted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	boot, err := m.link.up(ctx, m.boot)
	if err != nil {
		return fmt.Errorf("%w, see %s", err, m.SerialLog())
	}
	m.boot = boot
	return nil
}

// Kill ends qemu with SIGKILL, at once. The store's disk still has what was not flushed: end it with Cut.
func (m *Machine) Kill() error { return m.qemu.end(syscall.SIGKILL, endTimeout) }

// Disk is the store's disk of a running or killed machine.
func (m *Machine) Disk() *Disk { return m.disk }

const endTimeout = time.Minute

// Ended waits for qemu to end by itself, after the guest was told to power off.
func (m *Machine) Ended(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return fmt.Errorf("waiting for the guest to power off: %w, see %s", context.Cause(ctx), m.SerialLog())
	case <-m.qemu.done:
		return nil
	}
}

// Close ends the machine, however it is; Boot starts it again.
func (m *Machine) Close() error {
	var errs []error
	if m.qemu != nil {
		errs = append(errs, m.Kill())
		m.qemu = nil
	}
	if m.link != nil {
		_ = m.link.conn.Close() // qemu is dead
		m.link = nil
	}
	if m.disk != nil {
		errs = append(errs, m.disk.Close())
		m.disk = nil
	}
	_ = os.Remove(m.path("agent.sock"))
	return errors.Join(errs...)
}

// Run runs a program in the guest and returns its output. A failure of the program is an *ExitError.
func (m *Machine) Run(ctx context.Context, args ...string) (string, error) {
	answer, err := m.link.ask(ctx, wire.Request{Exec: &wire.Exec{Args: args}})
	if err != nil {
		return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
	}
	if answer.Code != 0 {
		return string(answer.Out), &ExitError{args, answer.Code, string(answer.Out) + string(answer.Diag)}
	}
	return string(answer.Out), nil
}

// Shell runs a script in the guest.
func (m *Machine) Shell(ctx context.Context, script string) (string, error) {
	return m.Run(ctx, "sh", "-euc", script)
}

// Put makes a file in the guest.
func (m *Machine) Put(ctx context.Context, path, text string, mode os.FileMode) error {
	_, err := m.link.ask(ctx, wire.Request{Put: &wire.Put{Path: path, Data: []byte(text), Mode: uint32(mode)}})
	return err
}

// process is one run of qemu. It dies with the program that started it.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
}

func start(log string, args []string) (*process, error) {
	out, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p := &process{cmd: exec.Command("qemu-system-x86_64", args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = out, out
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // Pdeathsig is bound to the thread that forked
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // how it ended is in its log
		}
	}()
	return p, <-started
}

func (p *process) end(sig syscall.Signal, within time.Duration) error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(sig) // one that has ended is what we want
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("qemu does not end within %v of %v", within, sig)
	}
}
