package shipper

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vhdrelay/vhdrelay/fs/image/imagetest"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
)

// stack is a disk whose image lies over others, the leaf first, in a rig.
type stack struct {
	*rig
	rng    *rand.Rand
	ext    string
	names  []string
	layers []imagetest.Layer
	made   int
	guest  []byte // what the guest has written
}

const stackSize = 3*mib + 5*kib

func newStack(t *testing.T, ext string, seed uint64, depth int) *stack {
	t.Helper()
	s := &stack{rng: rand.New(rand.NewPCG(seed, 7)), ext: ext, made: depth}
	for i := range depth {
		var l imagetest.Layer
		switch {
		case i > 0:
			l = s.layers[0].Over(byte(i+1), s.names[0])
		case ext == "vhdx":
			l = imagetest.NewVHDXLayer(stackSize, 512, 1, nil, "").Layer()
		default:
			l = imagetest.NewVHDLayer(stackSize, 64*kib, 1, nil, "").Layer()
		}
		for range 12 {
			l.Change(s.rng)
		}
		s.names = append([]string{fmt.Sprintf("disk%d.%s", i, ext)}, s.names...)
		s.layers = append([]imagetest.Layer{l}, s.layers...)
	}
	s.guest = bytes.Clone(s.layers[0].Disk())
	var images []*modelImage
	for i, name := range slices.Backward(s.names) {
		m := s.image(name)
		m.mu.data = s.layers[i].Bytes()
		images = append(images, m)
	}
	s.rig = newRig(t, images...)
	return s
}

// image is a file of the disk; its content is the guest's if it is the leaf.
func (s *stack) image(name string) *modelImage {
	m := &modelImage{name: name, translated: true}
	m.guest = func() []byte {
		if s.names[0] != m.name {
			return nil
		}
		return bytes.Clone(s.guest)
	}
	return m
}

// sync writes what the writer changed in a layer to its file, sector by sector.
func (s *stack) sync(i int, between func()) {
	s.t.Helper()
	was, now := s.images[s.names[i]].content(), s.layers[i].Bytes()
	for at := 0; at < len(now); at += 512 {
		if end := min(at+512, len(now)); at >= len(was) || !bytes.Equal(was[at:min(end, len(was))], now[at:end]) {
			s.write(s.names[i], int64(at), now[at:end]...)
			if between != nil {
				between()
			}
		}
	}
}

// use has the guest write.
func (s *stack) use() {
	s.layers[0].Change(s.rng)
	copy(s.guest, s.layers[0].Disk())
	s.sync(0, nil)
}

// add attaches a file that came.
func (s *stack) add(name string, data []byte) {
	m := s.image(name)
	m.mu.data = nil
	s.images[name] = m
	s.order = append(s.order, name)
	s.attach(name)
	for at := 0; at < len(data); at += 64 * kib {
		if part := data[at:min(at+64*kib, len(data))]; bytes.Count(part, []byte{0}) != len(part) || at+64*kib >= len(data) {
			s.write(name, int64(at), part...)
		}
	}
}

func (s *stack) remove(name string) {
	s.t.Helper()
	d := s.disks[name]
	s.vm.RemoveDisk(d.ID())
	s.must(s.log.Withdraw(d))
	delete(s.images, name)
	delete(s.disks, name)
	s.order = slices.DeleteFunc(s.order, func(n string) bool { return n == name })
}

func (s *stack) rename(from, to string) {
	s.t.Helper()
	m, d := s.images[from], s.disks[from]
	s.must(s.log.Rename(d, to))
	m.name = to
	delete(s.images, from)
	delete(s.disks, from)
	s.images[to], s.disks[to] = m, d
	s.order[slices.Index(s.order, from)] = to
	for i, n := range s.names {
		if n == from {
			s.names[i] = to
		}
	}
}

// snapshot makes a new leaf: under the disk's name, the former leaf having got another (as XCP-ng does), or under a new one.
func (s *stack) snapshot() {
	s.made++
	name := fmt.Sprintf("disk%d.%s", s.made, s.ext)
	if s.rng.IntN(2) == 0 {
		was := s.names[0]
		s.rename(was, name)
		name = was
	}
	l := s.layers[0].Over(byte(s.made+1), s.names[0])
	s.names, s.layers = append([]string{name}, s.names...), append([]imagetest.Layer{l}, s.layers...)
	s.add(name, l.Bytes())
}

