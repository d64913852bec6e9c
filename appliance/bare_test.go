package appliance

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
)

// I9: a state directory that cannot be used at the start leaves no guest without its
// disks. They are served untracked, each marked before its first change; the status says
// so, everything else is refused; and when the cause is mended, what was written is
// compared and nothing else.
func TestI9_ServedWithoutAState(t *testing.T) {
	for name, spoil := range map[string]func(r *rig) (mend func()){
		"read-only": func(r *rig) func() {
			if err := unix.Mount("tmpfs", r.state, "tmpfs", unix.MS_RDONLY, ""); err != nil {
				r.t.Skip("needs root: ", err)
			}
			return func() { r.must(unix.Unmount(r.state, 0)) }
		},
		"no directory": func(r *rig) func() {
			r.must(os.Rename(r.state, r.state+"-away"))
			r.must(os.WriteFile(r.state, nil, 0o600))
			return func() { r.must(os.Remove(r.state)); r.must(os.Rename(r.state+"-away", r.state)) }
		},
		"damaged journal": func(r *rig) func() {
			manifest := filepath.Join(r.state, "journal", "MANIFEST")
			kept, err := os.ReadFile(manifest)
			r.must(err)
			r.must(os.WriteFile(manifest, []byte("rotten"), 0o600))
			return func() { r.must(os.WriteFile(manifest, kept, 0o600)) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content, quiet := r.content(2*mib), r.content(mib)
			r.put("web/os.img", bytes.Clone(content))
			r.put("db/os.img", bytes.Clone(quiet))
			r.start()
			r.sync("web")
			r.sync("db")
			r.stop()
			mend := spoil(r)
			stop := r.serveAll()
			v := r.vm("web")
			if v.Health != control.HealthCritical || !hasReason("state-unusable")(v) || v.Reasons[0].Action == "" {
				t.Errorf("%+v", v)
			}
			if suspectMark(r, "web/os.img") {
				t.Error("marked before it was written")
			}
			r.rename("web/os.img", "web/moved.img")
			r.change("web/moved.img", mib, []byte("untracked"))
			copy(content[mib:], "untracked")
			if !suspectMark(r, "web/moved.img") || suspectMark(r, "db/os.img") {
				t.Error("marks")
			}
			_, err := r.client.Sync(r.ctx(), "web", true, nil)
			refused(t, err, "state-unusable")
			if _, err := r.client.Status(r.ctx(), "nobody"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
				t.Errorf("%v", err)
			}
			r.must(stop())
			mend()
			r.start()
			r.equals("web", r.sync("web"), map[string][]byte{"moved.img": content})
			if v := r.vm("web"); v.Recovery.DifferingBytes != 4096 {
				t.Errorf("%+v", v.Recovery)
			}
			if v := r.vm("db"); v.Recovery.SuspectBytes != 0 {
				t.Errorf("never written: %+v", v.Recovery)
			}
		})
	}
}

func suspectMark(r *rig, name string) bool {
	n, err := unix.Getxattr(filepath.Join(r.source, name), "user.vhdrelay.suspect", make([]byte, 8))
	return err == nil && n > 0
}

// serveAll runs Serve as the command does, and returns what ends it.
func (r *rig) serveAll() (stop func() error) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	done := make(chan error, 1)
	conf := r.config()
	go func() { done <- Serve(ctx, conf, Options{Log: slog.New(slog.NewTextHandler(r.log, nil))}) }()
	r.t.Cleanup(cancel)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for asking := r.ctx(); ; {
		if _, err := r.client.Status(asking, ""); err == nil {
			return func() error { cancel(); return <-done }
		}
		select {
		case err := <-done:
			r.t.Fatal(err)
		case <-tick.C:
		case <-asking.Done():
			r.t.Fatal("it does not serve")
		}
	}
}
