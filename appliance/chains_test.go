package appliance

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
)

// TestStatusShowsChains: of a differencing image what it lies over, and after a change the missing link.
func TestStatusShowsChains(t *testing.T) {
	r := newRig(t)
	base := imagetest.NewVHD(4*mib, 2*mib, 1, nil, "")
	leaf := imagetest.NewVHD(4*mib, 2*mib, 2, base, "base.vhd")
	r.put("web/base.vhd", base.File())
	r.put("web/leaf.avhd", leaf.File())
	r.put("web/os.img", r.content(mib))
	r.start()
	disk := func(name string) control.Disk {
		t.Helper()
		r.app.survey()
		for _, d := range r.vm("web").Disks {
			if d.Name == name {
				return d
			}
		}
		t.Fatalf("no disk %s", name)
		return control.Disk{}
	}
	want := []string{"web/leaf.avhd", "web/base.vhd"}
	for range 2 { // looked at, and remembered
		if d := disk("leaf.avhd"); !slices.Equal(d.Chain, want) || d.ChainError != "" {
			t.Fatalf("%+v", d)
		}
	}
	if d := disk("os.img"); d.Chain != nil || d.ChainError != "" {
		t.Errorf("%+v", d)
	}
	other := imagetest.NewVHD(4*mib, 2*mib, 9, nil, "").File()
	r.must(os.WriteFile(filepath.Join(r.source, "web/base.vhd"), other, 0o600))
	if d := disk("leaf.avhd"); !slices.Equal(d.Chain, want[:1]) || !strings.Contains(d.ChainError, "that of web/base.vhd") {
		t.Errorf("another parent: %+v", d)
	}
	r.must(os.WriteFile(filepath.Join(r.source, "web/base.vhd"), base.File(), 0o600))
	if d := disk("leaf.avhd"); !slices.Equal(d.Chain, want) || d.ChainError != "" {
		t.Errorf("mended: %+v", d)
	}
}