// merge writes what layer i has into the one below and takes it out of the chain; seals come between.
func (s *stack) merge(i int, between func()) {
	s.t.Helper()
	up, down := s.layers[i].Disk(), s.layers[i+1]
	for at := 0; at < len(up); at += 512 {
		if end := min(at+512, len(up)); !bytes.Equal(up[at:end], down.Disk()[at:end]) {
			down.Put(int64(at), up[at:end])
		}
	}
	s.sync(i+1, between)
	gone := s.names[i]
	if i > 0 {
		s.layers[i-1].Link(down, s.names[i+1])
		s.sync(i-1, nil)
	}
	s.names, s.layers = slices.Delete(s.names, i, i+1), slices.Delete(s.layers, i, i+1)
	s.remove(gone)
}

// move renames a parent; its child is told.
func (s *stack) move(i int) {
	s.made++
	s.rename(s.names[i], fmt.Sprintf("disk%d.%s", s.made, s.ext))
	s.layers[i-1].Link(s.layers[i], s.names[i])
	s.sync(i-1, nil)
}

func (s *stack) step(seal func()) {
	switch n := s.rng.IntN(12); {
	case n == 0 && len(s.names) < 5:
		s.snapshot()
	case n == 1 && len(s.names) > 2:
		s.merge(1+s.rng.IntN(len(s.names)-2), seal)
	case n == 2 && len(s.names) > 1:
		s.merge(0, seal)
	case n == 3 && len(s.names) > 1:
		s.move(1 + s.rng.IntN(len(s.names)-1))
	case n == 4:
		s.crash()
	default:
		s.use()
	}
}

// sent is how much the epochs carried since.
func (s *stack) sent(records []catalog.Record) (n int64) {
	for _, rec := range records {
		for _, d := range rec.Disks {
			n += d.ChangedBytes
		}
	}
	return n
}

// Whatever is done to the images of a chain between two seals and at them, every point is what the guest had, and the disk is
// one disk with one replica from the beginning to the end.
func TestI2_EveryPointOfAChainIsWhatTheGuestHad(t *testing.T) {
	for _, ext := range []string{"vhd", "vhdx"} {
		for seed := range uint64(3) {
			t.Run(fmt.Sprintf("%s/%d", ext, seed), func(t *testing.T) {
				bubble(t, func(t *testing.T) {
					s := newStack(t, ext, seed, 3)
					s.finish()
					for range 40 {
						s.step(func() {
							if s.rng.IntN(60) == 0 {
								s.must(s.cycle())
							}
						})
						if s.rng.IntN(3) == 0 {
							s.must(s.cycle())
						}
					}
					s.finish()
					if n := len(s.vm.disks()); n != 1 || s.vm.disks()[0].state.get().Key != "disk2."+ext || len(s.vm.disks()[0].state.get().Former) > 0 {
						t.Errorf("%d disks, the first is %+v", n, s.vm.disks()[0].state.get())
					}
				})
			})
		}
	}
}

// What moves and does not change is not sent: a snapshot, a merge, a parent that is called otherwise.
func TestAChainThatOnlyMovedIsNotSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		for _, ext := range []string{"vhd", "vhdx"} {
			s := newStack(t, ext, 1, 3)
			before := s.sent(s.finish())
			for what, do := range map[string]func(){
				"snapshot": s.snapshot, "merge": func() { s.merge(1, nil) }, "merge of the leaf": func() { s.merge(0, nil) }, "move": func() { s.move(1) },
			} {
				s.must(s.rig.run(s.vm.captureStep))
				do()
				s.must(s.vm.captureStep(context.Background()))
				if after := s.sent(s.finish()); after != before {
					t.Errorf("%s, %s: %d bytes were sent", ext, what, after-before)
				}
				s.snapshot()
				s.finish()
			}
		}
	})
}
