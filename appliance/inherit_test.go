package appliance

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/systemd"
)

// keeping is a manager that keeps the last descriptor it was given.
func keeping(t *testing.T) (kept func() *os.File) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	files := make(chan *os.File, 16)
	go func() {
		defer close(files)
		for {
			msg, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
			n, m, _, _, err := conn.ReadMsgUnix(msg, oob)
			if err != nil {
				return
			}
			fds, _ := unix.ParseSocketControlMessage(oob[:m])
			for i := range fds {
				all, _ := unix.ParseUnixRights(&fds[i])
				for _, fd := range all {
					f := os.NewFile(uintptr(fd), "kept")
					if strings.Contains(string(msg[:n]), "FDNAME="+keptConfig) {
						files <- f
					} else {
						f.Close() // a barrier
					}
				}
			}
		}
	}()
	return func() *os.File {
		conn.Close()
		var last *os.File
		for f := range files {
			if last != nil {
				last.Close()
			}
			last = f
		}
		t.Cleanup(func() { last.Close() })
		return last
	}
}

const someConfig = "state_dir: /s\ncontrol_socket: /c\nstores: [{name: main, source: /srv/vhd, mount: /vhd}]\ntarget: {url: 'dir:///mnt/nas'}\nreplication: {interval: 47s}\n"

// What one process gives away is what the next one takes, to the last key.
func TestConfigInForceIsKept(t *testing.T) {
	kept := keeping(t)
	conf, err := config.Parse("/etc/x.yaml", []byte(someConfig))
	if err != nil {
		t.Fatal(err)
	}
	a := compose(conf, Options{})
	if a.notify, err = systemd.FromEnvironment(); err != nil {
		t.Fatal(err)
	}
	if err := a.giveConfig(); err != nil {
		t.Fatal(err)
	}
	got, err := inForce(map[string]*os.File{keptConfig: kept()}, "/etc/x.yaml", errors.New("wrong"))
	if err != nil || !reflect.DeepEqual(got, conf) {
		t.Errorf("%v\n%+v\n%+v", err, got, conf)
	}
}

// Where guests wait, a config that does not read must not end in the exit code that has systemd give up: it would let go of
// their mounts. Where nobody waits it must.
func TestWrongConfigWithGuestsWaitingIsTriedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.yaml")
	if err := os.WriteFile(path, []byte("surprise: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	broken, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer broken.Close()
	for name, stored := range map[string]map[string]*os.File{
		"none kept": {"main" + keptDevice: nil}, "newer build's": {"main" + keptDevice: nil, keptConfig: broken},
	} {
		if !waiting(stored) {
			t.Errorf("%s: nobody waits", name)
		}
		_, err := inForce(stored, path, errors.New("x.yaml:1:1: surprise"))
		var e *control.Error
		if !errors.As(err, &e) || e.Exit != control.ExitFailed || e.Action == "" || errors.Is(err, config.ErrInvalid) || !strings.Contains(e.Message, "x.yaml:1:1: surprise") {
			t.Errorf("%s: %+v", name, err)
		}
	}
	if waiting(map[string]*os.File{keptConfig: broken}) {
		t.Error("somebody waits although no mount is kept")
	}
	if err := ServeFile(t.Context(), path, Options{}); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("%v", err)
	}
}
