package dir

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// fsIocShutdown is FS_IOC_SHUTDOWN; flag 2 does not flush the log: a power cut.
const (
	fsIocShutdown  = 0x8004587d
	withoutLogging = 2
)

// disk is an ext4 in a file.
type disk struct{ image, mount string }

func newDisk(t *testing.T) *disk {
	t.Helper()
	k := &disk{image: filepath.Join(t.TempDir(), "ext4"), mount: t.TempDir()}
	ok(t, os.WriteFile(k.image, nil, 0o600))
	ok(t, os.Truncate(k.image, 64<<20))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-F", k.image}, {"mount", "-o", "loop", k.image, k.mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Skipf("needs root and loop devices: %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { ok(t, unix.Unmount(k.mount, 0)) })
	return k
}

// target opens the one on the disk.
func (k *disk) target(t *testing.T) *Dir {
	t.Helper()
	d, err := Open(filepath.Join(k.mount, "replicas"), Options{Create: true})
	ok(t, err)
	return d
}

// cutPower loses everything that was not synced and mounts the disk again.
func (k *disk) cutPower(t *testing.T) {
	t.Helper()
	f, err := os.Open(k.mount)
	ok(t, err)
	if err := unix.IoctlSetPointerInt(int(f.Fd()), fsIocShutdown, withoutLogging); err != nil {
		ok(t, f.Close())
		t.Skipf("no shutdown ioctl: %v", err)
	}
	ok(t, f.Close())
	ok(t, unix.Unmount(k.mount, 0))
	if out, err := exec.Command("mount", "-o", "loop", k.image, k.mount).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// powerCase is one change of a target, and how to see that it took effect.
type powerCase struct {
	name string
	do   func(d *Dir) error
	done func(t *testing.T, d *Dir) bool
}

var powerCases = []powerCase{
	{"create", func(d *Dir) error {
		_, err := d.Create(bg, "new/points/1-1.json", []byte("record"))
		return err
	}, func(t *testing.T, d *Dir) bool { return object(t, d, "new/points/1-1.json") == "record" }},
	{"replace", func(d *Dir) error {
		_, err := d.Replace(bg, "vm/vm.json", []byte("new"), contentETag([]byte("old")))
		return err
	}, func(t *testing.T, d *Dir) bool { return object(t, d, "vm/vm.json") == "new" }},
	{"delete", func(d *Dir) error { return d.Delete(bg, "vm/vm.json") },
		func(t *testing.T, d *Dir) bool { return object(t, d, "vm/vm.json") == "" }},
	{"create pages", func(d *Dir) error { return d.CreatePages(bg, "new/log/1-1", 8192, 9) },
		func(t *testing.T, d *Dir) bool {
			p, err := d.Properties(t.Context(), "new/log/1-1", "")
			return err == nil && p.Size == 8192 && p.Sequence == 9
		}},
	{"put", func(d *Dir) error { return put(d, "vm/b", 8192, 2, target.Unguarded) },
		func(t *testing.T, d *Dir) bool { return page(t, d, "", 8192) == 2 }},
	{"clear", func(d *Dir) error { return d.ClearPages(bg, "vm/b", 0, 4096, target.Unguarded) },
		func(t *testing.T, d *Dir) bool { return page(t, d, "", 0) == 0 }},
	{"resize", func(d *Dir) error { return d.Resize(bg, "vm/b", 4096, target.Unguarded) },
		func(t *testing.T, d *Dir) bool { return properties(t, d).Size == 4096 }},
	{"set sequence", func(d *Dir) error {
		_, err := d.SetSequence(bg, "vm/b", 77, "", "")
		return err
	}, func(t *testing.T, d *Dir) bool { return properties(t, d).Sequence == 77 }},
	{"acquire", func(d *Dir) error { return d.AcquireLease(bg, "vm/b", idA) },
		func(t *testing.T, d *Dir) bool { return properties(t, d).Leased }},
	{"snapshot", func(d *Dir) error {
		_, err := d.Snapshot(bg, "vm/b", "", "", map[string]string{"epoch": "7"})
		return err
	}, func(t *testing.T, d *Dir) bool {
		list, err := d.Snapshots(t.Context(), "vm/b")
		ok(t, err)
		return len(list) == 1 && list[0].Metadata["epoch"] == "7" && page(t, d, list[0].ID, 0) == 1
	}},
	{"delete pages", func(d *Dir) error { return d.DeletePages(bg, "vm/b", "") },
		func(t *testing.T, d *Dir) bool { return len(list(t, d, "vm/b")) == 0 }},
}

func object(t *testing.T, d *Dir, name string) string {
	t.Helper()
	o, err := d.Get(t.Context(), name)
	if err != nil {
		is(t, err, target.ErrNotFound)
	}
	return string(o.Data)
}

func page(t *testing.T, d *Dir, snapshot string, off int64) byte {
	t.Helper()
	p := make([]byte, 4096)
	ok(t, d.ReadPages(t.Context(), "vm/b", snapshot, off, p))
	if !bytes.Equal(p, bytes.Repeat(p[:1], 4096)) {
		t.Fatalf("the page at %d is torn", off)
	}
	return p[0]
}

func properties(t *testing.T, d *Dir) target.Properties {
	t.Helper()
	p, err := d.Properties(t.Context(), "vm/b", "")
	ok(t, err)
	return p
}

// TestI4_AnsweredSurvivesPowerCut: what a method answered with success is there
// after the target's machine lost power.
func TestI4_AnsweredSurvivesPowerCut(t *testing.T) {
	k := newDisk(t)
	for _, c := range powerCases {
		t.Run(c.name, func(t *testing.T) {
			ok(t, os.RemoveAll(filepath.Join(k.mount, "replicas")))
			d := k.target(t)
			_, err := d.Create(bg, "vm/vm.json", []byte("old"))
			ok(t, err)
			ok(t, d.CreatePages(bg, "vm/b", 64<<10, 0))
			ok(t, put(d, "vm/b", 0, 1, target.Unguarded))
			unix.Sync()
			if c.done(t, d) {
				t.Fatal("it looks done before it was begun")
			}
			ok(t, c.do(d))
			ok(t, d.Close())
			k.cutPower(t)
			after := k.target(t)
			defer after.Close() // read only
			if !c.done(t, after) {
				t.Fatal("answered with success and lost")
			}
		})
	}
}
