package appliance

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
)

// Images come and go through the mount while their VM is replicated: the tracker
// follows the file, and each point has the disks there were at its seal.
func TestImagesComeAndGo(t *testing.T) {
	r := newRig(t)
	os1, data := r.content(2*mib), r.content(mib)
	r.put("web/os.img", bytes.Clone(os1))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": os1})

	r.write("web/data.img", data)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": os1, "data.img": data})

	r.rename("web/data.img", "web/renamed.img")
	r.change("web/renamed.img", 4096, []byte("after the rename"))
	copy(data[4096:], "after the rename")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": os1, "renamed.img": data})

	next := r.content(mib)
	r.write("web/new.tmp", next)
	r.rename("web/new.tmp", "web/renamed.img")
	r.change("web/renamed.img", 0, []byte("after the replacement"))
	copy(next, "after the replacement")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": os1, "renamed.img": next})

	r.must(os.Remove(filepath.Join(r.mount, "web/renamed.img")))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": os1})
	r.equals("web", "latest", map[string][]byte{"os.img": os1})
	if err := r.client.JournalCheck(r.ctx()); err != nil {
		t.Error(err)
	}
	r.stop()
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 || len(v.Disks) != 1 {
		t.Errorf("%+v", v)
	}
}

// What replaces a disk by unlink and create under its old name is a disk at once,
// also while a guest still has the old file open.
func TestNameIsReusedWhileOpen(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(2*mib))
	r.start()
	r.sync("web")
	f, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer f.Close()
	r.must(os.Remove(filepath.Join(r.mount, "web/os.img")))
	content := r.content(mib)
	r.write("web/os.img", content)
	if _, err := f.WriteAt(r.content(8192), 0); err != nil {
		t.Errorf("a write to the removed file: %v", err)
	}
	if _, err := f.WriteAt([]byte("far out"), 20*mib); err != nil {
		t.Errorf("a write to a new region of the removed file: %v", err)
	}
	point := r.sync("web")
	r.equals("web", point, map[string][]byte{"os.img": content})
	r.must(f.Close())
	if err := r.client.JournalCheck(r.ctx()); err != nil {
		t.Error(err)
	}
	if v := r.vm("web"); len(v.Disks) != 1 || hasReason("image-untracked")(v) {
		t.Errorf("%+v", v)
	}
}

// A guest whose image is renamed goes on being replicated, under the new name at once,
// as the disk it was: nothing is sent anew. A new file under the old name is a new disk.
func TestRenamedUnderARunningGuest(t *testing.T) {
	r := newRig(t)
	old := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(old))
	r.start()
	r.sync("web")
	id := r.diskID("web", "os.img")
	f, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer f.Close()
	write := func(text string, off int64) {
		t.Helper()
		_, err := f.WriteAt([]byte(text), off)
		r.must(err)
		copy(old[off:], text)
	}
	r.rename("web/os.img", "web/old.img")
	write("now old.img", 0)
	r.equals("web", r.sync("web"), map[string][]byte{"old.img": old})

	fresh := r.content(mib)
	r.write("web/os.img", fresh)
	write("still the guest's", 4096)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": fresh, "old.img": old})
	r.must(f.Close())
	write2 := r.content(5000)
	r.change("web/old.img", mib, write2)
	copy(old[mib:], write2)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": fresh, "old.img": old})
	if now := r.diskID("web", "old.img"); now != id {
		t.Errorf("the renamed disk is %s, it was %s", now, id)
	}
	r.stop()
	r.start()
	if v := r.vm("web"); v.Recovery.SuspectBytes != 0 || len(v.Disks) != 2 {
		t.Errorf("%+v", v)
	}
}

