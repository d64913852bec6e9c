package preflight

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/config"
	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/shipper/pageblob"
	"github.com/vhdrelay/vhdrelay/shipper/target"
	"github.com/vhdrelay/vhdrelay/shipper/target/fake"
)

const tib = 1 << 40

func TestEverythingPasses(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", 64*mib, gpt(3, true))
	r.vhd("web/data.vhd", 32*mib)
	p := r.run()
	for _, code := range []string{"source", "mount", "state-latency", "target", "clock", "target-rights", "target-rate"} {
		r.expect(p, code, "", control.CheckPass, "")
	}
	r.expect(p, "disk", "os.img", control.CheckPass, "generation 2")
	r.expect(p, "disk", "data.vhd", control.CheckPass, "vhd-fixed")
	if len(p.Moves) != 1 || p.Moves[0].VM != "web" || p.Moves[0].VirtualBytes != 96*mib || p.Moves[0].Bytes <= 0 || p.Moves[0].Bytes > mib {
		t.Errorf("holes need not be moved: %+v", p.Moves)
	}
	if m := p.Moves[0]; m.Seconds == nil || *m.Seconds <= 0 || m.RateBytesPerSecond <= 0 {
		t.Errorf("no time although a rate was measured: %+v", m)
	}
	if len(r.stages) != 5 {
		t.Errorf("stages shown: %q", r.stages)
	}
}

// What an appliance knows to be at the target need not be moved; one that serves needs no empty mount point.
func TestBesideAnAppliance(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", 64*mib, make([]byte, mib))
	r.put("web/new.img", 64*mib, slices.Repeat([]byte{1}, mib))
	r.must(os.WriteFile(filepath.Join(r.mount, "web"), nil, 0o600))
	r.options.Served = []string{r.mount}
	r.options.Missing = func(vm, disk string) (int64, bool) { return 4096, vm == "web" && disk == "os.img" }
	p := r.run()
	r.expect(p, "mount", "", control.CheckPass, "served at")
	if got := p.Moves[0].Bytes; got != 4096+mib {
		t.Errorf("%d bytes to move", got)
	}
}

func TestBandwidthRuleBoundsTheRate(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", 64*mib, slices.Repeat([]byte{1}, mib))
	r.options.Config.Bandwidth = []config.Bandwidth{{Window: config.Window{Days: config.EveryDay}, Limit: 1 << 16}}
	if m := r.run().Moves[0]; m.RateBytesPerSecond != 1<<16 || *m.Seconds != 16 {
		t.Errorf("%+v", m)
	}
}

func TestOneVM(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", 64*mib, nil)
	r.put("db/os.img", 64*mib, nil)
	r.put("excluded/os.img", 64*mib, nil)
	if p := r.run(); len(p.Moves) != 2 {
		t.Errorf("%+v", p.Moves)
	}
	r.options.VM = "db"
	if p := r.run(); len(p.Moves) != 1 || p.Moves[0].VM != "db" {
		t.Errorf("%+v", p.Moves)
	}
	r.options.VM = "none"
	if _, err := Run(t.Context(), r.options); !errors.Is(err, &control.Error{Code: control.CodeNotFound}) {
		t.Errorf("%v", err)
	}
}

func TestNoDisks(t *testing.T) {
	r := newRig(t)
	r.expect(r.run(), "disks", "", control.CheckWarn, r.source)
}

