package resync

import (
	"testing"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// A power cut took back the growth of an image: its table is longer. If the image
// grows again before an epoch has told the table, the blocks between are in no
// change set unless the comparison puts them there.
func TestI4_WhatACrashCutOffIsMarked(t *testing.T) {
	before := randomData(1, 40*blockSize)
	table := tableOf(t, before)
	suspect := fileRange{End: extent.BlocksPerRegion}
	s := newSource(t, before[:10*blockSize+100], suspect)
	run(t, s, table, layout{size: 10*blockSize + 100})
	if !s.mu.changed.Contains(fileRange{Start: 11, End: 40}) {
		t.Errorf("marked is %v only", s.mu.changed.Ranges())
	}
	if len(s.Suspect()) != 0 {
		t.Errorf("%v is suspect still", s.Suspect())
	}
}

// Somebody writes a file over an image beside the mount, and an epoch is sealed when it has ten blocks. What it grows by
// afterwards is in no change set unless the comparison puts it there.
func TestI4_WhatOthersMadeItGrowByIsMarked(t *testing.T) {
	after := randomData(1, 40*blockSize)
	clear(after[20*blockSize : 22*blockSize])
	table := tableOf(t, after[:10*blockSize])
	s := newSource(t, after, fileRange{End: extent.BlocksPerRegion})
	run(t, s, table, layout{size: 10 * blockSize})
	want := extent.Of(fileRange{Start: 10, End: 20}, fileRange{Start: 22, End: 40})
	if !want.Subtract(s.mu.changed).Empty() || !s.mu.changed.Subtract(want).Empty() {
		t.Errorf("marked is %v", s.mu.changed.Ranges())
	}
	if len(s.Suspect()) != 0 {
		t.Errorf("%v is suspect still", s.Suspect())
	}
}
