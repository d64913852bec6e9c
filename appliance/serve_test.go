package appliance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/shipper/retry"
)

// What a guest wrote comes out of the target again, and a clean stop leaves nothing
// to compare.
func TestReplicateStopAndGoOn(t *testing.T) {
	r := newRig(t)
	one, two := r.content(3*mib), r.content(mib)
	r.put("web/os.img", bytes.Clone(one))
	r.put("web/data.vhd", vhd(two))
	r.put("single.raw", bytes.Clone(two))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": one, "data.vhd": two})
	r.equals("single.raw", r.sync("single.raw"), map[string][]byte{"single.raw": two})

	change := r.content(64 << 10)
	r.change("web/os.img", mib, change)
	copy(one[mib:], change)
	point := r.sync("web")
	r.equals("web", point, map[string][]byte{"os.img": one, "data.vhd": two})
	v := r.await("web", "replicating", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) })
	if v.Health != control.HealthNormal || len(v.Reasons) > 0 || v.LastPoint == nil || v.StateSince.IsZero() {
		t.Errorf("status after %s: %+v", point, v)
	}
	if v.Disks[0].Format == "" || v.Disks[0].VirtualSize == 0 || v.Resync.State != control.ResyncIdle {
		t.Errorf("disk: %+v, resync %+v", v.Disks[0], v.Resync)
	}

	r.change("web/os.img", 0, change)
	copy(one, change)
	r.stop()
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 || v.Recovery.Reason != "" {
		t.Errorf("after a clean stop: %+v", v.Recovery)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": one, "data.vhd": two})
	points, err := r.client.Points(r.ctx(), "web")
	if err != nil || len(points.Points) < 3 {
		t.Errorf("points: %v %v", points, err)
	}
}

// A change behind our back, while nothing served the store, is found and shipped.
func TestChangedWhileStopped(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.stop()
	copy(content[mib:], r.content(5000))
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); v.Recovery.SuspectBytes == 0 || v.Recovery.DifferingBytes != 8192 || v.Resync.DifferingBytes != 8192 {
		t.Errorf("recovery %+v, resync %+v", v.Recovery, v.Resync)
	}
}

// Only one appliance may have a store, a socket or a state directory, and the one
// that is refused leaves no trace.
func TestSecondInstanceIsRefused(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	r.sync("web")
	for _, c := range []struct {
		code   control.Code
		change func(*config.Config)
	}{
		{"store-in-use", func(*config.Config) {}},
		{control.CodeRunning, func(c *config.Config) { c.Stores[0].Source = t.TempDir() }},
		{"state-in-use", func(c *config.Config) { c.Stores[0].Source, c.ControlSocket = t.TempDir(), r.socket+"2" }},
	} {
		conf := r.config()
		c.change(conf)
		err := Serve(r.ctx(), conf, Options{})
		var e *control.Error
		if !errors.As(err, &e) || e.Code != c.code || e.Exit != control.ExitRefused || e.Action == "" {
			t.Errorf("%s: %v", c.code, err)
		}
		if who := fmt.Sprintf("pid %d)", os.Getpid()); err == nil || !strings.Contains(err.Error(), who) {
			t.Errorf("%v does not name %s", err, who)
		}
	}
	r.stop()
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("after being asked for what it had: %+v", v.Recovery)
	}
}

func TestMissingSource(t *testing.T) {
	r := newRig(t)
	conf := r.config()
	conf.Stores[0].Source += "-not-mounted"
	var e *control.Error
	if err := Serve(r.ctx(), conf, Options{}); !errors.As(err, &e) || e.Code != "source-missing" || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

// A store that cannot be mounted ends the start; what was mounted is given back, and
// it was a clean stop.
func TestHalfMounted(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	conf := r.config()
	conf.Stores = append(conf.Stores, config.Store{Name: "second", Source: t.TempDir(), Mount: r.mount + "-missing"})
	if err := r.tryStart(conf); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%v", err)
	}
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("%+v", v.Recovery)
	}
}

