package appliance

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/shipper"
)

// hanging is a target that takes requests and answers none.
func hanging(t *testing.T) (config.Target, <-chan struct{}) {
	t.Helper()
	asked := make(chan struct{}, 1000)
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-r.Context().Done()
	}))
	t.Cleanup(srv.Close)
	secret := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(secret, []byte("c2VjcmV0"), 0o600); err != nil {
		t.Fatal(err)
	}
	return config.Target{URL: "http://" + srv.Listener.Addr().String() + "/devstoreaccount1/replicas",
		Credentials: config.Credentials{Type: config.CredentialSharedKey, File: secret}}, asked
}

// A stop does not wait for a target that hangs: what changed is in the journal, and the
// stop is clean.
func TestStopWithATargetThatHangs(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.stop()
	conf := r.config()
	var asked <-chan struct{}
	conf.Target, asked = hanging(t)
	r.must(r.tryStart(conf))
	r.change("web/os.img", mib, []byte("the target hangs"))
	copy(content[mib:], "the target hangs")
	_, err := r.client.Sync(r.ctx(), "web", false, nil)
	r.must(err)
	select {
	case <-asked:
	case <-time.After(timeout):
		t.Fatal("nobody asks the target")
	}
	begun := time.Now()
	r.stop()
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("the stop took %s", took)
	}
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 {
		t.Errorf("the stop was not clean: %+v", v.Recovery)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// A stage that never ends is left behind after its bound: the process says so and
// exits, and the next start compares what was active.
func TestStopWithAStageThatHangs(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	free, stuck := make(chan struct{}), make(chan struct{}, 100)
	defer close(free)
	app, _, err := open(r.config(), Options{Log: discard, Hook: func(point string) {
		if point == shipper.PointAfterUpload {
			stuck <- struct{}{}
			<-free
		}
	}})
	r.must(err)
	app.bounds.stages = 200 * time.Millisecond
	stop := r.run(app)
	<-stuck
	stop()
	select {
	case err := <-r.done:
		if !errors.Is(err, errHangs) {
			t.Errorf("%v", err)
		}
	case <-time.After(timeout):
		t.Fatal("it does not stop")
	}
	if at, err := os.ReadDir(r.mount); err == nil && len(at) > 0 {
		t.Errorf("the mount is there still: %v", at)
	}
}

// run serves an appliance that is open, and returns what ends it; r.done says how.
func (r *rig) run(app *Appliance) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.t.Context()))
	r.done = make(chan error, 1)
	go func() { r.done <- app.serve(ctx) }()
	return cancel
}

// A store is unmounted on demand, unless files are open there; then who has them is
// named, and force cuts them off. What changed is shipped, and a restart serves it again.
func TestUnmountOnDemand(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	cmd := exec.Command("sh", "-c", "exec 3<>web/os.img; read line || true")
	cmd.Dir = r.mount
	in, err := cmd.StdinPipe()
	r.must(err)
	r.must(cmd.Start())
	r.await("web", "a guest", func(control.VM) bool { return len(r.app.stores[0].srv.OpenFiles()) > 0 })
	_, err = r.client.Unmount(r.ctx(), "main", false)
	refused(t, err, "store-busy")
	if err == nil || !strings.Contains(err.Error(), "web/os.img (sh, pid ") {
		t.Errorf("%v does not say who has what", err)
	}
	r.change("web/os.img", mib, []byte("still served"))
	copy(content[mib:], "still served")
	if _, err := r.client.Unmount(r.ctx(), "nobody", false); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
	gone, err := r.client.Unmount(r.ctx(), "", true)
	if err != nil || len(gone.Stores) != 1 || gone.Stores[0] != "main" {
		t.Fatalf("%+v %v", gone, err)
	}
	r.must(in.Close())
	_ = cmd.Wait() // its shell may say that the directory is gone
	if _, err := os.ReadFile(filepath.Join(r.mount, "web/os.img")); err == nil {
		t.Error("it is served still")
	}
	if gone, err = r.client.Unmount(r.ctx(), "main", false); err != nil || len(gone.Stores) != 0 {
		t.Errorf("again: %+v %v", gone, err)
	}
	if v := r.vm("web"); !hasReason("store-unmounted")(v) || v.Health != control.HealthCritical || r.app.newSentry().look() != nil {
		t.Errorf("%+v", v)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.stop()
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 || hasReason("store-unmounted")(v) {
		t.Errorf("%+v", v)
	}
	got, err := os.ReadFile(filepath.Join(r.mount, "web/os.img"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("served again: %d bytes, %v", len(got), err)
	}
}

// Without an appliance what a crash left is cleared away, and the mount point is given
// back; a store that is served is not touched.
func TestClearMounts(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	conf := r.config()
	cmd := r.child()
	refused(t, func() error { _, err := ClearMounts(conf, "", true); return err }(), "store-in-use")
	if got, err := ClearMounts(conf, "", false); err != nil || len(got.Stores) != 0 {
		t.Errorf("a living mount: %+v %v", got, err)
	}
	r.must(cmd.Process.Kill())
	_ = cmd.Wait() // says that it was killed
	if dead, err := fs.Dead(r.mount); !dead || err != nil {
		t.Fatalf("%v %v", dead, err)
	}
	got, err := ClearMounts(conf, "main", true)
	if err != nil || len(got.Stores) != 1 {
		t.Errorf("%+v %v", got, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(r.mount, &st); err != nil || st.Mode&0o777 != 0o700 {
		t.Errorf("mode %o, %v", st.Mode, err)
	}
	r.must(os.WriteFile(filepath.Join(r.mount, "x"), nil, 0o600))
	if _, err := ClearMounts(conf, "nobody", false); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
}
