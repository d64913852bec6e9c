package shipper

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// untrack leaves a file where it is, and nobody tells of what is written to it.
func (s *stack) untrack(name string) {
	s.t.Helper()
	m := s.images[name]
	s.remove(name)
	s.images[name] = m
}

// A parent that nobody tracks may be written behind everybody's back: no point while that may be under way, the next one has
// it, and only what differs is sent.
func TestI2_ParentThatNobodyTracks(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		bubble(t, func(t *testing.T) {
			s := newStack(t, ext, 3, 2)
			base := s.images[s.names[1]]
			s.untrack(s.names[1])
			before := s.sent(s.finish())
			if n := len(s.vm.disks()); n != 1 {
				t.Fatalf("%d disks", n)
			}
			off := int64(0) // of a block that the leaf does not have
			for !bytes.Equal(s.guest[off:off+4096], s.layers[1].Disk()[off:off+4096]) {
				off += 4096
			}
			s.layers[1].Put(off, bytes.Repeat([]byte{0xee}, 4096))
			now := s.layers[1].Bytes()
			base.do(extent.Change{Len: int64(len(now))}, now)
			base.mu.written = s.clock.Now().Add(10 * time.Second) // every look at the clock is a second
			visible := make([]byte, len(s.guest))
			leaf := s.images[s.names[0]]
			st, err := leaf.Stat()
			s.must(err)
			c, err := chain.Open(testStore{s.rig}, chain.Leaf{Name: leaf.name, R: leaf, Stat: st}, chain.Options{})
			s.must(err)
			_, err = c.ReadAt(visible, 0)
			s.must(err)
			s.guest = visible
			if m := s.capture(); m.Closed || !strings.Contains(m.OpenReason, base.name) {
				t.Errorf("%s: %+v", ext, m)
			}
			s.clock.add(time.Minute)
			records := s.finish()
			if after := s.sent(records); after-before > 64*kib {
				t.Errorf("%s: %d bytes were sent for a block of 4 KiB", ext, after-before)
			}
		})
	}
}

// A link that is missing at a seal leaves the epoch open and names it; when it is back, nothing was missed.
func TestAChainThatBreaksAndIsMended(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		bubble(t, func(t *testing.T) {
			s := newStack(t, ext, 4, 3)
			s.finish()
			middle := s.names[1]
			s.rename(middle, "elsewhere."+ext)
			s.use()
			m := s.capture()
			if m.Closed || !strings.Contains(m.OpenReason, middle) {
				t.Errorf("%s: %+v", ext, m)
			}
			if err := s.vm.Status().Disks[0].Err; !errors.Is(err, image.ErrParent) {
				t.Errorf("%s: the status says %v", ext, err)
			}
			s.use()
			s.rename("elsewhere."+ext, middle)
			s.finish()
			if err := s.vm.Status().Disks[0].Err; err != nil {
				t.Errorf("%s: mended, and %v", ext, err)
			}
		})
	}
}

// Two disks over one image: both are what their guests had, after a crash too.
func TestI2_TwoDisksOverOneImage(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		bubble(t, func(t *testing.T) {
			s := newStack(t, ext, 5, 2)
			other := s.layers[1].Over(9, s.names[1])
			m := s.image("other." + ext)
			m.guest = func() []byte { return bytes.Clone(other.Disk()) }
			s.finish()
			s.images[m.name] = m
			s.order = append(s.order, m.name)
			s.attach(m.name)
			write := func() {
				now, was := other.Bytes(), m.content()
				for at := 0; at < len(now); at += 512 {
					if end := min(at+512, len(now)); at >= len(was) || !bytes.Equal(was[at:min(end, len(was))], now[at:end]) {
						s.write(m.name, int64(at), now[at:end]...)
					}
				}
			}
			write()
			for k := range 6 {
				s.finish()
				if n := len(s.vm.disks()); n != 2 {
					t.Fatalf("%s: %d disks", ext, n)
				}
				s.use()
				other.Change(s.rng)
				write()
				if k%2 == 1 {
					s.crash()
				}
			}
			s.finish()
		})
	}
}

// An image that is made and removed again takes the disk nowhere.
func TestASnapshotThatIsTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s := newStack(t, "vhd", 6, 2)
		before := s.sent(s.finish())
		l := s.layers[0].Over(9, s.names[0])
		s.add("new.vhd", l.Bytes())
		s.images["new.vhd"].guest = func() []byte { return bytes.Clone(s.guest) }
		s.must(s.vm.captureStep(context.Background()))
		s.remove("new.vhd")
		if after := s.sent(s.finish()); after != before || s.vm.disks()[0].src.Name() != s.names[0] {
			t.Errorf("%d bytes were sent, the disk is %s", after-before, s.vm.disks()[0].src.Name())
		}
	})
}
