package badgerkv

import (
	"bufio"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// What ends the life of a file system under the store: the kernel found an error in it and lets nobody write any more,
// without saying so in statfs (since 6.14), or its device has gone.
var ends = map[string]func(t *testing.T, l *rig.Loop){
	"an error of ext4": func(t *testing.T, l *rig.Loop) {
		if err := unix.Mount("", l.Dir, "", unix.MS_REMOUNT, "abort"); err != nil {
			t.Skip("this kernel cannot make one: ", err)
		}
	},
	"a device that is gone": func(t *testing.T, l *rig.Loop) {
		if err := l.Cut(); err != nil {
			t.Fatal(err)
		}
	},
}

// I9: a file system that fails under the store is an error of the next commit. Badger writes through mapped files, and
// a page that cannot be written is a SIGBUS, which would end the process and every guest's disk with it.
func TestI9_FailedFileSystemIsAnError(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			l := &rig.Loop{File: filepath.Join(t.TempDir(), "disk"), Dir: filepath.Join(t.TempDir(), "fs")}
			if err := errors.Join(l.Format(t.Context(), 256<<20), l.Mount(t.Context())); err != nil {
				t.Skip("needs root, mkfs.ext4 and a loop device: ", err)
			}
			t.Cleanup(func() {
				if err := l.Unmount(); err != nil {
					t.Error(err)
				}
			})
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(exe)
			var diag strings.Builder
			cmd.Env, cmd.Stderr = append(os.Environ(), childEnv+"="+filepath.Join(l.Dir, "db")), &diag
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			last, n := "", 0
			for lines := bufio.NewScanner(out); lines.Scan(); n++ {
				if last = lines.Text(); n == 300 { // the log is not the first one
					end(t, l)
				}
			}
			err = cmd.Wait()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 1 || !strings.HasPrefix(last, "error ") {
				t.Errorf("the process ended with %v after %q: %.2000s", err, last, diag.String())
			}
			t.Log(last)
		})
	}
}
