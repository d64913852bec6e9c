package e2e_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// A process that its watchdog aborts must end, also while it asks its own mount whether it answers: one that waits for
// an answer of its own and holds /dev/fuse never would. The watchdog's time is so short here that it nearly always asks.
func TestE2EAbortedWhileTheWatchdogAsks(t *testing.T) {
	needs(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	target, err := rig.DirTarget(filepath.Join(dir, "replicas"))
	if err != nil {
		t.Fatal(err)
	}
	r, err := rig.New(rig.Options{Dir: dir, Binary: path, URL: target.URL})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Detach()
		if err := rig.Thaw(r.Mount); err != nil {
			t.Error(err)
		}
	})
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	for range 6 {
		abortWhileAsking(t, r, manager)
	}
}

func abortWhileAsking(t *testing.T, r *rig.Rig, manager *net.UnixConn) {
	t.Helper()
	cmd := exec.Command(r.Binary, "serve", "--config", filepath.Join(r.Dir, "vhdrelay.yaml"))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String(), "WATCHDOG_USEC=40000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.Now().Add(30 * time.Second)
	if err := manager.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	var err error
	p := make([]byte, 4096)
	for fed := 0; fed < 20; { // it is in the middle of it
		n, err := manager.Read(p)
		if err != nil {
			t.Fatalf("%d times fed: %v", fed, err)
		}
		if strings.Contains(string(p[:n]), "WATCHDOG=1") {
			fed++
		}
	}
	signal := func(sig unix.Signal) {
		t.Helper()
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGSTOP)
	for err = nil; err == nil; _, err = manager.Read(p) { // until it is silent: its next question is overdue
		if err := manager.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
	}
	signal(unix.SIGABRT)
	signal(unix.SIGCONT)
	select {
	case <-ended:
		r.Detach()
	case <-time.After(time.Until(deadline.Add(30 * time.Second))):
		forced := unix.Unmount(r.Mount, unix.MNT_FORCE) // ends the connection, so that nothing stays behind
		t.Fatalf("aborted and still there (connection ended by force: %v)", forced)
	}
}
