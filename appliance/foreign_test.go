package appliance

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/fs/watch"
)

// sh runs a command in the source as somebody who is not the appliance.
func (r *rig) sh(command string) {
	r.t.Helper()
	cmd := exec.Command("sh", "-c", command)
	cmd.Dir = r.source
	if out, err := cmd.CombinedOutput(); err != nil {
		r.t.Fatalf("%s: %v\n%s", command, err, out)
	}
}

// suspected waits until the VM has been compared because of what somebody did.
func (r *rig) suspected(vm string, differing int64) control.VM {
	r.t.Helper()
	return r.await(vm, "a comparison", func(v control.VM) bool {
		// Opening and closing are told apart, so that two comparisons may follow: the second finds what the first has marked.
		found := max(v.Recovery.DifferingBytes, v.Resync.DifferingBytes)
		return strings.Contains(v.Recovery.Reason, "beside the mount") && found >= differing && v.Recovery.ComparedBytes >= v.Recovery.SuspectBytes
	})
}

// A write beside the mount is noticed while the appliance runs: the disk is compared,
// with the reason and who it was, and the next point has what was written. Our own
// writes, which reach the same files, are none.
func TestWrittenBesideTheMount(t *testing.T) {
	r := newRig(t)
	content := r.content(8 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	for off := int64(0); off < 8*mib; off += mib {
		r.change("web/os.img", off, []byte("ours"))
		copy(content[off:], "ours")
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); v.Recovery.Reason != "" || v.Recovery.SuspectBytes != 0 {
		t.Fatalf("our own writes: %+v", v.Recovery)
	}
	r.sh("printf theirs | dd of=web/os.img bs=1 seek=3000000 conv=notrunc status=none")
	copy(content[3000000:], "theirs")
	v := r.suspected("web", 4096)
	if !strings.Contains(v.Recovery.Reason, "dd") && !strings.Contains(v.Recovery.Reason, "pid") {
		t.Errorf("reason %q", v.Recovery.Reason)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if !r.logged("changed-behind") {
		t.Error("not logged")
	}
}

// As long as another process has a disk open for writing no epoch is a point, and the
// status names it; then the disk is compared.
func TestForeignWriterPausesPoints(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	cmd := exec.Command("sh", "-c", "exec 3<>web/os.img; printf theirs >&3; read line; printf more >&3")
	cmd.Dir = r.source
	in, err := cmd.StdinPipe()
	r.must(err)
	r.must(cmd.Start())
	r.await("web", "the writer's name", hasReason("foreign-writer"))
	r.suspected("web", 0) // what holds points back from here on is the writer alone
	r.change("web/os.img", mib, []byte("ours"))
	copy(content[mib:], "ours")
	res, err := r.client.Sync(r.ctx(), "web", false, nil)
	r.must(err)
	r.await("web", "the epoch at the target", func(control.VM) bool {
		return r.app.machines()[0].pipeline.Status().LastCycle.Epoch >= res.Epoch
	})
	if v := r.vm("web"); v.LastPoint.Epoch >= res.Epoch || v.Health != control.HealthCritical {
		t.Errorf("a point while somebody writes: %+v", v)
	}
	r.must(in.Close())
	r.must(cmd.Wait())
	copy(content, "theirsmore")
	r.await("web", "nobody", func(v control.VM) bool { return !hasReason("foreign-writer")(v) })
	r.suspected("web", 4096)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// What grows and shrinks beside the mount has the size in the next point that it has.
func TestResizedBesideTheMount(t *testing.T) {
	r := newRig(t)
	content := r.content(3 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	more := r.content(2 * mib)
	extra := filepath.Join(r.t.TempDir(), "more")
	r.must(os.WriteFile(extra, more, 0o600))
	r.sh("cat " + extra + " >>web/os.img")
	content = append(content, more...)
	r.await("web", "the new size", func(v control.VM) bool { return r.app.machines()[0].log.Disks()[0].Size() == 5*mib })
	r.suspected("web", 0)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.sh("truncate -s 1048576 web/os.img")
	content = content[:mib]
	r.await("web", "the new size", func(v control.VM) bool { return r.app.machines()[0].log.Disks()[0].Size() == mib })
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// Whoever writes to a disk beside the mount and renames it before we have read of the first is noticed by the second.
func TestWrittenAndRenamedBesideTheMount(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	s := r.app.stores[0]
	s.watcher.stop() // the events are read late
	r.sh("printf theirs | dd of=web/os.img bs=1 seek=300000 conv=notrunc status=none; mv web/os.img web/renamed.img")
	copy(content[300000:], "theirs")
	for _, e := range []watch.Event{
		{Kind: watch.Opened, Path: "web/os.img"}, {Kind: watch.Written, Path: "web/os.img"},
		{Kind: watch.Vanished, Path: "web/os.img"}, {Kind: watch.Appeared, Path: "web/renamed.img"},
	} {
		s.behind(e)
	}
	r.suspected("web", 4096)
	r.equals("web", r.sync("web"), map[string][]byte{"renamed.img": content})
}

// Images that others bring, rename, replace and remove are followed.
func TestImagesComeAndGoBesideTheMount(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	id := r.diskID("web", "os.img")
	r.sh("mkdir new; cp web/os.img new/copy.img; mv web/os.img web/renamed.img")
	r.await("new", "a disk", func(v control.VM) bool { return len(v.Disks) == 1 })
	r.await("web", "its new name", func(v control.VM) bool { return v.Disks[0].Name == "renamed.img" })
	if now := r.diskID("web", "renamed.img"); now != id {
		t.Errorf("%s, was %s", now, id)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"renamed.img": content})
	r.await("new", "a comparison", func(v control.VM) bool {
		return v.State == string(lifecycle.Replicating) && !hasReason("foreign-writer")(v)
	})
	r.equals("new", r.sync("new"), map[string][]byte{"copy.img": content})

	r.sh("head -c 2097152 /dev/zero >web/next; mv web/next web/renamed.img; rm new/copy.img")
	r.await("web", "another disk", func(v control.VM) bool { return len(v.Disks) == 1 && v.Disks[0].VirtualSize == 2*mib })
	r.equals("web", r.sync("web"), map[string][]byte{"renamed.img": make([]byte, 2*mib)})
	r.await("new", "no disk", func(v control.VM) bool { return len(v.Disks) == 0 })
}

// When the kernel cannot say what was done, every disk is compared.
func TestLostTrackOfTheSource(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("db/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.sync("db")
	r.app.stores[0].behind(watch.Event{Kind: watch.Lost})
	for _, vm := range []string{"web", "db"} {
		if v := r.suspected(vm, 0); v.Recovery.ComparedBytes < 2*mib {
			t.Errorf("%s: %+v", vm, v.Recovery)
		}
	}
}

// Somebody who still writes at the stop is not forgotten: the next start compares.
func TestForeignWriterAtTheStop(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	cmd := exec.Command("sh", "-c", "exec 3<>web/os.img; printf theirs >&3; read line || true")
	cmd.Dir = r.source
	in, err := cmd.StdinPipe()
	r.must(err)
	r.must(cmd.Start())
	r.await("web", "the writer's name", hasReason("foreign-writer"))
	r.stop()
	r.must(in.Close())
	r.must(cmd.Wait())
	copy(content, "theirs")
	r.start()
	if v := r.suspected("web", 0); v.Recovery.SuspectBytes == 0 {
		t.Errorf("%+v", v.Recovery)
	}
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// Somebody writes beside the mount, and the image is renamed at the mount before that is told: the disk is doubted under its
// new name.
func TestWrittenBesideTheMountUnderTheNameBefore(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.must(os.Rename(filepath.Join(r.mount, "web/os.img"), filepath.Join(r.mount, "web/new.img")))
	f, err := os.OpenFile(filepath.Join(r.source, "web/new.img"), os.O_WRONLY, 0)
	r.must(err)
	_, err = f.WriteAt([]byte("theirs"), 4096) // by this process, of which nothing is told
	r.must(errors.Join(err, f.Close()))
	copy(content[4096:], "theirs")
	r.app.stores[0].behind(watch.Event{Kind: watch.Written, Path: "web/os.img", PID: 1})
	r.suspected("web", 0)
	r.equals("web", r.sync("web"), map[string][]byte{"new.img": content})
}

// A file that is no image is open at the mount and becomes one by a rename beside it: what is written to it from then on is
// in the points.
func TestRenamedToAnImageBesideTheMountWhileItIsOpen(t *testing.T) {
	for name, tell := range map[string]watch.Event{"told": {Kind: watch.Appeared, Path: "web/more.img", PID: 1}, "lost": {Kind: watch.Lost}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.put("web/os.img", r.content(mib))
			r.start()
			r.sync("web")
			content := r.content(mib)
			guest, err := os.OpenFile(filepath.Join(r.mount, "web/more.tmp"), os.O_RDWR|os.O_CREATE, 0o600)
			r.must(err)
			defer guest.Close()
			_, err = guest.WriteAt(content, 0)
			r.must(err)
			r.must(os.Rename(filepath.Join(r.source, "web/more.tmp"), filepath.Join(r.source, "web/more.img")))
			r.app.stores[0].behind(tell)
			other, err := os.ReadFile(filepath.Join(r.source, "web/os.img"))
			r.must(err)
			for i := range 3 {
				r.equals("web", r.sync("web"), map[string][]byte{"os.img": other, "more.img": content})
				text := fmt.Sprint("written at the mount ", i)
				_, err = guest.WriteAt([]byte(text), int64(i)*8192)
				r.must(err)
				copy(content[i*8192:], text)
			}
			r.equals("web", r.sync("web"), map[string][]byte{"os.img": other, "more.img": content})
		})
	}
}
