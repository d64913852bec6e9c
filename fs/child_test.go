package fs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// childEnv names the part that this binary plays as a child. Whoever maps a file of the mount must not be the process
// that serves it: a page fault stops a Go thread where the collector cannot, and the server waits for the collector.
const childEnv = "VHDRELAY_FS_CHILD"

var children = map[string]func(args []string) error{
	"mount":     childMount,
	"fsx":       childFsx,
	"mmap":      childMmap,
	"lock":      childLock,
	"coherence": childCoherence,
	"handover":  childHandover,
	"stamp":     childStamp,
	"names":     childNames,
	"holder":    childHolder,
}

func TestMain(m *testing.M) {
	if part := os.Getenv(childEnv); part != "" {
		if err := children[part](os.Args[1:]); err != nil {
			fmt.Println("error:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// needSharedMappings skips where the kernel has none for files with direct I/O (before 6.6).
func needSharedMappings(t testing.TB) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	release := unix.ByteSliceToString(u.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("kernel %q: %v", release, err)
	}
	if major < 6 || major == 6 && minor < 6 {
		t.Skipf("shared mappings of disks need kernel 6.6, this is %s", release)
	}
}

// startChild starts this binary in a part; the second result reads its next line. It is killed at the end.
func startChild(t testing.TB, part string, args ...string) (*exec.Cmd, func() string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	lines := bufio.NewReader(out)
	return cmd, func() string {
		s, _ := lines.ReadString('\n')
		return strings.TrimSpace(s)
	}
}

// runChild runs a part to its end and fails the test with what it printed.
func runChild(t testing.TB, part string, args ...string) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), childEnv+"="+part)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v\n%s", part, args, err, out)
	}
}

// childMount serves args[0] at args[1] until it is killed.
func childMount(args []string) error {
	if _, err := Mount(Options{Source: args[0], Mount: args[1]}); err != nil {
		return err
	}
	fmt.Println("mounted")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}
