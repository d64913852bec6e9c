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

// A guest whose image is renamed goes on being replicated as the disk it was; when
// another file takes the name, the status says that nobody tracks the old one, until
// it is closed and is a disk of its new name.
func TestRenamedUnderARunningGuest(t *testing.T) {
	r := newRig(t)
	old := r.content(2 * mib)
	r.put("web/os.img", bytes.Clone(old))
	r.start()
	r.sync("web")
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
	write("still os.img", 0)
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": old})

	fresh := r.content(mib)
	r.write("web/os.img", fresh)
	write("nobody's", 4096)
	r.await("web", "a warning", hasReason("image-untracked"))
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": fresh})

	r.must(f.Close())
	r.await("web", "no warning", func(v control.VM) bool { return !hasReason("image-untracked")(v) && len(v.Disks) == 2 })
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": fresh, "old.img": old})
}

// A name that is no image's ends a disk, and a name that is makes one again.
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
	r.write("web/dynamic.vhdx", append([]byte("vhdxfile"), make([]byte, 4096)...))
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
	r.write("only/dynamic.vhdx", []byte("vhdxfile"))
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
