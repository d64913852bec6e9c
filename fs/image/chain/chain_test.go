package chain

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// vhds is a chain of three, the sizes of its disks not the same.
func (r *rig) vhds(rnd *rand.Rand, blockSize int64) (base, middle, leaf *imagetest.VHDLayer) {
	base = imagetest.NewVHDLayer(300<<10, blockSize, 1, nil, "")
	r.change(base, rnd)
	middle = imagetest.NewVHDLayer(290<<10, blockSize, 2, base, "base.vhd")
	r.change(middle, rnd)
	leaf = imagetest.NewVHDLayer(333<<10, blockSize, 3, middle, "middle.vhd")
	r.change(leaf, rnd)
	return base, middle, leaf
}

// TestThreeDeepVHD: found, linked, and read as the model says, at several block sizes.
func TestThreeDeepVHD(t *testing.T) {
	for _, blockSize := range []int64{4096, 64 << 10, 2 << 20} {
		for seed := range uint64(5) {
			r := newRig(t)
			base, middle, leaf := r.vhds(rand.New(rand.NewPCG(seed, 1)), blockSize)
			r.vhd("vm/base.vhd", base)
			r.vhd("vm/middle.vhd", middle)
			r.vhd("vm/leaf.avhd", leaf)
			c := r.reads("vm/leaf.avhd", leaf.Model)
			if got := c.Identity().String(); got != "vm/leaf.avhd over vm/middle.vhd over vm/base.vhd" {
				t.Errorf("%s", got)
			}
			r.reads("vm/middle.vhd", middle.Model)
			r.reads("vm/base.vhd", base.Model)
		}
	}
}

func (r *rig) change(l interface{ Change(*rand.Rand) }, rnd *rand.Rand) {
	for range 40 {
		l.Change(rnd)
	}
}

// TestThreeDeepVHDX: as with VHDs; the link is the DataWriteGuid.
func TestThreeDeepVHDX(t *testing.T) {
	for _, sector := range []int64{512, 4096} {
		r := newRig(t)
		rnd := rand.New(rand.NewPCG(uint64(sector), 1))
		base := imagetest.NewVHDXLayer(3<<20, sector, 1, nil, "")
		r.change(base, rnd)
		middle := imagetest.NewVHDXLayer(2<<20+8*4096, sector, 2, base, "base.vhdx")
		r.change(middle, rnd)
		leaf := imagetest.NewVHDXLayer(3<<20+5*4096, sector, 3, middle, "middle.vhdx")
		r.change(leaf, rnd)
		r.put("vm/base.vhdx", base.B)
		r.put("vm/middle.vhdx", middle.B)
		r.put("leaf.avhdx", leaf.B)
		r.put("vm/leaf.avhdx", leaf.B)
		c := r.reads("vm/leaf.avhdx", leaf.Model)
		if len(c.Members) != 3 || c.Members[1].ID() != middle.DataWrite || c.Members[2].Name != "vm/base.vhdx" {
			t.Errorf("%s", c.Identity())
		}
		r.reads("leaf.avhdx", leaf.Model) // by the tail of C:\vm\middle.vhdx
		leaf.Locate("parent_linkage", imagetest.GUIDText([16]byte{9}), "parent_linkage2", imagetest.GUIDText(middle.DataWrite),
			"volume_path", `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\hyper-v\VM\middle.vhdx`)
		r.put("leaf.avhdx", leaf.B)
		r.put("middle.vhdx", middle.B)
		if c := r.reads("leaf.avhdx", leaf.Model); c.Members[1].Name != "middle.vhdx" {
			t.Errorf("%s", c.Identity())
		}
	}
}