// A mount taken away from outside is noticed: the service manager starts us again.
func TestUnmountedFromOutside(t *testing.T) {
	r := newRig(t)
	r.start()
	r.must(unix.Unmount(r.mount, 0))
	if err := r.ended(); err == nil || !strings.Contains(err.Error(), "unmounted from outside") {
		t.Errorf("%v", err)
	}
}

// A guest that keeps its image open does not keep the appliance from stopping, and
// what was answered is there.
func TestStopWithOpenImages(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	f, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer f.Close()
	copy(content, "last words")
	_, err = f.WriteAt(content[:10], 0)
	r.must(err)
	r.stop()
	if _, err := f.WriteAt([]byte("too late"), 0); err == nil {
		t.Error("a write after the stop was answered")
	}
	if !r.logged("unmount-busy") {
		t.Error("nothing says that images were open")
	}
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("%+v", v.Recovery)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

func TestReload(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	app := r.app
	r.extra = "bandwidth: [{from: \"00:00\", to: \"24:00\", days: [mon, tue, wed, thu, fri, sat, sun], limit: 1MiB}]"
	r.config()
	app.reload()
	if got := app.bandwidth(); got != mib {
		t.Errorf("limit %d, want 1 MiB", got)
	}
	r.extra = "nonsense: true"
	r.must(os.WriteFile(r.path, []byte(r.extra), 0o600))
	app.reload()
	if got := app.bandwidth(); got != mib || !r.logged("config-invalid") {
		t.Errorf("limit %d after a file that does not parse", got)
	}
	r.await("web", "the reason", hasReason(health.ConfigInvalid))
	r.extra = ""
	r.must(os.WriteFile(r.path, bytes.Replace(mustRead(t, r), []byte("interval: 5s"), []byte("interval: 7s"), 1), 0o600))
	app.reload()
	if got := r.vm("web").IntervalSeconds; got != 7 {
		t.Errorf("interval %v, want 7", got)
	}
	r.await("web", "the end of the reason", func(v control.VM) bool { return !hasReason(health.ConfigInvalid)(v) })
}

func mustRead(t *testing.T, r *rig) []byte {
	t.Helper()
	r.config()
	data, err := os.ReadFile(r.path)
	r.must(err)
	return data
}

// The SIGHUP of the unit's ExecReload.
func TestHangup(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	cmd := r.child()
	r.must(os.WriteFile(r.path, bytes.Replace(mustRead(t, r), []byte("interval: 5s"), []byte("interval: 9s"), 1), 0o600))
	r.must(cmd.Process.Signal(unix.SIGHUP))
	r.await("web", "the new interval", func(v control.VM) bool { return v.IntervalSeconds == 9 })
	r.must(cmd.Process.Signal(unix.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, r.log.String())
	}
}

// I11: after a crash only what was active is compared, and nothing answered is lost.
func TestI11_UncleanRestart(t *testing.T) {
	r := newRig(t)
	content := r.content(24 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	change := r.content(5000)
	r.change("web/os.img", 9*mib, change)
	copy(content[9*mib:], change)
	r.kill(cmd)
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	v := r.vm("web")
	if v.Recovery.SuspectBytes == 0 || v.Recovery.SuspectBytes > 8*mib || v.Recovery.Reason != "unclean stop" || v.Recovery.DifferingBytes != 8192 {
		t.Errorf("%+v", v.Recovery)
	}
}

func TestResyncOnDemand(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(2*mib))
	r.start()
	r.sync("web")
	res, err := r.client.Resync(r.ctx(), "web", "", control.ResyncOptions{Now: true}, func(control.Progress) {})
	if err != nil || res.ComparedBytes < 2*mib || res.DifferingBytes != 0 || res.State != control.ResyncIdle || res.Reason == "" {
		t.Errorf("%+v %v", res, err)
	}
	for _, c := range []struct {
		vm, disk string
		opts     control.ResyncOptions
		exit     control.Exit
	}{
		{"web", "none.img", control.ResyncOptions{}, control.ExitNotFound},
		{"nobody", "", control.ResyncOptions{}, control.ExitNotFound},
		{"web", "", control.ResyncOptions{Cancel: true}, control.ExitRefused},
	} {
		_, err := r.client.Resync(r.ctx(), c.vm, c.disk, c.opts, nil)
		var e *control.Error
		if !errors.As(err, &e) || e.Exit != c.exit || e.Action == "" {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := r.client.Sync(r.ctx(), "nobody", true, nil); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("sync of nobody: %v", err)
	}
	if _, err := r.client.Points(r.ctx(), "nobody"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("points of nobody: %v", err)
	}
}

// The journal is checked with the appliance and without it.
func TestJournalCheckAndDump(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	conf := r.config()
	if err := JournalCheck(r.ctx(), conf); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("no journal: %v", err)
	}
	r.start()
	r.sync("web")
	var live, dead bytes.Buffer
	if err := errors.Join(r.client.JournalCheck(r.ctx()), r.client.JournalDump(r.ctx(), &live, control.DumpOptions{})); err != nil {
		t.Error(err)
	}
	if err := JournalCheck(r.ctx(), conf); !errors.Is(err, &control.Error{Code: "state-in-use"}) {
		t.Errorf("while it is in use: %v", err)
	}
	r.stop()
	if err := errors.Join(JournalCheck(r.ctx(), conf), JournalDump(r.ctx(), conf, &dead, control.DumpOptions{})); err != nil {
		t.Error(err)
	}
	for _, text := range []string{live.String(), dead.String()} {
		if !strings.Contains(text, "vm/web ") {
			t.Errorf("dump without the VM: %q", text)
		}
	}
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("the check started a session: %+v", v.Recovery)
	}
}

