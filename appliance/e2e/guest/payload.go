package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// payloadSize is that of the disk with agent and appliance, in bytes.
const payloadSize = 256 << 20

// Payload makes the disk with the agent and more files at its root and, below tree, what `make install` put into a DESTDIR.
// It runs make and go in module, the root of the repository. In the guest it is mounted at /payload.
func Payload(ctx context.Context, module, dir, image string, more ...string) error {
	tree := filepath.Join(dir, "payload")
	if err := errors.Join(os.RemoveAll(tree), os.MkdirAll(tree, 0o755)); err != nil {
		return err
	}
	commands := [][]string{
		{"make", "-s", "install", "DESTDIR=" + filepath.Join(tree, "tree")},
		{"go", "build", "-o", filepath.Join(tree, "agent"), "./appliance/e2e/guest/agent"},
	}
	for _, file := range more {
		commands = append(commands, []string{"cp", file, tree})
	}
	for _, args := range commands {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Dir = module
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "MAKEFLAGS=")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", args, err, text)
		}
	}
	return Ext4(ctx, image, "payload", tree, payloadSize)
}

// Module is the root of the repository, above the working directory.
func Module() (string, error) {
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, "go.mod")); missing == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("no go.mod above the working directory")
		}
		dir = filepath.Dir(dir)
	}
	return "", err
}

// Install copies the payload's tree over the guest's root, as a package would, and leads the port of the guest's loopback
// to the same port of the host's: the target has one URL in both.
func (m *Machine) Install(ctx context.Context, port int) error {
	socket := fmt.Sprintf("[Socket]\nListenStream=127.0.0.1:%d\n[Install]\nWantedBy=sockets.target\n", port)
	proxy := fmt.Sprintf("[Service]\nExecStart=/lib/systemd/systemd-socket-proxyd 10.0.2.2:%d\n", port)
	if err := errors.Join(
		m.Put(ctx, "/etc/systemd/system/target.socket", socket, 0o644),
		m.Put(ctx, "/etc/systemd/system/target.service", proxy, 0o644),
		// A store on a file system of its own: the unit must wait for it, as the README says.
		m.Put(ctx, "/etc/systemd/system/vhdrelay.service.d/store.conf", "[Unit]\nRequiresMountsFor=/srv\n", 0o644),
	); err != nil {
		return err
	}
	_, err := m.Shell(ctx, "cp -a /payload/tree/. / && systemctl daemon-reload && systemctl enable -q --now target.socket && sync")
	return err
}