func TestEndsWithItsContext(t *testing.T) {
	r := newRig(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.options.Progress = func(p control.Progress) { cancel() }
	if _, err := Run(ctx, r.options); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestDisks(t *testing.T) {
	r := newRig(t)
	r.put("a/bios.img", 64*mib, mbr(true))
	r.put("a/small.img", mib, mbr(false))
	r.put("a/odd.img", 64*mib+512, gpt(2, false))
	r.put("a/qcow.img", mib, []byte("QFI\xfb"))
	r.put("a/listed.qcow2", mib, []byte("QFI\xfb"))
	r.put("a/empty.img", 0, nil)
	r.put("a/torn.vhd", mib, nil)
	r.put("a/notes.txt", 10, nil)
	p := r.run()
	r.expect(p, "disk", "bios.img", control.CheckPass, "generation 1")
	r.expect(p, "disk-small", "small.img", control.CheckWarn, "20.0 MiB")
	r.expect(p, "disk-alignment", "odd.img", control.CheckWarn, "65.0 MiB")
	r.expect(p, "disk-format", "qcow.img", control.CheckFail, "qemu-img convert")
	r.expect(p, "disk-format", "listed.qcow2", control.CheckFail, "qemu-img convert")
	r.expect(p, "disk-format", "empty.img", control.CheckWarn, "wait")
	if c := find(p, "disk-format", "torn.vhd"); c.Result == control.CheckPass || c.Result == "" {
		t.Errorf("%+v", c)
	}
	for _, c := range p.Checks {
		if c.Disk == "notes.txt" || c.Disk == "odd.img" && strings.Contains(c.Message, "generation") {
			t.Errorf("%+v", c)
		}
	}
}

// The limits of Azure, where the file system takes files of that size.
func TestLargeDisks(t *testing.T) {
	r := newRig(t)
	if err := os.Truncate(filepath.Join(r.source, "probe"), 0); err == nil {
		t.Fatal("no such file")
	}
	big := filepath.Join(r.source, "big")
	r.must(os.WriteFile(big, nil, 0o600))
	if err := os.Truncate(big, 9*tib); err != nil {
		t.Skip("the file system takes no file of 9 TiB: ", err)
	}
	r.must(os.Remove(big))
	r.put("a/fits.img", maxDisk, nil)
	r.put("a/most.img", maxDisk+512, nil)
	r.put("a/mbr.img", 3*tib, mbr(true))
	r.put("a/efi.img", 5*tib, gpt(1, true))
	r.put("a/data.img", 5*tib, gpt(1, false))
	p := r.run()
	r.expect(p, "disk", "fits.img", control.CheckPass, "8.0 TiB")
	r.expect(p, "disk-hyperv", "data.img", control.CheckWarn, "--format vhdx")
	r.expect(p, "disk-size", "most.img", control.CheckFail, "a page blob holds")
	r.expect(p, "disk-os", "mbr.img", control.CheckFail, "convert it to GPT")
	r.expect(p, "disk-os", "efi.img", control.CheckFail, "boots from at most")
	if c := find(p, "disk-os", "data.img"); c.Code != "" {
		t.Errorf("a data disk of 5 TiB: %+v", c)
	}
}

// What a block table hides is looked through: size, allocation, sectors, how it boots, and what it lies over.
func TestTranslatedDisks(t *testing.T) {
	r := newRig(t)
	dynamic := imagetest.NewVHD(64*mib, 2*mib, 1, nil, "")
	dynamic.Write(0, gpt(3, true)[:128*sector])
	r.bytes("a/dynamic.vhd", dynamic.File())
	foreign := imagetest.NewVHD(64*mib+512, 2*mib, 3, nil, "")
	copy(foreign.Footer[28:], "vhdr")
	foreign.Rename("")
	r.bytes("a/foreign.vhd", foreign.File())
	big := imagetest.NewVHDX(40*mib, mib, 4096, 1, nil, "")
	big.Write(0, make([]byte, 4096))
	r.bytes("a/big.vhdx", big.B)
	r.bytes("a/fine.vhdx", imagetest.NewVHDX(40*mib, mib, 512, 1, nil, "").B)
	p := r.run()
	r.expect(p, "disk", "dynamic.vhd", control.CheckPass, "vhd-dynamic, 64.0 MiB, 64.0 KiB allocated, boots by UEFI: a generation 2 VM")
	r.expect(p, "disk", "big.vhdx", control.CheckPass, "vhdx-dynamic, 40.0 MiB, 1.0 MiB allocated")
	r.expect(p, "disk-sectors", "big.vhdx", control.CheckWarn, "4096")
	r.expect(p, "disk-geometry", "foreign.vhd", control.CheckWarn, "qemu before 10 takes the geometry")
	r.expect(p, "disk-alignment", "foreign.vhd", control.CheckWarn, "65.0 MiB")
	for code, disk := range map[string]string{"disk-sectors": "fine.vhdx", "disk-geometry": "dynamic.vhd", "disk-chain": "dynamic.vhd", "disk-hyperv": "big.vhdx"} {
		if c := find(p, code, disk); c.Code != "" {
			t.Errorf("%+v", c)
		}
	}
	if m := p.Moves[0]; m.Bytes > 2*mib {
		t.Errorf("%d bytes to move of what is allocated", m.Bytes)
	}
}

// The state of a chain, and which of its images is the disk.
func TestChains(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHD(64*mib, 2*mib, 1, nil, "")
	leaf := imagetest.NewVHD(64*mib, 2*mib, 2, base, "base.vhd")
	r.bytes("a/base.vhd", base.File())
	r.bytes("a/leaf.avhd", leaf.File())
	r.bytes("b/leaf.avhd", imagetest.NewVHD(64*mib, 2*mib, 2, base, "gone.vhd").File())
	p := r.run()
	r.expect(p, "disk-chain", "leaf.avhd", control.CheckPass, "a/leaf.avhd over a/base.vhd")
	r.expect(p, "disk", "leaf.avhd", control.CheckPass, "vhd-differencing, 64.0 MiB, 0 B allocated")
	r.expect(p, "disk-parent", "base.vhd", control.CheckPass, "others lie over it")
	r.options.VM = "b"
	p = r.run()
	r.expect(p, "disk-chain", "leaf.avhd", control.CheckFail, "there is no b/gone.vhd")
	r.expect(p, "disk-chain", "leaf.avhd", control.CheckFail, "put the parent into the store")
}

// A disk of 4 KiB sectors in a raw image is told by its partition table.
func TestSectorsOf4K(t *testing.T) {
	small := gpt(3, true)
	large := make([]byte, 16*sector4K)
	copy(large, small[:sector])
	copy(large[sector4K:], small[sector:2*sector])
	copy(large[2*sector4K:], small[2*sector:][:3*128])
	r := newRig(t)
	r.put("a/large.img", 64*mib, large)
	r.put("a/small.img", 64*mib, small)
	p := r.run()
	r.expect(p, "disk-sectors", "large.img", control.CheckWarn, "does not find the partitions")
	r.expect(p, "disk", "large.img", control.CheckPass, "generation 2")
	if c := find(p, "disk-sectors", "small.img"); c.Code != "" {
		t.Errorf("%+v", c)
	}
}

// A table that lies is no reason to read anywhere.
func TestBootHintReadsNothingWild(t *testing.T) {
	for name, change := range map[string]func(b []byte){
		"entries of no size":   func(b []byte) { clear(b[sector+84 : sector+88]) },
		"entries beyond it":    func(b []byte) { b[sector+75] = 0xff },
		"entries at the start": func(b []byte) { b[sector+72] = 1 },
		"no signature":         func(b []byte) { b[510] = 0 },
	} {
		b := gpt(1, true)
		change(b)
		if got, _ := bootOf(strings.NewReader(string(b))); got != bootNone {
			t.Errorf("%s: %q", name, got)
		}
	}
	if got, _ := bootOf(strings.NewReader(string(gpt(gptMost, true)))); got != bootUEFI {
		t.Errorf("the last of %d entries: %q", gptMost, got)
	}
	if got, _ := bootOf(strings.NewReader("short")); got != bootNone {
		t.Errorf("%q", got)
	}
}

func TestStores(t *testing.T) {
	r := newRig(t)
	for dir := r.source; dir != os.TempDir(); dir = filepath.Dir(dir) {
		r.must(os.Chmod(dir, 0o755)) // those of tests are private
	}
	r.must(os.WriteFile(filepath.Join(r.mount, "something"), nil, 0o600))
	r.must(os.WriteFile(filepath.Join(r.mount, "else"), nil, 0o600))
	p := r.run()
	r.expect(p, "source", "", control.CheckWarn, "below a directory of mode 0700")
	r.expect(p, "mount", "", control.CheckFail, "and 1 more")
	r.options.Config.Stores[0].Source, r.options.Config.Stores[0].Mount = r.source+"/none", r.mount+"/none"
	p = r.run()
	r.expect(p, "source", "", control.CheckFail, "create it")
	r.expect(p, "mount", "", control.CheckFail, "mkdir -p")
	file := filepath.Join(r.source, "file")
	r.must(os.WriteFile(file, nil, 0o600))
	r.options.Config.Stores[0].Source, r.options.Config.Stores[0].Mount = file, file
	p = r.run()
	r.expect(p, "source", "", control.CheckFail, "no directory")
	r.expect(p, "mount", "", control.CheckFail, "look at the mount point")
}

func TestState(t *testing.T) {
	r := newRig(t)
	p := r.run()
	r.expect(p, "state-disk", "", control.CheckWarn, "disk of its own")
	r.expect(p, "state-space", "", control.CheckPass, "free for state")
	r.options.Config.StateDir = filepath.Join(r.state, "made", "later")
	r.expect(r.run(), "state-latency", "", control.CheckPass, "synced write")
}

func TestRoom(t *testing.T) {
	images := []disk{{vm: "a"}, {vm: "a"}, {vm: "b"}}
	for i := range images {
		images[i].info.VirtualSize = 1 << 30
	}
	const tables = 3 << 30 / 512
	for free, want := range map[int64]control.CheckResult{
		tables + 4*minSpool - 1: control.CheckFail, tables + 4*minSpool: control.CheckWarn,
		tables + 3<<30 - 1: control.CheckWarn, tables + 3<<30: control.CheckPass,
	} {
		r := &run{}
		r.room(free, images)
		if got := r.result.Checks[0].Result; got != want {
			t.Errorf("%d bytes free: %s, want %s", free, got, want)
		}
	}
}

func TestKernelVersion(t *testing.T) {
	for release, want := range map[string][2]int{"6.18.5-amd64": {6, 18}, "6.1.0-28-amd64": {6, 1}, "5.15": {5, 15}, "6.6+": {6, 6}} {
		if got, ok := kernelVersion(release); !ok && len(release) > 4 || ok && got != want {
			t.Errorf("%s: %v, %v", release, got, ok)
		}
	}
	for _, release := range []string{"", "custom", "6"} {
		if got, ok := kernelVersion(release); ok {
			t.Errorf("%q: %v", release, got)
		}
	}
	if !less([2]int{6, 1}, kernelAll) || less([2]int{6, 18}, kernelAll) || !less([2]int{5, 20}, kernelLeast) || less([2]int{7, 0}, kernelAll) {
		t.Error("the order of versions")
	}
}

// failing is a fake whose k-th operation fails, counted from 1.
func failing(k int, err error) *fake.Fake {
	f := fake.New(fake.Options{})
	f.FailAt(k, fake.Fault{Kind: fake.Refuse, Err: err})
	return f
}

// Every operation of a run fails once: each is a check that fails with its cause, and the scratch is taken away.
func TestEveryRightIsReported(t *testing.T) {
	count := fake.New(fake.Options{})
	r := newRig(t)
	r.target = count
	if p := r.run(); p.Worst() == control.CheckFail {
		t.Fatalf("%+v", p)
	}
	silent := 0
	for k := 1; k <= count.Operations(); k++ {
		r.target = failing(k, target.ErrAuth)
		p, err := Run(t.Context(), r.options)
		r.must(err)
		failed := slices.ContainsFunc(p.Checks, func(c control.Check) bool {
			return c.Result == control.CheckFail && strings.Contains(c.Message, "not authorized") && c.Action != ""
		})
		if !failed {
			silent++ // looking for what an earlier run left may fail: the next run looks again
		}
		left := 0
		for range r.target.Clone().List(context.Background(), scratchPrefix) {
			left++
		}
		if left > 0 && !failed {
			t.Errorf("operation %d: %d blobs are left and nobody says so", k, left)
		}
	}
	if silent > 1 {
		t.Errorf("%d of %d failures are reported by nobody", silent, count.Operations())
	}
}

func TestTargetThatCannotBeOpened(t *testing.T) {
	r := newRig(t)
	r.put("web/os.img", 64*mib, slices.Repeat([]byte{1}, mib))
	r.options.Open = func(context.Context) (target.Target, error) {
		return nil, &target.Error{Op: "Open", Code: "credential", Err: target.ErrAuth, Hint: "mend the file"}
	}
	p := r.run()
	r.expect(p, "target", "", control.CheckFail, "mend the file")
	if m := p.Moves[0]; m.Seconds != nil || m.RateBytesPerSecond != 0 || m.Bytes != mib {
		t.Errorf("no rate, no time: %+v", m)
	}
}

func TestMissingContainerIsForTheFirstStart(t *testing.T) {
	r := newRig(t)
	r.target.SetHook(func(fake.Op) fake.Fault {
		return fake.Fault{Kind: fake.Refuse, Err: target.ErrNoContainer}
	})
	p := r.run()
	r.expect(p, "target", "", control.CheckWarn, "first start")
}

func TestClock(t *testing.T) {
	for ahead, want := range map[time.Duration]control.CheckResult{
		0: control.CheckPass, -2 * time.Minute: control.CheckWarn, 2 * time.Minute: control.CheckWarn, -6 * time.Minute: control.CheckFail, time.Hour: control.CheckFail,
	} {
		r := newRig(t)
		r.target = fake.New(fake.Options{Now: func() time.Time { return time.Now().Add(ahead) }})
		r.expect(r.run(), "clock", "", want, "clock")
	}
}

// What a run left that was killed goes with the next one, leased and with its snapshot, once it is old.
func TestScratchOfACrashIsRemoved(t *testing.T) {
	r := newRig(t)
	r.target = fake.New(fake.Options{Now: func() time.Time { return time.Now().Add(-2 * scratchOld) }})
	ctx, name := t.Context(), scratchPrefix+"x.vhd"
	r.must(r.target.CreatePages(ctx, name, 4096, 1))
	r.must(r.target.AcquireLease(ctx, name, "11111111-1111-1111-1111-111111111111"))
	_, err := r.target.Snapshot(ctx, name, "11111111-1111-1111-1111-111111111111", "", nil)
	r.must(err)
	_, err = r.target.Create(ctx, scratchPrefix+"x.json", []byte("{}"))
	r.must(err)
	r.run()
}

func TestKindOfAccount(t *testing.T) {
	for _, c := range []struct {
		account pageblob.Account
		want    control.CheckResult
		text    string
	}{
		{pageblob.Account{Kind: "StorageV2", SKU: "Standard_LRS"}, control.CheckPass, "flat"},
		{pageblob.Account{Kind: "StorageV2", SKU: "Standard_LRS", HNS: true}, control.CheckFail, "hierarchical"},
		{pageblob.Account{Kind: "StorageV2", SKU: "Premium_LRS"}, control.CheckWarn, "100 snapshots"},
		{pageblob.Account{Kind: "Storage", SKU: "Standard_GRS"}, control.CheckWarn, "upgrade"},
		{pageblob.Account{Kind: "BlobStorage", SKU: "Standard_LRS"}, control.CheckFail, "no page blobs"},
		{pageblob.Account{Kind: "FileStorage"}, control.CheckFail, "no page blobs"},
	} {
		r := &run{}
		r.kind(c.account)
		if got := r.result.Checks[0]; got.Result != c.want || !strings.Contains(got.Message+got.Action, c.text) {
			t.Errorf("%+v: %+v", c.account, got)
		}
	}
}

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 3 << 29: "1.5 GiB", 8 << 40: "8.0 TiB", 1 << 62: "4.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// The mode of the source is the mount's: 0700 keeps a qemu out that is not root, and whoever does what is printed is
// warned of nothing any more.
func TestMountThatAHypervisorCannotEnter(t *testing.T) {
	r := newRig(t)
	uid := 64055
	r.options.User = func(name string) (int, bool) { return uid, name == "libvirt-qemu" }
	r.expect(r.run(), "mount-mode", "", control.CheckWarn, "chmod 0711 "+r.source)
	r.must(os.Chmod(r.source, 0o711))
	p := r.run()
	r.expect(p, "source", "", control.CheckPass, "")
	if c := find(p, "mount-mode", ""); c.Code != "" {
		t.Errorf("after the action: %+v", c)
	}
	r.must(os.Chmod(r.source, 0o700))
	uid = os.Getuid()
	if c := find(r.run(), "mount-mode", ""); c.Code != "" {
		t.Errorf("the owner may enter: %+v", c)
	}
	r.options.User = func(string) (int, bool) { return 0, false }
	if c := find(r.run(), "mount-mode", ""); c.Code != "" {
		t.Errorf("no hypervisor is here: %+v", c)
	}
	r.options.User = nil
	r.run()
}