// The target is made at the first start only: later, a place that is empty is a
// mount that is missing.
func TestEmptyTargetLaterIsNoTarget(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	r.sync("web")
	r.stop()
	r.must(os.Rename(r.store, r.store+"-away"))
	r.must(os.Mkdir(r.store, 0o700))
	r.start()
	r.await("web", "an error", func(v control.VM) bool {
		return v.State == string(lifecycle.Error) && v.Health == control.HealthCritical
	})
	if left, err := os.ReadDir(r.store); err != nil || len(left) > 0 {
		t.Errorf("%v was made in the empty directory, %v", left, err)
	}
	if _, err := r.client.Sync(r.ctx(), "web", true, nil); err == nil {
		t.Error("sync without a target")
	}
}

// A store that was put back to an older state is compared whole, and so is one that
// belongs to another state directory's past.
func TestRevertedStore(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(2*mib))
	r.start()
	r.sync("web")
	r.stop()
	for _, change := range []func() error{
		func() error { return writeMark(r.source, markSession, "some other session") },
		func() error { return writeMark(r.source, markStoreID, "some other store") },
	} {
		r.must(change())
		r.start()
		r.await("web", "a comparison", func(v control.VM) bool {
			return v.Recovery.ComparedBytes >= 2*mib && v.State == string(lifecycle.Replicating)
		})
		r.stop()
	}
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("trusted again: %+v", v.Recovery)
	}
}

func TestStatusOfNobody(t *testing.T) {
	a := &Appliance{pacer: retry.NewPacer()}
	if _, err := a.Status(context.Background(), "nobody"); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
	s, err := a.Status(context.Background(), "")
	if err != nil || len(s.VMs) != 0 {
		t.Errorf("%v %v", s, err)
	}
}

// A request that outlived the mount finds nobody: the image is marked instead.
func TestAttachWhileStopping(t *testing.T) {
	r := newRig(t)
	r.start()
	r.put("late/os.img", r.content(mib))
	store := r.app.stores[0]
	r.app.refuseMore()
	path := filepath.Join(r.source, "late/os.img")
	id, err := fs.Identify(path)
	r.must(err)
	if tracker := store.Attach("late/os.img", id); tracker != nil {
		t.Errorf("%v", tracker)
	}
	if n, err := unix.Getxattr(path, "user.vhdrelay.suspect", make([]byte, 8)); err != nil || n == 0 {
		t.Errorf("no mark: %v", err)
	}
	if _, err := r.app.machine(store, "late"); err == nil {
		t.Error("a VM was made while stopping")
	}
	v := r.vm("late")
	if v.State != string(lifecycle.Error) || v.Health != control.HealthCritical || !hasReason("image-untracked")(v) {
		t.Errorf("%+v", v)
	}
}
