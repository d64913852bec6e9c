package shipper

import (
	"bytes"
	"testing"
)

// A power cut took back the growth of an image, and the guest grows it again before
// the next epoch: what the target has beyond the cut must not show through the hole.
// Here nothing is suspect there, as after an earlier start that compared only up to
// the end.
func TestI4_WhatACrashCutOffIsForgotten(t *testing.T) {
	bubble(t, func(t *testing.T) {
		r := replicated(t)
		img := r.images["a.raw"]
		size := len(img.bytes())
		r.fill("a.raw", int64(size)-300*kib, 200*kib, 9)
		r.quiesce()
		img.mu.Lock()
		img.mu.data = bytes.Clone(img.mu.data[:size-512*kib])
		img.mu.Unlock()
		r.crash()
		if n := len(r.disks["a.raw"].Suspect()); n > 0 {
			t.Fatalf("%d ranges are suspect", n)
		}
		r.truncate("a.raw", int64(size))
		r.finish()
	})
}
