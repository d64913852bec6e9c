package appliance

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// I9: a journal whose table is damaged, or whose opening ended the process again and again, is no crash loop: disks are
// served without it, and the status says what to do. Who does it gets every disk compared and every later change shipped.
func TestI9_DamagedJournalIsMovedAway(t *testing.T) {
	for name, spoil := range map[string]func(r *rig, journal string){
		"a table": func(r *rig, journal string) {
			tables, err := filepath.Glob(filepath.Join(journal, "*.sst"))
			r.must(err)
			for _, path := range tables {
				data, err := os.ReadFile(path)
				r.must(err)
				data[len(data)/2] ^= 4
				r.must(os.WriteFile(path, data, 0o600))
			}
			if len(tables) == 0 {
				r.t.Error("the journal has no table")
			}
		},
		"deaths": func(r *rig, journal string) {
			r.must(os.WriteFile(filepath.Join(journal, "OPENING"), []byte("..."), 0o600))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			content := r.content(9 * mib)
			r.put("web/os.img", bytes.Clone(content))
			r.start()
			old := r.sync("web")
			r.stop()
			journal := filepath.Join(r.state, "journal")
			spoil(r, journal)
			stop := r.serveAll()
			v := r.vm("web")
			if !hasMessage(v, "state-unusable", "the journal store is damaged", "", "move the directory \"journal\"") {
				t.Errorf("%+v", v.Reasons)
			}
			r.change("web/os.img", mib, []byte("while it was served bare"))
			copy(content[mib:], "while it was served bare")
			r.must(stop())
			r.must(os.Rename(journal, journal+".damaged"))
			r.start()
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
			r.change("web/os.img", 2*mib, []byte("after it"))
			copy(content[2*mib:], "after it")
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
			points, err := r.client.Points(r.ctx(), "web")
			r.must(err)
			if !slices.ContainsFunc(points.Points, func(p control.RecoveryPoint) bool { return p.ID == old }) {
				t.Errorf("the points of before are gone: %+v", points)
			}
			if err := r.client.JournalCheck(r.ctx()); err != nil {
				t.Error(err)
			}
		})
	}
}
