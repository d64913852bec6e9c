package guest

import (
	"bufio"
	"context"
	_ "embed" // the recipe
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed bootable.sh
var bootable string

// Bootable says what lies on a disk that Make makes.
type Bootable struct {
	Image    Image
	Size     int64  // of the disk in bytes
	Packages string // of Debian, with what they need: below /var/local/packages, not installed
	Sources  string // of Debian, alone: below /var/local/sources
}

// Make makes a raw disk that firmware boots, with the guest's root on its first partition. It runs go in module, the root of
// the repository, and needs root's rights and, the first time, a Debian mirror.
func (b Bootable) Make(ctx context.Context, module, disk string) error {
	agent := disk + ".agent"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", agent, "./appliance/e2e/guest/agent")
	cmd.Dir, cmd.Env = module, append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("the agent: %w\n%s", err, text)
	}
	base := filepath.Dir(b.Image.Root)
	cmd = exec.CommandContext(ctx, "sh", "-s", base, disk, fmt.Sprint(b.Size), agent, b.Packages, b.Sources)
	cmd.Stdin = strings.NewReader(bootable)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("a disk that boots: %w\n%s\nsee %s", err, text, filepath.Join(base, "debootstrap.log"))
	}
	return os.Remove(agent)
}

// Partition is where the root's file system begins on a disk that Make made, in bytes.
const Partition = 1 << 20

// Drive is a machine with one disk, which it boots from by itself, and no network.
type Drive struct {
	Dir    string            // for sockets and logs
	File   string            // the disk
	Format string            // qemu's name of the disk's format
	Memory int               // MiB, 1024
	Heard  func(line string) // every line that the guest says on its second serial port, when it says it; nil: there is none
}

// Start starts qemu and returns when the agent says hello.
func (d Drive) Start(ctx context.Context) (*Machine, error) {
	if d.Memory == 0 {
		d.Memory = 1024
	}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return nil, err
	}
	m := &Machine{Options: Options{Dir: d.Dir, Memory: d.Memory}}
	_ = os.Remove(m.path("agent.sock")) // of a run that was killed
	_ = os.Remove(m.path("said.sock"))
	ln, err := net.Listen("unix", m.path("agent.sock"))
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	said, err := net.Listen("unix", m.path("said.sock"))
	if err != nil {
		return nil, err
	}
	go d.listen(said)
	if m.qemu, err = start(m.path("qemu.log"), d.args(m)); err != nil {
		return nil, errors.Join(err, said.Close())
	}
	qemu := m.qemu // Close forgets it
	go func() {
		<-qemu.done
		_ = said.Close() // taken by qemu, or never to be
	}()
	return m, m.greet(ctx, ln)
}

// greet waits for the agent; a guest that does not come up is ended.
func (m *Machine) greet(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	err := m.connect(ctx, ln)
	if err == nil {
		m.boot, err = m.link.up(ctx, "")
	}
	if err != nil {
		return errors.Join(fmt.Errorf("boot: %w, see %s and %s", err, m.SerialLog(), m.path("qemu.log")), m.Close())
	}
	return nil
}

// listen hands on what the guest says, until qemu ends.
func (d Drive) listen(ln net.Listener) {
	conn, err := ln.Accept()
	if err != nil {
		return // qemu did not start
	}
	defer conn.Close()
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if d.Heard != nil {
			d.Heard(strings.TrimRight(lines.Text(), "\r"))
		}
	}
}

func (d Drive) args(m *Machine) []string {
	return []string{
		"-name", "vhdrelay-drive", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", fmt.Sprint(d.Memory),
		"-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc,clock=host", "-nic", "none",
		"-chardev", "file,id=serial,append=on,path=" + m.SerialLog(), "-serial", "chardev:serial",
		"-chardev", "socket,id=said,path=" + m.path("said.sock"), "-serial", "chardev:said",
		"-drive", "if=virtio,cache=none,format=" + d.Format + ",file=" + d.File,
		"-device", "virtio-serial-pci", "-chardev", "socket,id=agent,path=" + m.path("agent.sock"), "-device", "virtserialport,chardev=agent,name=agent",
		"-device", "virtio-rng-pci",
	}
}
