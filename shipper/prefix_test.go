package shipper

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

func TestKeepFromGoesRound(t *testing.T) {
	list := []FileRange{{Start: 0, End: 10}, {Start: 20, End: 30}}
	for _, c := range []struct {
		from       extent.FileBlock
		room       int64
		want       string
		next       extent.FileBlock
		left, kept int64
	}{
		{from: 0, room: 4, want: "0-4", next: 4, kept: 4},
		{from: 4, room: 8, want: "4-10, 20-22", next: 22, kept: 8},
		{from: 22, room: 12, want: "22-30, 0-4", next: 4, kept: 12},
		{from: 25, room: 100, want: "all", next: 25, left: 80, kept: 20},
		{from: 90, room: 3, want: "0-3: nothing lies behind", next: 3, kept: 3},
		{from: 5, room: 0, want: "nothing", next: 5},
	} {
		kept, next, left := keepFrom(list, c.from, c.room)
		if kept.Blocks() != c.kept || next != c.next || left != c.left {
			t.Errorf("from %d, room %d (%s): kept %v, next %d, left %d", c.from, c.room, c.want, kept.Ranges(), next, left)
		}
		if !extent.Of(list...).Contains(FileRange{Start: 0, End: 10}) || extent.Of(list...).Blocks() != 20 {
			t.Fatal("the list itself was changed")
		}
	}
}

// A stretch that is written anew before every cut must not starve the rest.
func TestABusyStartDoesNotStarveTheEnd(t *testing.T) {
	waiting := extent.Of(FileRange{Start: 0, End: 100})
	var from extent.FileBlock
	for range 20 {
		var kept extent.Set[extent.FileBlock]
		waiting.Add(FileRange{Start: 0, End: 30}) // busy
		kept, from, _ = keepFrom(waiting.Ranges(), from, 20)
		waiting = waiting.Subtract(kept)
	}
	if left := waiting.Intersect(extent.Of(FileRange{Start: 30, End: 100})); left.Blocks() > 0 {
		t.Errorf("never captured: %v", left.Ranges())
	}
}
