package shipper

import (
	"testing"
	"testing/synctest"
)

func TestPipelineMakesPoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, newImage("a.raw", 2*mib), newImage("b.vhd", mib))
		r.fill("a.raw", 10, 300*kib, 1)
		r.must(r.cycle())
		r.fill("b.vhd", 100*kib, 5000, 2)
		r.must(r.cycle())
		r.fill("a.raw", 100*kib, 5000, 3)
		r.discard("a.raw", 0, 64*kib)
		r.must(r.cycle())
		records := r.finish()
		r.pointsOfClosed(records)
		if len(records) < 3 {
			t.Errorf("%d points", len(records))
		}
	})
}
