package appliance

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/appliance/lifecycle"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// hostileNames are names that a Linux file system takes.
func hostileNames() map[string]string {
	return map[string]string{
		"spaces":       "  with spaces  ",
		"newline":      "new\nline\ttab",
		"UTF-8":        "Büro 東京 🖥",
		"255 bytes":    strings.Repeat("x", 255),
		"255 of UTF-8": strings.Repeat("東", 85),
		"escapes":      "~25%2F%41&?#+=;",
		"quotes":       `"'` + "`$(reboot)`" + `\`,
		"reserved":     "points",
		"document":     "vm.json",
		"an option":    "--help",
		"dots":         "...",
	}
}

// Whatever a VM and its disk are called, they are replicated, listed and restored.
func TestHostileNames(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	disks := map[string]string{}
	for _, vm := range hostileNames() {
		disk := vm
		for len(disk) > 251 {
			_, size := utf8.DecodeLastRuneInString(disk)
			disk = disk[:len(disk)-size]
		}
		disk += ".img"
		disks[vm] = disk
		r.put(filepath.Join(vm, disk), bytes.Clone(content))
	}
	r.start()
	for what, vm := range hostileNames() {
		t.Run(what, func(t *testing.T) {
			r := r.of(t)
			point := r.sync(vm)
			points, err := r.client.Points(r.ctx(), vm)
			r.must(err)
			if points.VM != vm || len(points.Points) == 0 || points.Points[0].Disks[0].Name != disks[vm] {
				t.Errorf("%+v", points)
			}
			if v := r.vm(vm); v.Name != vm {
				t.Errorf("%+v", v)
			}
			r.equals(vm, point, map[string][]byte{disks[vm]: content})
		})
	}
}

// A name that JSON cannot carry would come back as another: its image is served and
// not replicated, and the status says so, until it is renamed.
func TestI12_NameThatIsNotUTF8(t *testing.T) {
	r := newRig(t)
	content := r.content(mib)
	r.put("bad\xff/os.img", bytes.Clone(content))
	r.put("web/bad\xff.img", bytes.Clone(content))
	r.put("web/os.img", bytes.Clone(content))
	r.start()
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content})
	if v := r.vm("web"); !hasMessage(v, "image-untracked", ".img", "its name is not UTF-8", "") {
		t.Errorf("%+v", v.Reasons)
	}
	r.change("web/bad\xff.img", 0, []byte("served"))
	r.rename("web/bad\xff.img", "web/good.img")
	good := append([]byte("served"), content[6:]...)
	r.await("web", "both disks", func(v control.VM) bool { return len(v.Disks) == 2 && !hasReason("image-untracked")(v) })
	r.equals("web", r.sync("web"), map[string][]byte{"os.img": content, "good.img": good})
}

// of is the same rig for a part of its test.
func (r *rig) of(t *testing.T) *rig {
	sub := *r
	sub.t = t
	return &sub
}

// Images that are none are served, named with what is wrong and what to do, and hold
// up nobody; mended they are replicated.
func TestI12_BadImages(t *testing.T) {
	r := newRig(t)
	good, data := r.content(mib), r.content(mib)
	damaged := vhd(data)
	damaged[len(damaged)-512+40] ^= 1
	short := append(bytes.Clone(data[:mib/2]), vhd(data)[mib:]...)
	for name, content := range map[string][]byte{
		"good.img": good, "damaged.vhd": damaged, "short.vhd": short, "empty.img": nil, "empty.vhd": nil, "tiny.vhd": data[:100], "cut.vhd": data,
	} {
		r.put("web/"+name, content)
	}
	r.put("web/tiny.img", data[:100])
	r.start()
	// It names a bad disk, unless the others were complete before anybody met one.
	if _, err := r.client.Sync(r.ctx(), "web", true, nil); err != nil && !errors.Is(err, &control.Error{Code: "bad-image"}) {
		t.Errorf("sync of a VM with a bad disk: %v", err)
	}
	// The others are not held up.
	r.await("web", "their initial replication", func(v control.VM) bool {
		return allDone(v, "good.img", "tiny.img")
	})
	copy(good, "changed")
	r.change("web/good.img", 0, good[:7])
	v := r.await("web", "a point", func(v control.VM) bool { return v.LastPoint != nil && v.PendingBytes == 0 && v.SpooledBytes == 0 })
	r.equals("web", v.LastPoint.ID, map[string][]byte{"good.img": good, "tiny.img": data[:100]})
	v = r.vm("web")
	for disk, want := range map[string]string{
		"damaged.vhd": "invalid image: wrong checksum: checksum at offset",
		"short.vhd":   "footer and file disagree on the size of the disk; repair it with the tool that wrote it",
	} {
		if !hasMessage(v, "bad-image", disk, want, "repair or remove the image") {
			t.Errorf("nothing says of %s that %q: %+v", disk, want, v.Reasons)
		}
	}
	for _, disk := range []string{"empty.img", "empty.vhd", "tiny.vhd", "cut.vhd"} {
		if !hasMessage(v, "image-incomplete", disk, "", "finish copying the image, or remove it") {
			t.Errorf("nothing says that %s is no image yet: %+v", disk, v.Reasons)
		}
	}
	for _, disk := range []string{"damaged.vhd", "short.vhd", "cut.vhd"} {
		r.write("web/"+disk, vhd(data))
	}
	for _, disk := range []string{"empty.img", "empty.vhd", "tiny.vhd"} {
		r.must(os.Remove(filepath.Join(r.mount, "web", disk)))
	}
	whole := vhd(data)[:mib]
	r.equals("web", r.sync("web"), map[string][]byte{"good.img": good, "tiny.img": data[:100], "damaged.vhd": whole, "short.vhd": whole, "cut.vhd": whole})
	if v := r.vm("web"); hasReason("bad-image")(v) || hasReason("image-incomplete")(v) {
		t.Errorf("after they were mended: %+v", v.Reasons)
	}
}

func allDone(v control.VM, names ...string) bool {
	for _, d := range v.Disks {
		if slices.Contains(names, d.Name) && (d.InitialReplication.TotalBytes == 0 || d.InitialReplication.DoneBytes < d.InitialReplication.TotalBytes) {
			return false
		}
	}
	return true
}

func hasMessage(v control.VM, code, subject, cause, action string) bool {
	for _, reason := range v.Reasons {
		if (reason.Code == code || reason.Cause == code) && strings.Contains(reason.Message, subject) && strings.Contains(reason.Message, cause) && strings.Contains(reason.Action, action) {
			return true
		}
	}
	return false
}

// A source that cannot be written is refused at the start, with what to do.
func TestI12_ReadOnlySource(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", r.content(mib))
	r.must(unix.Mount(r.source, r.source, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(r.source, unix.MNT_DETACH) })
	r.must(unix.Mount("", r.source, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	err := r.tryStart(r.config())
	var e *control.Error
	if !errors.As(err, &e) || e.Code != "source-read-only" || !strings.Contains(e.Message, r.source) || !strings.Contains(e.Action, "mount it writable") {
		t.Fatalf("%v", err)
	}
	r.must(unix.Mount("", r.source, "", unix.MS_REMOUNT|unix.MS_BIND, ""))
	r.start()
	r.sync("web")
}

// What lies at the target under the VM's name, and is not ours, is left alone, and
// the status says whose it is and what to do.
func TestI12_TargetIsNotOurs(t *testing.T) {
	for name, c := range map[string]struct {
		spoil               func(text string) string
		code, cause, action string
	}{
		"newer format": {func(s string) string { return strings.Replace(s, `"version": 1`, `"version": 99`, 1) }, "format-version", "format version 99, this one reads up to 2", "Upgrade vhdrelay"},
		"no JSON":      {func(string) string { return "<html>" }, "malformed-document", "vm.json", ""},
		"another host": {func(s string) string {
			return strings.NewReplacer(`"machine_id": "`, `"machine_id": "other`, `"store_id": "`, `"store_id": "other`).Replace(s)
		}, "owned-by-another", "replicated by host", "vhdrelay adopt web"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.put("web/os.img", r.content(mib))
			r.start()
			r.sync("web")
			r.stop()
			doc := filepath.Join(r.store, catalog.VMDocName("web"))
			text, err := os.ReadFile(doc)
			r.must(err)
			spoiled := []byte(c.spoil(string(text)))
			r.must(os.WriteFile(doc, spoiled, 0o600))
			r.must(os.RemoveAll(r.state))
			r.start()
			v := r.await("web", "an error", func(v control.VM) bool { return v.State == string(lifecycle.Error) })
			if !hasMessage(v, c.code, "", c.cause, c.action) || v.Health != control.HealthCritical {
				t.Errorf("%+v", v.Reasons)
			}
			if now, err := os.ReadFile(doc); err != nil || !bytes.Equal(now, spoiled) {
				t.Errorf("it was changed: %s %v", now, err)
			}
		})
	}
}