// A renamed disk of an idle VM gets a point with its new name, and sends nothing.
func TestRenamedDiskIsNotSentAnew(t *testing.T) {
	r := newRig(t)
	content := r.content(4 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.rename("web/os.img", "web/renamed.img")
	v := r.await("web", "a point of the new name", func(v control.VM) bool {
		points, err := r.client.Points(r.ctx(), "web")
		r.must(err)
		last := points.Points[len(points.Points)-1]
		return last.Disks[0].Name == "renamed.img"
	})
	points, err := r.client.Points(r.ctx(), "web")
	r.must(err)
	if last := points.Points[len(points.Points)-1]; last.Disks[0].ChangedBytes != 0 {
		t.Errorf("%+v", last)
	}
	r.equals("web", "latest", map[string][]byte{"renamed.img": content})
	if !r.logged("it goes on being replicated") || v.State != string(lifecycle.Replicating) {
		t.Errorf("%+v", v)
	}
}

// A disk that was renamed while nothing served it is known by its file, compared, and
// goes on: nothing is sent that the target has.
func TestRenamedWhileStopped(t *testing.T) {
	r := newRig(t)
	content := r.content(4 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	id := r.diskID("web", "os.img")
	r.stop()
	r.must(os.Rename(filepath.Join(r.source, "web/os.img"), filepath.Join(r.source, "web/new.img")))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"new.img": content})
	v := r.vm("web")
	if now := r.diskID("web", "new.img"); now != id || v.Recovery.ComparedBytes < 4*mib || v.Recovery.DifferingBytes != 0 {
		t.Errorf("disk %s, was %s; %+v", now, id, v.Recovery)
	}
}

// The name's extension says what the content is: a raw disk that becomes a VHD is
// another disk.
func TestRenamedToAnotherFormat(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", vhd(content))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": vhd(content)})
	id := r.diskID("web", "os.img")
	r.rename("web/os.img", "web/os.vhd")
	r.equals("web", r.sync("web"), map[string][]byte{"os.vhd": content})
	if r.diskID("web", "os.vhd") == id {
		t.Error("it is taken for the disk it was")
	}
}

// diskID is what the journal knows a disk by.
func (r *rig) diskID(vm, disk string) string {
	r.t.Helper()
	for _, m := range r.app.machines() {
		for _, d := range m.log.Disks() {
			if m.name == vm && d.Name() == disk {
				return d.ID()
			}
		}
	}
	r.t.Fatalf("%s has no disk %s", vm, disk)
	return ""
}

// A disk that is renamed to a name that is no image's, while its guest runs, is that
// disk until the guest has closed it.
func TestTrackedUntilTheLastClose(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	f, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	defer f.Close()
	r.rename("web/os.img", "web/os.bak")
	_, err = f.WriteAt([]byte("seen"), mib)
	r.must(err)
	copy(content[mib:], "seen")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.rename("web/os.bak", "web/again.img")
	_, err = f.WriteAt([]byte("seen again"), 0)
	r.must(err)
	copy(content, "seen again")
	r.equals("web", r.sync("web"), map[string][]byte{"again.img": content})
	r.rename("web/again.img", "web/os.bak")
	r.must(f.Close())
	r.await("web", "no disk", func(v control.VM) bool { return len(v.Disks) == 0 && hasReason("no-disks")(v) })
	if err := r.client.JournalCheck(r.ctx()); err != nil {
		t.Error(err)
	}
}

// A name that is no image's ends a disk that nobody has open, and a name that is makes
// one again.
func TestRenamedToNoImageAndBack(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	r.rename("web/os.img", "web/os.bak")
	v := r.vm("web")
	if len(v.Disks) != 0 || v.State != string(lifecycle.Disabled) || v.Health != control.HealthWarning || !hasReason("no-disks")(v) {
		t.Errorf("without a disk: %+v", v)
	}
	var e *control.Error
	if _, err := r.client.Sync(r.ctx(), "web", true, nil); !errors.As(err, &e) || e.Exit != control.ExitRefused {
		t.Errorf("sync without a disk: %v", err)
	}
	r.change("web/os.bak", 0, []byte("unseen"))
	copy(content, "unseen")
	r.rename("web/os.bak", "web/os.img")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
}

