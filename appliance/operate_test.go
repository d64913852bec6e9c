package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/health"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
)

// refused is an error with exit code 6 and a way out.
func (r *rig) refused(err error) {
	r.t.Helper()
	var e *control.Error
	if !errors.As(err, &e) || e.Exit != control.ExitRefused || e.Action == "" {
		r.t.Errorf("not refused: %v", err)
	}
}

func (r *rig) moved(m control.Moved, err error) func(lifecycle.State) {
	r.t.Helper()
	r.must(err)
	return func(want lifecycle.State) {
		r.t.Helper()
		if m.State != string(want) {
			r.t.Errorf("it is %s, want %s", m.State, want)
		}
	}
}

// A paused VM goes on tracking and sealing, sends nothing, over a restart too, and a
// resume makes a point of everything.
func TestPauseHoldsOverARestart(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	before := r.sync("web")
	r.moved(r.client.Pause(r.ctx(), "web"))(lifecycle.Paused)
	paused := func(v control.VM) bool {
		return v.State == string(lifecycle.Paused) && v.Health == control.HealthWarning && hasReason(health.VMPaused)(v) && v.LastPoint.ID == before
	}
	for i := range 2 {
		change := r.content(64 << 10)
		off := int64(i) * mib
		r.change("web/os.img", off, change)
		copy(content[off:], change)
		spooled := r.vm("web").SpooledBytes
		r.app.mu.machines["web"].pipeline.SealSoon()
		r.await("web", "a spooled epoch", func(v control.VM) bool { return paused(v) && v.SpooledBytes > spooled && v.PendingBytes == 0 })
		if i == 0 {
			r.stop()
			r.start()
		}
	}
	_, err := r.client.Sync(r.ctx(), "web", true, nil)
	r.refused(err)
	_, err = r.client.Pause(r.ctx(), "web")
	r.refused(err)
	_, err = r.client.Protect(r.ctx(), "web")
	r.refused(err)
	r.moved(r.client.Resume(r.ctx(), "web"))(lifecycle.Replicating)
	_, err = r.client.Resume(r.ctx(), "web")
	r.refused(err)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.await("web", "Normal", func(v control.VM) bool {
		return v.Health == control.HealthNormal && v.State == string(lifecycle.Replicating)
	})
	r.stop()
	r.start()
	if v := r.vm("web"); v.State != string(lifecycle.Replicating) {
		t.Errorf("after a restart: %s", v.State)
	}
}

// kept lists what the state directory has of any VM.
func (r *rig) kept() (found []string) {
	r.t.Helper()
	for _, pattern := range []string{"spool/*", "tables/*"} {
		list, err := filepath.Glob(filepath.Join(r.state, pattern))
		r.must(err)
		found = append(found, list...)
	}
	for _, prefix := range []string{"ship/", "disk/"} {
		keys, err := r.app.journal.Documents(prefix)
		r.must(err)
		found = append(found, keys...)
	}
	return found
}

func (r *rig) unprotect(vm string, erase bool) {
	r.t.Helper()
	r.moved(r.client.Unprotect(r.ctx(), vm, control.UnprotectOptions{DeleteReplica: erase}))(lifecycle.Disabled)
}

// A guest that has its disk open goes on over unprotect and protect: what it writes
// in between is in no change log, and is in the first point afterwards all the same.
func TestUnprotectAndProtectUnderARunningGuest(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("web/data.img", r.content(mib))
	r.start()
	first := r.sync("web")
	guest, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer guest.Close()
	write := func(off int64, text string) {
		t.Helper()
		_, err := guest.WriteAt([]byte(text), off)
		r.must(err)
		copy(content[off:], text)
	}
	write(0, "tracked")
	r.unprotect("web", false)
	if kept := r.kept(); len(kept) > 0 {
		t.Errorf("left over: %q", kept)
	}
	write(mib, "not tracked")
	disabled := func(v control.VM) bool {
		return v.State == string(lifecycle.Disabled) && v.Health == control.HealthNormal && len(v.Disks) == 0
	}
	if v := r.vm("web"); !disabled(v) {
		t.Errorf("%+v", v)
	}
	_, err = r.client.Sync(r.ctx(), "web", false, nil)
	r.refused(err)
	_, err = r.client.Pause(r.ctx(), "web")
	r.refused(err)
	_, err = r.client.Resume(r.ctx(), "web")
	r.refused(err)
	r.unprotect("web", false) // it is done already
	r.must(r.client.JournalCheck(r.ctx()))

	if _, err := r.client.Protect(r.ctx(), "web"); err != nil {
		t.Fatal(err)
	}
	write(4096, "tracked again")
	want := map[string][]byte{"os.img": content}
	want["data.img"], err = os.ReadFile(filepath.Join(r.source, "web/data.img"))
	r.must(err)
	point := r.sync("web")
	r.equals("web", point, want)
	write(8192, "and later")
	r.equals("web", r.sync("web"), want)
	points, err := r.client.Points(r.ctx(), "web")
	r.must(err)
	if !slices.ContainsFunc(points.Points, func(p control.RecoveryPoint) bool { return p.ID == first }) {
		t.Errorf("the points of the life before are gone: %+v", points.Points)
	}
	if _, err := r.client.Unprotect(r.ctx(), "nobody", control.UnprotectOptions{}); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
}

