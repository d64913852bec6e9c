package pageblob

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// What the emulator tells is a plain v2 account; nothing remains of what is deleted there.
func TestAccountAndRemains(t *testing.T) {
	s := emulator(t)
	tgt := open(t, Options{URL: s.Endpoint() + "/account", Env: keyOf(s)})
	ok(t, tgt.EnsureContainer(t.Context()))
	a, err := tgt.Account(t.Context())
	ok(t, err)
	if a.Kind != "StorageV2" || a.SKU == "" || a.HNS {
		t.Errorf("%+v", a)
	}
	ok(t, tgt.CreatePages(t.Context(), "gone.vhd", target.PageSize, 1))
	ok(t, tgt.DeletePages(t.Context(), "gone.vhd", ""))
	left, err := tgt.Remains(t.Context(), "gone.vhd")
	ok(t, err)
	if left.Deleted || left.Versions {
		t.Errorf("%+v", left)
	}
}
