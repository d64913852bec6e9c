package appliance

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/config"
)

var webWithoutSwap = config.VM{Name: "web", Exclude: []string{"swap.img"}}

func webWithoutTracking(tracking *bool) config.VM {
	return config.VM{Name: "web", Overrides: config.Overrides{Tracking: tracking}}
}

func TestBelongs(t *testing.T) {
	listed := config.VM{Name: "db", Disks: []string{"db/*.vhd", "shared/log?.img"}, Exclude: []string{"db/tmp.vhd"}}
	for _, c := range []struct {
		vms      []config.VM
		image    string
		vm, disk string
		ok       bool
	}{
		{nil, "os.vhd", "os.vhd", "os.vhd", true},
		{nil, "web/os.vhd", "web", "os.vhd", true},
		{nil, "web/deep/er/os.vhd", "web", "deep/er/os.vhd", true},
		{[]config.VM{{Name: "web"}}, "web/os.vhd", "web", "os.vhd", true},
		{[]config.VM{{Name: "os.vhd"}}, "os.vhd", "os.vhd", "os.vhd", true},
		{[]config.VM{webWithoutSwap}, "web/swap.img", "web", "swap.img", false},
		{[]config.VM{webWithoutSwap}, "web/deep/swap.img", "web", "deep/swap.img", true},
		{[]config.VM{webWithoutSwap}, "website/swap.img", "website", "swap.img", true},
		{[]config.VM{listed}, "db/data.vhd", "db", "data.vhd", true},
		{[]config.VM{listed}, "shared/log1.img", "db", "shared/log1.img", true},
		{[]config.VM{listed}, "shared/log22.img", "shared", "log22.img", true},
		{[]config.VM{listed}, "db/tmp.vhd", "db", "tmp.vhd", false},
		{[]config.VM{listed}, "db/unlisted.img", "db", "unlisted.img", false}, // the config says what db has
		{[]config.VM{{Name: "a", Disks: []string{"x/*"}}, {Name: "b", Disks: []string{"x/y.img"}}}, "x/y.img", "a", "x/y.img", true},
	} {
		vm, disk, ok := belongs(config.Store{VMs: c.vms}, c.image)
		if vm != c.vm || disk != c.disk || ok != c.ok {
			t.Errorf("%s with %v: %q %q %v, want %q %q %v", c.image, c.vms, vm, disk, ok, c.vm, c.disk, c.ok)
		}
	}
}

func TestGlobMatches(t *testing.T) {
	for _, c := range []struct {
		glob, image string
		want        bool
	}{
		{"web/*.vhd", "web/os.vhd", true},
		{"*.vhd", "web/os.vhd", true}, // relative to the VM
		{"*.vhd", "other/os.vhd", false},
		{"*.vhd", "os.vhd", true},
		{"web/*", "web/deep/os.vhd", false},
		{"deep/*", "web/deep/os.vhd", true},
		{"[", "web/[", false},
	} {
		if got := globMatches(c.glob, c.image, "web"); got != c.want {
			t.Errorf("%s on %s: %v", c.glob, c.image, got)
		}
	}
}

func TestDiskName(t *testing.T) {
	for image, want := range map[string]string{"web/os.vhd": "os.vhd", "web/a/b.vhd": "a/b.vhd", "website/os.vhd": "website/os.vhd", "os.vhd": "os.vhd"} {
		if got := diskName("web", image); got != want {
			t.Errorf("%s: %s, want %s", image, got, want)
		}
	}
}