// An unprotected VM stays one over restarts, and others beside it are not touched.
func TestUnprotectHoldsOverARestart(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.put("db/os.img", r.content(mib))
	r.start()
	r.sync("web")
	r.sync("db")
	r.unprotect("web", false)
	r.stop()
	r.start()
	r.change("web/os.img", 0, []byte("not tracked"))
	if v := r.vm("web"); v.State != string(lifecycle.Disabled) || len(v.Disks) != 0 || hasReason(health.ImageUntracked)(v) {
		t.Errorf("%+v", v)
	}
	r.sync("db")
	s, err := r.client.Status(r.ctx(), "")
	r.must(err)
	if len(s.VMs) != 2 {
		t.Errorf("%+v", s.VMs)
	}
	if _, err := r.client.Protect(r.ctx(), "web"); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(filepath.Join(r.source, "web/os.img"))
	r.must(err)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// With --delete-replica nothing is left at the target, and a new life begins with a
// generation that no name of the old one has.
func TestUnprotectDeletesTheReplica(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	old := r.vm("web").Generation
	r.unprotect("web", true)
	if left := r.blobs("web"); len(left) > 0 {
		t.Errorf("left at the target: %q", left)
	}
	if _, err := r.client.Protect(r.ctx(), "web"); err != nil {
		t.Fatal(err)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); v.Generation <= old || v.State != string(lifecycle.Replicating) {
		t.Errorf("%+v", v)
	}
	// And in two steps: the replica that stayed can be deleted later.
	r.unprotect("web", false)
	if left := r.blobs("web"); len(left) == 0 {
		t.Error("the replica is gone")
	}
	r.unprotect("web", true)
	if left := r.blobs("web"); len(left) > 0 {
		t.Errorf("left at the target: %q", left)
	}
}

// blobs are the files of a VM at the directory target.
func (r *rig) blobs(vm string) (files []string) {
	r.t.Helper()
	err := filepath.WalkDir(filepath.Join(r.store, vm), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			files = append(files, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.t.Fatal(err)
	}
	return files
}

// An unprotect whose target is away says so, goes on by itself after a restart, and a
// protect waits for it.
func TestUnprotectGoesOnByItself(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.start()
	r.sync("web")
	away := r.store + "-away"
	r.stop()
	r.must(os.Rename(r.store, away))
	r.start()
	if _, err := r.client.Unprotect(r.ctx(), "web", control.UnprotectOptions{DeleteReplica: true}); err == nil {
		t.Fatal("deleted what is not there")
	}
	r.await("web", "a reason", hasReason(health.Leaving))
	_, err := r.client.Protect(r.ctx(), "web")
	r.refused(err)
	r.stop()
	r.must(os.Rename(away, r.store))
	r.start()
	r.await("web", "the end", func(v control.VM) bool {
		return v.Health == control.HealthNormal && len(r.blobs("web")) == 0 && len(r.kept()) == 0
	})
}

// An image that is open, and was renamed into the directory of another VM, becomes a disk of that one when its own VM is
// unprotected: whoever keeps writing to it is tracked.
func TestUnprotectOfAVMWhoseOpenImageMovedAway(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("db/os.img", r.content(mib))
	r.start()
	r.sync("web")
	r.sync("db")
	guest, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer guest.Close()
	r.must(os.Rename(filepath.Join(r.mount, "web/os.img"), filepath.Join(r.mount, "db/more.img")))
	r.unprotect("web", false)
	point := ""
	for i := range 3 { // each must be in the point after it
		text := fmt.Sprintf("written when web was unprotected, %d", i)
		_, err = guest.WriteAt([]byte(text), int64(i)*8192)
		r.must(err)
		copy(content[i*8192:], text)
		point = r.sync("db")
	}
	other, err := os.ReadFile(filepath.Join(r.source, "db/os.img"))
	r.must(err)
	r.equals("db", point, map[string][]byte{"os.img": other, "more.img": content})
}
