package e2e_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/rig"
)

// A process that is killed or restarted with a config that does not read takes nobody's disk away: the next one goes on with
// the config of before, says so, and takes the file when it is right again.
func TestE2EWrongConfigAtARestart(t *testing.T) {
	needs(t)
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r, err := rig.New(rig.Options{Dir: dir, Binary: path, URL: "dir://" + filepath.Join(dir, "target"), Keeper: true})
	if err != nil {
		t.Fatal(err)
	}
	image := filepath.Join("web", "os.raw")
	if err := os.MkdirAll(filepath.Join(r.Source, "web"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Source, image), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := r.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		if _, err := r.Run(context.Background(), "unmount", "--release"); err != nil { // the mount point is immutable
			t.Error(err)
		}
	})
	f, err := os.OpenFile(filepath.Join(r.Mount, image), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	config := filepath.Join(dir, "vhdrelay.yaml")
	good, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	for i, sig := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		if err := os.WriteFile(config, append([]byte("surprise: 1\n"), good...), 0o600); err != nil {
			t.Fatal(err)
		}
		served := r.Pid()
		if err := r.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := r.Await(ctx, "the next process", func() (bool, error) { return r.Pid() != served, nil }); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("still served"), 4096); err != nil {
			t.Fatalf("%v: %v", sig, err)
		}
		said(t, ctx, r, "the one of before stays in force", i+1)
		said(t, ctx, r, "msg=serving ", i+2) // until then a SIGHUP ends it
		if err := os.WriteFile(config, good, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := r.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		said(t, ctx, r, "config reloaded", i+1)
	}
	if _, err := r.Sync(ctx, "web"); err != nil {
		t.Error(err)
	}
}

// said waits until the log has a text so many times.
func said(t *testing.T, ctx context.Context, r *rig.Rig, text string, times int) {
	t.Helper()
	if err := r.Await(ctx, text, func() (bool, error) {
		log, err := os.ReadFile(r.LogFile())
		return bytes.Count(log, []byte(text)) == times, err
	}); err != nil {
		t.Fatal(err)
	}
}
