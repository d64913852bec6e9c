package retention

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

var start = time.Date(2026, 1, 5, 0, 0, 0, 0, time.UTC)

// series makes points of one generation every step; every n-th has snapshots,
// and the others start from the one before.
func series(count int, step time.Duration, n int) []Point {
	var points []Point
	var base catalog.PointID
	for i := range count {
		id := catalog.PointID{Generation: 1, Epoch: uint64(i + 1)}
		p := Point{ID: id, Time: start.Add(time.Duration(i) * step), Snapshot: i%n == 0}
		if p.Snapshot {
			base = id
		}
		p.Base = base
		points = append(points, p)
	}
	return points
}

func epochs(ids []catalog.PointID) (list []uint64) {
	for _, id := range ids {
		list = append(list, id.Epoch)
	}
	return list
}

func TestKeep(t *testing.T) {
	minutes := series(241, time.Minute, 10) // four hours, 00:00 to 04:00; snapshots at epochs 1, 11, 21 …
	tens := series(6*49, 10*time.Minute, 1) // two days and an hour, all with snapshots
	for what, c := range map[string]struct {
		points []Point
		policy Policy
		want   []uint64
	}{
		"nothing":                  {nil, DefaultPolicy, nil},
		"only the newest":          {tens, Policy{}, []uint64{294}},
		"the newest with its fold": {minutes[:238], Policy{}, []uint64{232, 233, 234, 235, 236, 237, 238}},
		"dense with the fold of its oldest": {minutes[:240], Policy{Dense: 2 * time.Minute},
			[]uint64{232, 233, 234, 235, 236, 237, 238, 239, 240}},
		"dense, all ages inclusive":              {minutes, Policy{Dense: 3 * time.Minute}, []uint64{232, 233, 234, 235, 236, 237, 238, 239, 240, 241}},
		"hourly is the first of each hour":       {minutes, Policy{Hourly: 3 * time.Hour}, []uint64{61, 121, 181, 241}},
		"hourly needs a snapshot":                {series(241, time.Minute, 7), Policy{Hourly: 2 * time.Hour}, []uint64{127, 183, 240, 241}},
		"daily is the first of each day":         {tens, Policy{Daily: 7 * 24 * time.Hour}, []uint64{1, 145, 289, 294}},
		"the hours of a day, then the days only": {tens, Policy{Hourly: 3 * time.Hour, Daily: 36 * time.Hour}, []uint64{145, 277, 283, 289, 294}},
	} {
		if got := epochs(Keep(c.points, c.policy)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}

// A disk whose snapshots lag behind makes folds overlap: what a kept fold reads
// is kept, and what that needs, and so on, but not more.
func TestKeepFollowsStaggeredFolds(t *testing.T) {
	id := func(e uint64) catalog.PointID { return catalog.PointID{Generation: 1, Epoch: e} }
	var points []Point
	for i, base := range []uint64{1, 1, 1, 3, 4, 4} { // 1: snapshot; 2, 3 from 1; 4 from 3; 5, 6 from 4
		points = append(points, Point{ID: id(uint64(i + 1)), Time: start.Add(time.Duration(i) * time.Hour), Snapshot: i == 0, Base: id(base)})
	}
	if got := epochs(Keep(points, Policy{})); !slices.Equal(got, []uint64{5, 6}) {
		t.Errorf("%v", got)
	}
	points[4].Base = id(2)
	if got := epochs(Keep(points, Policy{})); !slices.Equal(got, []uint64{2, 3, 4, 5, 6}) {
		t.Errorf("%v: 5 is read, so it is listed and needs 3 and 4, and 3 needs 2", got)
	}
	points[5].Base = catalog.PointID{}
	if got := epochs(Keep(points, Policy{})); len(got) != 6 {
		t.Errorf("%v: a point without a start keeps all before it", got)
	}
}

// Ages count from the newest point: a clock that jumps a year costs the sparse
// points their age, and an idle VM nothing.
func TestKeepIsStable(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	for range 100 {
		all := series(400, time.Duration(1+rng.IntN(40))*time.Minute, 1+rng.IntN(12))
		// Each window reaches a period beyond the one before, else the first of an
		// hour that expires has heirs.
		policy := Policy{Dense: time.Duration(rng.IntN(4)) * time.Hour}
		policy.Hourly = policy.Dense + time.Duration(1+rng.IntN(30))*time.Hour
		policy.Daily = policy.Hourly + time.Duration(1+rng.IntN(10))*24*time.Hour
		// Pruning at every step equals pruning once at the end, as far as the last
		// window goes: no choice takes away what a later one would have kept.
		var kept []Point
		for _, p := range all {
			kept = filter(append(kept, p), policy)
		}
		atOnce := filter(all, policy)
		if !slices.Equal(kept, atOnce) {
			t.Fatalf("step by step %v, at once %v, policy %+v", len(kept), len(atOnce), policy)
		}
		if again := filter(kept, policy); !slices.Equal(again, kept) {
			t.Fatal("pruning twice differs from once")
		}
	}
}

func filter(points []Point, p Policy) []Point {
	ids := Keep(points, p)
	var kept []Point
	for _, point := range points {
		if slices.Contains(ids, point.ID) {
			kept = append(kept, point)
		}
	}
	return kept
}

// Before the first point, and with a snapshot that a takeover cut off: what an
// apply may start from stays.
func TestNewestSnapshotsAreNeededWithoutPoints(t *testing.T) {
	at := func(epoch uint64) catalog.Snapshot {
		return catalog.Snapshot{ID: string(rune('a' + epoch)), Point: catalog.PointID{Generation: 1, Epoch: epoch}, Kind: catalog.KindApply}
	}
	s := &surveyed{doc: catalog.VMDoc{Generation: 2, Cuts: []catalog.Cut{{Generation: 1, Epoch: 2}}},
		snapshots: map[string][]catalog.Snapshot{"d": {at(1), at(2), at(8), at(9)}}}
	needs := s.needs().snapshots
	if len(needs) != 2 || !needs[snapshotKey("d", "c")] || !needs[snapshotKey("d", "j")] {
		t.Errorf("%v", needs)
	}
}
