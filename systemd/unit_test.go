package systemd

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// manager is the service manager's end of the notification socket.
func manager(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return conn
}

func receive(t *testing.T, conn *net.UnixConn) string {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1024)
	n, err := conn.Read(p)
	if err != nil {
		t.Fatal(err)
	}
	return string(p[:n])
}

func TestNotificationsArrive(t *testing.T) {
	conn := manager(t)
	n, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for want, send := range map[string]func() error{
		"READY=1":                  n.Ready,
		"STOPPING=1":               n.Stopping,
		"STATUS=2 VMs, all Normal": func() error { return n.Status("2 VMs, all Normal") },
	} {
		if err := send(); err != nil {
			t.Errorf("%s: %v", want, err)
			continue
		}
		if got := receive(t, conn); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestOutsideSystemdNothingHappens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	fromEnvironment, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]*Notifier{"environment": fromEnvironment, "zero": {}, "nil": nil} {
		if err := errors.Join(n.Ready(), n.Status("x"), n.Stopping()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n.Watchdog(context.Background(), func() error { t.Errorf("%s: asked", name); return nil }, nil)
		n.Lines(context.Background(), time.Second, func() string { t.Errorf("%s: asked for a line", name); return "" })
	}
}

func TestUndeliverableNotificationIsAnError(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "gone"))
	n, err := FromEnvironment()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Ready(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func TestBadWatchdogInterval(t *testing.T) {
	t.Setenv("WATCHDOG_USEC", "soon")
	if _, err := FromEnvironment(); err == nil {
		t.Error("accepted")
	}
}

func TestWatchdogIsKeptQuietOnlyWhileAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start, hung := time.Now(), errors.New("hung")
		var sent []time.Duration
		n := &Notifier{interval: time.Minute, send: func(state string) error {
			if state != "WATCHDOG=1" {
				t.Errorf("sent %q", state)
			}
			sent = append(sent, time.Since(start))
			return nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Second)
		defer cancel()
		alive := func() error {
			if at := time.Since(start); at > 15*time.Second && at < 75*time.Second {
				return hung
			}
			return nil
		}
		failures := 0
		n.Watchdog(ctx, alive, func(err error) {
			if !errors.Is(err, hung) {
				t.Error(err)
			}
			failures++
		})
		if want := []time.Duration{0, 15 * time.Second, 75 * time.Second, 90 * time.Second}; !slices.Equal(sent, want) {
			t.Errorf("sent at %v, want %v", sent, want)
		}
		if failures != 3 || time.Since(start) != 100*time.Second {
			t.Errorf("%d failures, ended after %v", failures, time.Since(start))
		}
	})
}

func TestWatchdogGoesOnAfterAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		broken, calls := errors.New("broken"), 0
		n := &Notifier{interval: time.Minute, send: func(string) error { calls++; return broken }}
		ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
		defer cancel()
		var failures []error
		n.Watchdog(ctx, func() error { return nil }, func(err error) { failures = append(failures, err) })
		if calls != 3 || len(failures) != 3 || !errors.Is(failures[0], broken) {
			t.Errorf("%d calls, failures %v", calls, failures)
		}
	})
}

func TestLinesAreSentWhenTheyDiffer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sent []string
		fails := true
		n := &Notifier{send: func(state string) error {
			if fails { // the first is not delivered
				fails = false
				return errors.New("full")
			}
			sent = append(sent, state)
			return nil
		}}
		lines := []string{"a", "a", "a", "b", "b", "a"}
		ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
		defer cancel()
		turn := 0
		n.Lines(ctx, 10*time.Second, func() string { turn++; return lines[turn-1] })
		if want := []string{"STATUS=a", "STATUS=b", "STATUS=a"}; !slices.Equal(sent, want) || turn != len(lines) {
			t.Errorf("%v after %d turns, want %v", sent, turn, want)
		}
	})
}

// settings returns the lines of the unit that are no comments, by key; a key given twice has both values.
func settings() map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(Unit) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && !strings.HasPrefix(key, "#") {
			out[key] = append(out[key], value)
		}
	}
	return out
}

func TestUnitSaysWhatTheDesignAsks(t *testing.T) {
	s := settings()
	for key, want := range map[string]string{
		"Type": "notify", "StateDirectory": "vhdrelay", "RuntimeDirectory": "vhdrelay", "NoNewPrivileges": "yes",
		"Restart": "always", "RestartPreventExitStatus": "3", "WatchdogSec": "60", "TimeoutStopSec": "90", "LimitNOFILE": "1048576", "OOMScoreAdjust": "-900",
	} {
		if !slices.Equal(s[key], []string{want}) {
			t.Errorf("%s=%v, want %s", key, s[key], want)
		}
	}
	before := strings.Fields(strings.Join(s["Before"], " "))
	for _, unit := range []string{"libvirtd.service", "virtqemud.service", "libvirt-guests.service", "xenopsd.service", "smbd.service", "nfs-server.service", "machines.target"} {
		if !slices.Contains(before, unit) {
			t.Errorf("not ordered before %s", unit)
		}
	}
	if !strings.Contains(strings.Join(s["After"], " "), "network-online.target") {
		t.Errorf("After=%v", s["After"])
	}
	// A name and no path: a credential that is not there must not keep the disks from the guests.
	if !slices.Equal(s["LoadCredential"], []string{"target:vhdrelay.target"}) {
		t.Errorf("LoadCredential=%v", s["LoadCredential"])
	}
}

// In a mount namespace of its own the stores would be invisible to the virtual machines.
func TestNoSettingHidesTheMount(t *testing.T) {
	hides := regexp.MustCompile(`^(Private(Tmp|Devices|Mounts|Users|Network|PIDs)|Protect(System|Home|Proc|Kernel(Tunables|Modules|Logs)|ControlGroups)|ProcSubset|` +
		`(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec|Bind|BindReadOnly)Paths|TemporaryFileSystem|Root(Directory|Image|Ephemeral)|` +
		`Mount(Flags|Images|APIVFS)|ExtensionImages|ExtensionDirectories|DynamicUser|LogNamespace|ProtectHostname)$`)
	for key := range settings() {
		if hides.MatchString(key) {
			t.Errorf("%s needs a namespace", key)
		}
	}
}

func TestUnitVerifies(t *testing.T) {
	tool, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	binary, err := exec.LookPath("true")
	if err != nil {
		t.Skip("no executable to put in the place of ours")
	}
	// verify wants the executable to exist; which one it is makes no difference to it.
	text := strings.ReplaceAll(Unit, "/usr/local/bin/vhdrelay", binary)
	path := filepath.Join(t.TempDir(), UnitName)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "verify", "--man=no", "--recursive-errors=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), UnitName+":") {
		t.Errorf("%v\n%s", err, out)
	}
}
