package appliance

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
)

// mountState puts the state directory on a file system of its own.
func (r *rig) mountState(kind, data string) {
	r.t.Helper()
	if err := unix.Mount(kind, r.state, kind, 0, data); err != nil {
		r.t.Skipf("needs a %s: %v", kind, err)
	}
	r.mounted = true
}

// fill takes all the space of a directory's file system and returns what gives it back.
func (r *rig) fill(dir string) func() {
	r.t.Helper()
	path := filepath.Join(dir, "ballast")
	f, err := os.Create(path)
	r.must(err)
	defer f.Close()
	for size := mib; size >= 512; {
		if _, err := f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	return func() { r.must(os.Remove(path)) }
}

// I9: a state directory without space makes nobody wait and fails no write; what was
// written meanwhile is shipped when there is space again.
func TestI9_StateDirectoryFull(t *testing.T) {
	r := newRig(t)
	r.mountState("tmpfs", "size=256m")
	content := r.content(16 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	free := r.fill(r.state)
	for off := 0; off < len(content); off += 4 * mib { // a new region each
		change := r.content(100)
		r.change("web/os.img", int64(off), change)
		copy(content[off:], change)
	}
	r.write("web/new.img", r.content(mib))
	free()
	point := r.sync("web")
	var generation, epoch uint64
	_, err := fmt.Sscanf(point, "%d-%d", &generation, &epoch)
	r.must(err)
	if v := r.vm("web"); v.LastPoint == nil || v.LastPoint.Epoch < epoch { // the interval may have made another one
		t.Errorf("%+v", v)
	}
	got, err := os.ReadFile(filepath.Join(r.mount, "web/os.img"))
	r.must(err)
	if !bytes.Equal(got, content) {
		t.Error("the guest reads something else than it wrote")
	}
	r.await("web", "a working journal", func(v control.VM) bool { return !hasReason("journal-failing")(v) })
	r.must(cmd.Process.Signal(unix.SIGTERM))
	if err := cmd.Wait(); err != nil {
		t.Errorf("stop: %v", err)
	}
	r.start()
	want := map[string][]byte{"os.img": content}
	want["new.img"], err = os.ReadFile(filepath.Join(r.source, "web/new.img"))
	r.must(err)
	r.await("web", "both disks", func(v control.VM) bool { return len(v.Disks) == 2 && v.State == string(lifecycle.Replicating) })
	r.equals("web", r.sync("web"), want)
}

// A lost table is made anew; nothing that the target has is lost, nothing is missed.
func TestLostTable(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.stop()
	tables, err := filepath.Glob(filepath.Join(r.state, "tables", "*"))
	r.must(err)
	if len(tables) == 0 {
		t.Fatal("no table")
	}
	for _, path := range tables {
		r.must(os.WriteFile(path, []byte("not a table"), 0o600))
	}
	r.start()
	r.change("web/os.img", 0, []byte("changed"))
	copy(content, "changed")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.await("web", "replicating", func(v control.VM) bool { return v.State == string(lifecycle.Replicating) })
}

// A VM for which nothing can be made is served all the same, marked, and says so;
// when the cause is mended it is compared whole.
func TestI9_UnusableSpool(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.stop()
	spools, err := filepath.Glob(filepath.Join(r.state, "spool", "*"))
	r.must(err)
	for _, dir := range spools {
		r.must(os.Rename(dir, dir+"-away"))
		r.must(os.WriteFile(dir, nil, 0o600))
	}
	r.start()
	v := r.vm("web")
	if v.State != string(lifecycle.Error) || v.Health != control.HealthCritical || !hasReason("image-untracked")(v) || v.Reasons[0].Action == "" || v.Reasons[0].Since.IsZero() {
		t.Errorf("%+v", v)
	}
	r.change("web/os.img", mib, []byte("untracked"))
	copy(content[mib:], "untracked")
	if _, err := r.client.Sync(r.ctx(), "web", true, nil); err == nil {
		t.Error("sync of a VM that is not there")
	}
	r.stop()
	for _, dir := range spools {
		r.must(os.Remove(dir))
		r.must(os.Rename(dir+"-away", dir))
	}
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); v.Recovery.SuspectBytes == 0 || v.Recovery.DifferingBytes != 4096 || hasReason("image-untracked")(v) {
		t.Errorf("%+v", v)
	}
}

// A manifest in the spool that says nonsense, after a crash.
func TestDamagedSpool(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	cmd := r.child()
	r.sync("web")
	r.change("web/os.img", 0, []byte("changed"))
	copy(content, "changed")
	r.sync("web")
	r.kill(cmd)
	damaged := 0
	r.must(filepath.WalkDir(filepath.Join(r.state, "spool"), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && filepath.Ext(path) != ".json" {
			damaged++
			err = os.Truncate(path, 100)
		}
		return err
	}))
	t.Logf("%d segments damaged", damaged)
	r.start()
	r.change("web/os.img", mib, []byte("and on"))
	copy(content[mib:], "and on")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}