// A renamed directory is another VM, with its disks open or not.
func TestVMDirectoryRenamed(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("web/deep/data.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	f, err := os.OpenFile(filepath.Join(r.mount, "web/os.img"), os.O_RDWR, 0)
	r.must(err)
	r.rename("web", "shop")
	r.change("shop/deep/data.img", 0, []byte("closed"))
	_, err = f.WriteAt([]byte("open"), 0)
	r.must(err)
	data := bytes.Clone(content)
	copy(data, "closed")
	copy(content, "open")
	r.equals("shop", r.sync("shop"), map[string][]byte{"deep/data.img": data})
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.must(f.Close())
	r.await("shop", "both disks", func(v control.VM) bool { return len(v.Disks) == 2 })
	if v := r.vm("web"); !hasReason("vm-moved")(v) {
		t.Errorf("nothing says where web went: %+v", v.Reasons)
	}
	r.equals("shop", r.sync("shop"), map[string][]byte{"os.img": content, "deep/data.img": data})
}

// Two disks that change names with each other are two disks, each with its bytes.
func TestTwoDisksExchangeNames(t *testing.T) {
	r := newRig(t)
	a, b := r.content(mib), r.content(2*mib)
	r.put("web/a.img", bytes.Clone(a))
	r.put("web/b.img", bytes.Clone(b))
	r.start()
	r.sync("web")
	r.must(unix.Renameat2(unix.AT_FDCWD, filepath.Join(r.mount, "web/a.img"), unix.AT_FDCWD, filepath.Join(r.mount, "web/b.img"), unix.RENAME_EXCHANGE))
	r.change("web/a.img", 0, []byte("this was b"))
	copy(b, "this was b")
	r.equals("web", r.sync("web"), map[string][]byte{"a.img": b, "b.img": a})
}

// Formats that are not protected are served, the status says so as long as they are
// there, and the other disks are replicated.
func TestUnprotectedFormats(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("web/big.qcow2", []byte("QFI\xfb and more"))
	r.start()
	r.write("web/dynamic.vhdx", append([]byte("QFI\xfb"), make([]byte, 4096)...))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	v := r.vm("web")
	if !hasReason("unprotected-format")(v) || v.Health != control.HealthWarning || v.State != string(lifecycle.Replicating) {
		t.Errorf("%+v", v)
	}
	r.must(os.Remove(filepath.Join(r.mount, "web/dynamic.vhdx")))
	r.must(os.Remove(filepath.Join(r.mount, "web/big.qcow2")))
	r.app.survey()
	if v := r.vm("web"); hasReason("unprotected-format")(v) {
		t.Errorf("after they are gone: %+v", v.Reasons)
	}
	r.write("only/disk.vmdk", []byte("KDMV"))
	r.write("only/dynamic.vhdx", []byte("QFI\xfb"))
	r.app.survey()
	if v := r.vm("only"); v.State != string(lifecycle.Disabled) || !hasReason("unprotected-format")(v) {
		t.Errorf("%+v", v)
	}
}

// An image grows and shrinks under its guest.
func TestResizedImage(t *testing.T) {
	r := newRig(t)
	content := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.sync("web")
	path := filepath.Join(r.mount, "web/os.img")
	r.must(os.Truncate(path, 3*mib))
	content = append(content, make([]byte, mib)...)
	r.change("web/os.img", 3*mib-4096, []byte("the new end"))
	copy(content[3*mib-4096:], "the new end")
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	r.must(os.Truncate(path, mib))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content[:mib]})
}

// What the config leaves out is served and not replicated.
func TestExcludedImages(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("web/os.img", bytes.Clone(content))
	r.put("web/swap.img", r.content(mib))
	conf := r.config()
	conf.Stores[0].VMs = append(conf.Stores[0].VMs, webWithoutSwap)
	r.must(r.tryStart(conf))
	r.write("web/swap.img", r.content(2*mib))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); len(v.Reasons) > 0 {
		t.Errorf("%+v", v.Reasons)
	}
}
