package appliance

import (
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// A point of a VM whose disks were not all replicated yet must say so: an operator
// who exports it would find a disk missing.
func TestMissingDisksOfAPoint(t *testing.T) {
	r := catalog.Record{Disks: []catalog.RecordDisk{
		{Name: "os.vhd", State: catalog.StateComplete},
		{Name: "data.raw", State: catalog.StateInitial},
	}}
	if got := missing(r, ""); !slices.Equal(got, []string{"data.raw"}) {
		t.Errorf("a whole VM: missing %q", got)
	}
	if got := missing(r, "os.vhd"); got != nil {
		t.Errorf("one disk, asked for by name: missing %q", got)
	}
}
