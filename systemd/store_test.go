package systemd

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// take reads one message and closes what came with it; it returns the message and what its descriptor reads.
func take(t *testing.T, conn *net.UnixConn) (msg, content string) {
	t.Helper()
	p, oob := make([]byte, 1024), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := conn.ReadMsgUnix(p, oob)
	if err != nil {
		t.Fatal(err)
	}
	all, err := unix.ParseSocketControlMessage(oob[:m])
	if err != nil || len(all) != 1 {
		t.Fatalf("%d descriptors with %q, %v", len(all), p[:n], err)
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	defer unix.Close(fds[0])
	text := make([]byte, 16)
	k, _ := unix.Pread(fds[0], text, 0)
	return string(p[:n]), string(text[:max(k, 0)])
}

func TestStoreWaitsUntilTheManagerHasIt(t *testing.T) {
	conn := manager(t)
	n, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stored := make(chan error, 1)
	go func() { stored <- n.Store("main.device", f) }()
	if msg, content := take(t, conn); msg != "FDSTORE=1\nFDPOLL=0\nFDNAME=main.device" || content != "content" {
		t.Errorf("%q with %q", msg, content)
	}
	select {
	case err := <-stored:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	if msg, _ := take(t, conn); msg != "BARRIER=1" {
		t.Errorf("%q", msg)
	}
	if err := <-stored; err != nil {
		t.Error(err)
	}
	if err := n.Unstore("main.device"); err != nil {
		t.Error(err)
	}
	if got := receive(t, conn); got != "FDSTOREREMOVE=1\nFDNAME=main.device" {
		t.Errorf("%q", got)
	}
}

func TestStoreWithoutAManager(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	n, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Store("x", os.Stdin); !errors.Is(err, ErrNoManager) || n.Manages() {
		t.Errorf("%v", err)
	}
}

func TestStopsAndRestartsAreToldApart(t *testing.T) {
	for jobs, want := range map[string]bool{
		"":                                      false,
		"12 vhdrelay.service restart running\n": false,
		"12 vhdrelay.service start waiting\n":   false,
		"12 vhdrelay.service stop running\n":    true,
		"9 other.service stop running\n12 vhdrelay.service restart running\n": false,
	} {
		if got := stops(jobs, "vhdrelay.service"); got != want {
			t.Errorf("%q: %v", jobs, got)
		}
	}
	dir := t.TempDir()
	for text, want := range map[string]string{
		"0::/system.slice/vhdrelay.service\n":           "vhdrelay.service",
		"0::/system.slice/vhdrelay-two.service\n":       "vhdrelay-two.service",
		"1:name=x:/a/b\n0::/user.slice/session-1.scope": UnitName,
	} {
		path := filepath.Join(dir, "cgroup")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := ownUnit(path); got != want {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// TestEndsAsksTheManager runs with a systemctl of its own.
func TestEndsAsksTheManager(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	for _, job := range []string{"restart", "stop"} {
		script := "#!/bin/sh\nfor unit; do :; done\necho 7 $unit " + job + " running\n"
		if err := os.WriteFile(filepath.Join(dir, "systemctl"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		if got := Ends(); got != (job == "stop") {
			t.Errorf("%s: %v", job, got)
		}
	}
}