// TestPlaces: where a parent is looked for, in which order, and that nothing leads out of the store.
func TestPlaces(t *testing.T) {
	ru, ku, name := "W2ru", "W2ku", "name"
	for _, c := range []struct {
		child string
		loc   []image.Locator
		want  string
	}{
		{"vm/a.vhd", []image.Locator{{Kind: ku, Path: `D:\vms\vm\b.vhd`}, {Kind: ru, Path: `..\golden\b.vhd`}}, "golden/b.vhd vm/b.vhd b.vhd vms/vm/b.vhd"},
		{"a.vhd", []image.Locator{{Kind: ru, Path: `.\b.vhd`}}, "b.vhd"},
		{"a.vhd", []image.Locator{{Kind: ru, Path: `..\b.vhd`}}, "b.vhd"},
		{"a.vhd", []image.Locator{{Kind: ru, Path: `..\..\..\etc\passwd`}}, "passwd"},
		{"vm/a.vhd", []image.Locator{{Kind: "MacX", Path: `file://../../../etc/passwd`}}, "vm/passwd"},
		{"vm/a.vhd", []image.Locator{{Kind: "MacX", Path: `file:///etc/b%20c.vhd`}}, "vm/b c.vhd b c.vhd etc/b c.vhd"},
		{"vm/a.vhd", []image.Locator{{Kind: "MacX", Path: `file://./b.vhd`}}, "vm/b.vhd"},
		{"vm/a.vhd", []image.Locator{{Kind: "relative_path", Path: `C:\b.vhd`}}, "vm/b.vhd b.vhd"},
		{"vm/a.vhd", []image.Locator{{Kind: "absolute_win32_path", Path: `\\?\c:\x\b.vhdx`}}, "vm/b.vhdx b.vhdx x/b.vhdx"},
		{"vm/a.vhd", []image.Locator{{Kind: name, Path: `/srv/x/b.vhd`}}, "vm/b.vhd b.vhd x/b.vhd srv/x/b.vhd"},
		{"vm/a.vhd", []image.Locator{{Kind: name, Path: ".."}, {Kind: ru, Path: `.\..`}, {Kind: ku, Path: `C:\`}, {Kind: ru, Path: "b\x00.vhd"}, {Kind: "Mac ", Path: "blob"},
			{Kind: "MacX", Path: "http://x/b.vhd"}, {Kind: ku, Path: strings.Repeat("a/", 3000) + "b"}}, ""},
	} {
		var got []string
		for _, p := range places(c.child, c.loc) {
			got = append(got, p.name)
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s, %v: %q, want %q", c.child, c.loc, got, c.want)
		}
	}
	deep := places("a.vhd", []image.Locator{{Kind: ku, Path: strings.Repeat(`a\`, 1000) + "b.vhd"}})
	if len(deep) != tailMost {
		t.Errorf("%d places of a deep path", len(deep))
	}
}

// broken opens a chain that must be, and holds the error against what an operator needs.
func (r *rig) broken(name string, o Options, want error, field string, texts ...string) {
	r.t.Helper()
	c, err := OpenFile(r.dir, name, o)
	if err == nil {
		r.must(c.Close())
	}
	e := (*image.Error)(nil)
	if !errors.Is(err, want) || !errors.Is(err, image.ErrParent) || !errors.As(err, &e) {
		r.t.Fatalf("%s: %v, want %v", name, err, want)
	}
	if !strings.HasPrefix(e.Field, field) || e.Offset == 0 || e.Hint == "" || e.Expected == "" || e.Path == "" {
		r.t.Errorf("%s: %+v", name, e)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			r.t.Errorf("%q is not in: %v", text, err)
		}
	}
}

// TestBrokenChains: each way a chain breaks, told by the field of the child and the parent that it names.
func TestBrokenChains(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	middle := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 3, middle, "middle.vhd")
	other := imagetest.NewVHDLayer(64<<10, 4096, 9, nil, "")
	r.vhd("vm/leaf.vhd", leaf)
	r.broken("vm/leaf.vhd", Options{}, image.ErrParent, "parent locator W2ru", "vm/leaf.vhd: ", "vm/middle.vhd", "offset 1088", `.\\middle.vhd`, "00000000-0000-0000-0000-000000000002")
	r.vhd("vm/middle.vhd", middle)
	r.broken("vm/leaf.vhd", Options{}, image.ErrParent, "parent locator W2ru", "vm/middle.vhd: ", "vm/base.vhd")
	r.vhd("vm/base.vhd", other)
	r.broken("vm/leaf.vhd", Options{}, ErrLinkage, "parent unique id", "vm/middle.vhd: ", "000000000001", "000000000009, that of vm/base.vhd", "offset 552")
	r.vhd("base.vhd", base)
	if _, err := OpenFile(r.dir, "vm/leaf.vhd", Options{}); err != nil {
		t.Errorf("another place has the parent: %v", err)
	}
	r.vhd("vm/base.vhd", base)
	r.broken("vm/leaf.vhd", Options{Depth: 2}, ErrDepth, "parent locator", "at most 2 images")
	r.put("vm/base.vhd", base.File()[:100])
	r.must(os.Remove(filepath.Join(r.path, "base.vhd")))
	if _, err := OpenFile(r.dir, "vm/leaf.vhd", Options{}); !errors.Is(err, image.ErrNotYet) || !strings.Contains(err.Error(), "vm/base.vhd: ") {
		t.Errorf("a parent that is being copied: %v", err)
	}
	x := imagetest.NewVHDX(3<<20, 1<<20, 512, 1, nil, "")
	r.put("vm/base.vhd", x.B)
	r.broken("vm/leaf.vhd", Options{}, ErrLinkage, "parent unique id", "vm/base.vhd")
	for _, kind := range []string{"W2ru", "W2ku", "MacX"} {
		for i := range 3 {
			leaf.Locate(i, kind, "")
		}
	}
	leaf.Rename("")
	r.vhd("vm/leaf.vhd", leaf)
	r.broken("vm/leaf.vhd", Options{}, image.ErrParent, "parent locator", "nothing that leads to a file")
}

// TestVHDXLinkage: the parent's DataWriteGuid changes with the first write of a guest after each opening.
func TestVHDXLinkage(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDX(3<<20, 1<<20, 512, 1, nil, "")
	leaf := imagetest.NewVHDX(3<<20, 1<<20, 512, 2, base, "base.vhdx")
	r.put("leaf.vhdx", leaf.B)
	r.put("base.vhdx", base.B)
	r.open("leaf.vhdx")
	base.DataWrite = [16]byte{7, 15: 7}
	base.Header([16]byte{})
	r.put("base.vhdx", base.B)
	r.broken("leaf.vhdx", Options{}, ErrLinkage, "parent_linkage", imagetest.GUIDText(base.DataWrite)[1:37], "that of base.vhdx")
}

// TestStaleParent: a VHD that was written after its child was made; unless the link was good once, as a merge leaves it.
func TestStaleParent(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("base.vhd", base)
	r.vhd("leaf.vhd", leaf)
	good := r.open("leaf.vhd").Identity()
	recorded := imagetest.Created.Add(time.Hour)
	leaf.Reparent(base.VHD, recorded)
	r.vhd("leaf.vhd", leaf)
	r.broken("leaf.vhd", Options{}, ErrStale, "parent time stamp", "2024-02-29T13:00:00Z", "touch -d 2024-02-29T13:00:00Z base.vhd", "offset 568")
	if _, err := OpenFile(r.dir, "leaf.vhd", Options{Known: good}); err != nil {
		t.Errorf("the link was good: %v", err)
	}
	r.touch("base.vhd", recorded)
	r.open("leaf.vhd")
	leaf.Reparent(base.VHD, time.Unix(946684800, 0)) // no time: not recorded
	r.vhd("leaf.vhd", leaf)
	r.touch("base.vhd", recorded.Add(time.Minute))
	r.open("leaf.vhd")
}

// TestCycle: an image over itself, and two over each other.
func TestCycle(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	a := imagetest.NewVHDLayer(64<<10, 4096, 1, base, "a.vhd")
	r.vhd("a.vhd", a)
	r.broken("a.vhd", Options{}, ErrCycle, "parent locator W2ru", "which is a.vhd")
	b := imagetest.NewVHDLayer(64<<10, 4096, 2, a, "a.vhd")
	a2 := imagetest.NewVHDLayer(64<<10, 4096, 1, b, "b.vhd")
	r.vhd("a.vhd", a2)
	r.vhd("b.vhd", b)
	r.broken("a.vhd", Options{}, ErrCycle, "parent locator W2ru", "b.vhd: ", "which is a.vhd")
	r.must(os.Remove(filepath.Join(r.path, "b.vhd")))
	r.must(os.Link(filepath.Join(r.path, "a.vhd"), filepath.Join(r.path, "b.vhd")))
	r.broken("a.vhd", Options{}, ErrCycle, "parent locator W2ru", "which is a.vhd")
}

// TestNothingOutsideTheStore: links and special files do not lead out, and nothing waits for them.
func TestNothingOutsideTheStore(t *testing.T) {
	outside := t.TempDir()
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("vm/leaf.vhd", leaf)
	secret := filepath.Join(outside, "base.vhd")
	r.must(os.WriteFile(secret, base.File(), 0o600))
	for _, link := range []struct{ to, name string }{{secret, "vm/base.vhd"}, {outside, "base.vhd"}} {
		path := filepath.Join(r.path, link.name)
		r.must(os.Symlink(link.to, path))
		r.broken("vm/leaf.vhd", Options{}, image.ErrParent, "parent locator")
		r.must(os.Remove(path))
	}
	r.must(unix.Mkfifo(filepath.Join(r.path, "vm/base.vhd"), 0o600))
	r.broken("vm/leaf.vhd", Options{}, image.ErrParent, "parent locator", "no regular file")
	r.must(os.Remove(filepath.Join(r.path, "vm/base.vhd")))
	r.vhd("golden/real.vhd", base)
	r.must(os.Symlink("../golden/real.vhd", filepath.Join(r.path, "vm/base.vhd")))
	r.open("vm/leaf.vhd")
	for _, name := range []string{"../x", "/etc/passwd", "", "vm"} {
		if _, err := r.dir.Open(name); !errors.Is(err, iofs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestOtherLetters: Windows takes BASE.VHD for base.vhd.
func TestOtherLetters(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, `Golden\Base.vhd`)
	r.vhd("vm/leaf.vhd", leaf)
	r.vhd("vm/GOLDEN/base.VHD", base)
	if c := r.open("vm/leaf.vhd"); c.Members[1].Name != "vm/GOLDEN/base.VHD" {
		t.Errorf("%s", c.Identity())
	}
}

// TestLeafMayBeAView: the leaf is read as it is given, and stays open.
func TestLeafMayBeAView(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("vm/base.vhd", base)
	leaf.Write(0, bytes.Repeat([]byte{5}, 4096))
	file := leaf.File()
	c, err := Open(r.dir, Leaf{"vm/leaf.vhd", bytes.NewReader(file), Stat{Size: int64(len(file))}}, Options{})
	r.must(err)
	if got := imagetest.ReadAll(t, c); got[4095] != 5 || got[4096] != 0 {
		t.Error("not the view")
	}
	r.must(c.Close())
}

// TestFilesAreClosed: of a chain that is closed, and of one that breaks.
func TestFilesAreClosed(t *testing.T) {
	r := newRig(t)
	_, _, leaf := r.vhds(rand.New(rand.NewPCG(1, 1)), 4096)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	middle := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("leaf.vhd", leaf)
	r.vhd("middle.vhd", middle)
	count := func() int {
		n := 0
		links, err := filepath.Glob("/proc/self/fd/*")
		r.must(err)
		for _, l := range links {
			if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, r.path+"/") {
				n++
			}
		}
		return n
	}
	before := count()
	for range 3 {
		r.broken("leaf.vhd", Options{}, image.ErrParent, "parent locator")
	}
	r.vhd("base.vhd", imagetest.NewVHDLayer(64<<10, 4096, 9, nil, ""))
	for range 3 {
		r.broken("leaf.vhd", Options{}, ErrLinkage, "parent unique id")
	}
	if count() != before {
		t.Errorf("%d files of broken chains left open", count()-before)
	}
	r.vhd("base.vhd", base)
	c, err := OpenFile(r.dir, "leaf.vhd", Options{})
	r.must(err)
	if count() != before+3 {
		t.Errorf("%d files for three images", count()-before)
	}
	r.must(c.Close())
	if members, err := Walk(r.dir, "leaf.vhd"); err != nil || len(members) != 3 {
		t.Errorf("%d members, %v", len(members), err)
	}
	r.must(os.Remove(filepath.Join(r.path, "base.vhd")))
	if members, err := Walk(r.dir, "leaf.vhd"); !errors.Is(err, image.ErrParent) || len(members) != 2 {
		t.Errorf("%d members, %v", len(members), err)
	}
	if count() != before {
		t.Errorf("%d files left open", count()-before)
	}
}

// TestReadErrorIsNamed: what cannot be read is no chain, and no other parent is taken for it.
func TestReadErrorIsNamed(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHDLayer(64<<10, 4096, 1, nil, "")
	leaf := imagetest.NewVHDLayer(64<<10, 4096, 2, base, "base.vhd")
	r.vhd("leaf.vhd", leaf)
	r.vhd("base.vhd", base)
	errDisk := fmt.Errorf("a sick disk: %w", unix.EIO)
	for _, s := range []sick{{r.dir, errDisk, nil}, {r.dir, nil, errDisk}} {
		f, err := r.dir.Open("leaf.vhd")
		r.must(err)
		st, err := f.Stat()
		r.must(err)
		if _, err := Open(s, Leaf{"leaf.vhd", f, st}, Options{}); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "base.vhd") {
			t.Errorf("%v", err)
		}
		r.must(f.Close())
	}
}

// sick is a store whose files do not open, or do not stat.
type sick struct {
	Store
	open, stat error
}

func (s sick) Open(name string) (File, error) {
	f, err := s.Store.Open(name)
	if s.open != nil && err == nil {
		return nil, errors.Join(s.open, f.Close())
	}
	return sickFile{f, s.stat}, err
}

type sickFile struct {
	File
	stat error
}

func (f sickFile) Stat() (Stat, error) {
	st, err := f.File.Stat()
	if f.stat != nil {
		err = f.stat
	}
	return st, err
}

// FuzzPlaces: whatever an image says of its parent, it is looked for in the store, and in few places.
func FuzzPlaces(f *testing.F) {
	for _, p := range []string{`.\b.vhd`, `..\..\etc\passwd`, `C:\vm\b.vhd`, `\\?\Volume{26A21BDA-A627-11D7-9931-806E6F6E6963}\b.vhdx`, "file://./b.vhd", "file:///a/%2e%2e/b", "a/../../b", "//host/share/b.vhd", `\..\b`, "C:", "%"} {
		f.Add("vm/a.vhd", p, p)
	}
	f.Fuzz(func(t *testing.T, child, one, two string) {
		if !filepath.IsLocal(child) {
			return
		}
		var all []image.Locator
		for _, kind := range []string{"W2ru", "W2ku", "MacX", "name", "relative_path", "absolute_win32_path", "volume_path", "Wi2r"} {
			all = append(all, image.Locator{Kind: kind, Path: one}, image.Locator{Kind: kind, Path: two})
		}
		found := places(child, all)
		for _, p := range found {
			if !filepath.IsLocal(p.name) || p.name == "." || strings.ContainsRune(p.name, 0) && !strings.ContainsRune(child, 0) {
				t.Errorf("%v: %q", all, p.name)
			}
		}
		if len(found) > len(all)*(tailMost+2) {
			t.Errorf("%d places", len(found))
		}
	})
}
