package restore

import (
	"errors"
	"testing"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

func at(gen, epoch uint64) catalog.PointID {
	return catalog.PointID{Generation: gen, Epoch: epoch}
}

// rec is a record of one disk; state "" leaves the disk out.
func rec(id, previous catalog.PointID, state string) catalog.Record {
	r := catalog.Record{VM: "vm", Generation: id.Generation, Epoch: id.Epoch, Previous: previous, EpochUUID: "u" + id.String()}
	if state != "" {
		r.Disks = []catalog.RecordDisk{{ID: "d", Name: "os.vhd", State: state, VirtualSize: 4096}}
	}
	if state == catalog.StateComplete {
		r.Segments = []catalog.SegmentRef{{DiskID: "d", Generation: id.Generation, Epoch: id.Epoch, Blob: "s" + id.String()},
			{DiskID: "other", Generation: id.Generation, Epoch: id.Epoch, Blob: "o" + id.String()}}
	}
	return r
}

func snap(kind string, id catalog.PointID) catalog.Snapshot {
	return catalog.Snapshot{ID: kind + id.String(), Point: id, Kind: kind}
}

const (
	complete = catalog.StateComplete
	initial  = catalog.StateInitial
)

func TestMakePlan(t *testing.T) {
	base, apply := catalog.KindBase, catalog.KindApply
	doc := catalog.VMDoc{Name: "vm", Generation: 2, Cuts: []catalog.Cut{{Generation: 1, Epoch: 5}}}
	straight := []catalog.Record{rec(at(1, 3), at(1, 2), complete), rec(at(1, 5), at(1, 3), complete), rec(at(2, 6), at(1, 5), complete)}
	for name, c := range map[string]struct {
		records   []catalog.Record
		snapshots []catalog.Snapshot
		point     catalog.PointID
		snapshot  string // expected
		segments  []string
		err       error
	}{
		"from a base between points":      {straight, []catalog.Snapshot{snap(base, at(1, 4))}, at(2, 6), "base1-4", []string{"s1-5", "s2-6"}, nil},
		"from the newest":                 {straight, []catalog.Snapshot{snap(base, at(1, 1)), snap(apply, at(1, 3)), snap(apply, at(2, 6))}, at(1, 5), "apply1-3", []string{"s1-5"}, nil},
		"exactly":                         {straight, []catalog.Snapshot{snap(apply, at(1, 5))}, at(1, 5), "apply1-5", nil, nil},
		"across a takeover":               {straight, []catalog.Snapshot{snap(apply, at(1, 5))}, at(2, 6), "apply1-5", []string{"s2-6"}, nil},
		"not beyond a cut":                {straight, []catalog.Snapshot{snap(apply, at(1, 5)), snap(apply, at(1, 9))}, at(2, 6), "apply1-5", []string{"s2-6"}, nil},
		"no snapshot early enough":        {straight, []catalog.Snapshot{snap(apply, at(2, 6))}, at(1, 5), "", nil, ErrNoBase},
		"no such point":                   {straight, nil, at(1, 4), "", nil, catalog.ErrNoPoint},
		"apply of a point that is gone":   {straight[1:], []catalog.Snapshot{snap(apply, at(1, 3))}, at(1, 5), "apply1-3", []string{"s1-5"}, nil},
		"apply that is not in the chain":  {straight, []catalog.Snapshot{snap(apply, at(1, 4))}, at(1, 5), "", nil, catalog.ErrChain},
		"record lost":                     {[]catalog.Record{straight[0], straight[2]}, []catalog.Snapshot{snap(apply, at(1, 3))}, at(2, 6), "", nil, catalog.ErrChain},
		"first record after base is lost": {straight[1:], []catalog.Snapshot{snap(base, at(1, 2))}, at(1, 5), "", nil, catalog.ErrChain},
		"disk initial":                    {[]catalog.Record{rec(at(1, 3), at(1, 2), initial)}, []catalog.Snapshot{snap(base, at(1, 1))}, at(1, 3), "", nil, ErrNoDisk},
		"disk unknown":                    {[]catalog.Record{rec(at(1, 3), at(1, 2), "")}, []catalog.Snapshot{snap(base, at(1, 1))}, at(1, 3), "", nil, ErrNoDisk},
		"initial for a while after its base": {[]catalog.Record{rec(at(1, 3), at(1, 2), initial), rec(at(1, 4), at(1, 3), complete)},
			[]catalog.Snapshot{snap(base, at(1, 2))}, at(1, 4), "base1-2", []string{"s1-4"}, nil},
		"initial after an apply": {[]catalog.Record{rec(at(1, 3), at(1, 2), initial), rec(at(1, 4), at(1, 3), complete)},
			[]catalog.Snapshot{snap(apply, at(1, 2))}, at(1, 4), "", nil, catalog.ErrChain},
		"initial in between": {[]catalog.Record{rec(at(1, 3), at(1, 2), complete), rec(at(1, 4), at(1, 3), initial), rec(at(1, 5), at(1, 4), complete)},
			[]catalog.Snapshot{snap(base, at(1, 2))}, at(1, 5), "", nil, catalog.ErrChain},
	} {
		plan, err := MakePlan(doc, c.records, c.snapshots, c.point, "d")
		if !errors.Is(err, c.err) || plan.Snapshot.ID != c.snapshot || len(plan.Segments) != len(c.segments) {
			t.Errorf("%s: snapshot %q, %d segments, %v", name, plan.Snapshot.ID, len(plan.Segments), err)
			continue
		}
		for i, s := range plan.Segments {
			if s.Blob != c.segments[i] {
				t.Errorf("%s: segment %d is %s", name, i, s.Blob)
			}
		}
	}
}

func TestOutputNames(t *testing.T) {
	for _, c := range []struct {
		format string
		disks  []string
		want   []string // nil: refused
	}{
		{FormatVHD, []string{"os.vhd", "d/x.vhdx", "noext"}, []string{"os.vhd", "d/x.vhd", "noext.vhd"}},
		{FormatVHD, []string{"os.vhdx", "os.vhd"}, []string{"os.vhdx.vhd", "os.vhd"}},
		{FormatRaw, []string{"os.vhdx", "a.IMG", "b.raw"}, []string{"os.raw", "a.IMG", "b.raw"}},
		{FormatVHD, []string{"../../etc/passwd"}, nil},
		{FormatVHD, []string{"/etc/x.vhd"}, nil},
		{FormatVHD, []string{"a.vhd", "a.vhd"}, nil},
	} {
		var plans []Plan
		for _, name := range c.disks {
			plans = append(plans, Plan{Disk: catalog.RecordDisk{Name: name}})
		}
		names, err := outputNames(plans, c.format)
		if (err == nil) != (c.want != nil) {
			t.Errorf("%q: %q, %v", c.disks, names, err)
		}
		for i := range c.want {
			if names[i] != c.want[i] {
				t.Errorf("%q: %q, want %q", c.disks, names, c.want)
			}
		}
	}
}
