package sim

import (
	"bytes"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
)

// What a hypervisor writes is, when all of it is written, what its guest sees: to the oracle and to the readers of the formats.
func TestHypervisorsWriteWhatTheirGuestsSee(t *testing.T) {
	for _, name := range []string{"dyn.vhd", "e.vhdx"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(1, t.TempDir())
				content := make([]byte, w.sizeOf(name, 2*mib+700*kib))
				fill(content[300*kib:900*kib], 4)
				img := newImage(name, 3, content, time.Now())
				w.equip(img, newLife(w.turns))
				line := oracle.New()
				img.told(line)
				h := img.hypervisor()
				for i := range 200 {
					h.begin(w, w.dice, img)
					for r, left := h.next(w.dice, img); left; r, left = h.next(w.dice, img) {
						if err := img.do(r.Change, r.data, line, line.Begin("")); err != nil {
							t.Fatal(err)
						}
					}
					if err := holds(img, h.holds()); err != nil {
						t.Fatalf("change %d: %v", i, err)
					}
				}
			})
		})
	}
}

func holds(img *Image, want []byte) error {
	if got := img.content(); !bytes.Equal(got, want) {
		return fmt.Errorf("the oracle reads %d bytes, not the %d of the guest", len(got), len(want))
	}
	size, _ := img.Size()
	i, err := formats.Open(img, size)
	if err != nil {
		return err
	}
	got := make([]byte, i.Info.VirtualSize)
	if _, err := i.Disk.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("the reader of the format has %d bytes, not the %d of the guest: %v", len(got), len(want), err)
	}
	return nil
}
