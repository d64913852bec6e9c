package oracle

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// story is a timeline of one VM with two disks of two pages each.
type story struct {
	*Timeline
	t *testing.T
}

func newStory(t *testing.T) story {
	s := story{New(), t}
	s.Reset("a", make([]byte, 2*page))
	s.Reset("b", make([]byte, 2*page))
	return s
}

// write is a whole request: sent, done, answered.
func (s story) write(disk string, off int64, v byte) {
	op := s.Begin(disk)
	s.Wrote(op, disk, off, []byte{v})
	s.End(op)
}

func (s story) seal() *Seal {
	x := s.SealAsked()
	s.SealAnswered(x)
	return x
}

func disks(a, b []byte) map[string][]byte { return map[string][]byte{"a": a, "b": b} }

// with is a disk with some bytes set.
func with(size int, at ...int) []byte {
	p := make([]byte, size)
	for i := 0; i < len(at); i += 2 {
		p[at[i]] = byte(at[i+1])
	}
	return p
}

func (s story) right(x *Seal, point map[string][]byte) {
	s.t.Helper()
	if err := s.Judge(x, point, 1); err != nil {
		s.t.Errorf("an admissible cut is refused: %v", err)
	}
}

func (s story) wrong(x *Seal, point map[string][]byte) {
	s.t.Helper()
	if err := s.Judge(x, point, 1); !errors.Is(err, ErrNoCut) {
		s.t.Errorf("a wrong point passes: %v", err)
	}
}

func TestAnsweredBeforeIsInAndSentAfterIsOut(t *testing.T) {
	s := newStory(t)
	s.write("a", 5, 1)
	x := s.seal()
	s.write("a", 6, 2)
	s.right(x, disks(with(2*page, 5, 1), with(2*page)))
	s.wrong(x, disks(with(2*page), with(2*page)))
	s.wrong(x, disks(with(2*page, 5, 1, 6, 2), with(2*page)))
	s.wrong(x, disks(with(2*page, 5, 1), with(2*page, 9, 9)))
}

func TestInFlightIsInOrOutAsAWhole(t *testing.T) {
	s := newStory(t)
	op := s.Begin("w")
	x := s.SealAsked()
	s.Wrote(op, "a", 0, []byte{1})
	s.SealAnswered(x)
	s.Wrote(op, "a", page, []byte{2}) // counted in before the seal, done after it
	s.End(op)
	s.right(x, disks(with(2*page), with(2*page)))
	s.right(x, disks(with(2*page, 0, 1, page, 2), with(2*page)))
	s.wrong(x, disks(with(2*page, 0, 1), with(2*page)))
	s.wrong(x, disks(with(2*page, page, 2), with(2*page)))
}

// Two requests, one after the other, on two disks, both in flight around the seal's answer.
func TestOrderHoldsAcrossDisks(t *testing.T) {
	s := newStory(t)
	x := s.SealAsked()
	s.write("a", 0, 1)
	s.write("b", 0, 2)
	s.SealAnswered(x)
	s.right(x, disks(with(2*page), with(2*page)))
	s.right(x, disks(with(2*page, 0, 1), with(2*page)))
	s.right(x, disks(with(2*page, 0, 1), with(2*page, 0, 2)))
	s.wrong(x, disks(with(2*page), with(2*page, 0, 2)))
}

func TestOverlappingRequestsApplyInTheirOrder(t *testing.T) {
	s := newStory(t)
	one, two := s.Begin("1"), s.Begin("2")
	x := s.SealAsked()
	s.Wrote(two, "a", 0, []byte{2, 2})
	s.Wrote(one, "a", 1, []byte{1, 1})
	s.SealAnswered(x)
	s.End(one)
	s.End(two)
	s.right(x, disks(with(2*page, 0, 2, 1, 1, 2, 1), with(2*page)))
	s.right(x, disks(with(2*page, 0, 2, 1, 2), with(2*page)))
	s.wrong(x, disks(with(2*page, 0, 2, 1, 2, 2, 1), with(2*page)))
}

func TestSizes(t *testing.T) {
	s := newStory(t)
	op := s.Begin("t")
	s.Resized(op, "a", 3)
	s.End(op)
	x := s.seal()
	op = s.Begin("g")
	s.Resized(op, "a", 10)
	s.End(op)
	y := s.seal()
	s.right(x, disks(make([]byte, 3), with(2*page)))
	s.right(y, disks(make([]byte, 10), with(2*page)))
	s.wrong(y, disks(make([]byte, 3), with(2*page)))
	if err := s.Judge(x, disks(make([]byte, 512), with(2*page)), 512); err != nil {
		t.Errorf("padding to a sector: %v", err)
	}
}

func TestZeroed(t *testing.T) {
	s := newStory(t)
	s.write("a", 7, 7)
	op := s.Begin("z")
	s.Zeroed(op, "a", 0, 100*page)
	s.End(op)
	s.right(s.seal(), disks(with(2*page), with(2*page)))
}

// A power cut makes another past: what was lost is in no later point, and points sealed before it keep theirs.
func TestErasAreApart(t *testing.T) {
	s := newStory(t)
	s.write("a", 0, 1)
	x := s.seal()
	s.Begin("never answered")
	s.Crash()
	s.Reset("a", with(2*page, 8, 8))
	s.write("a", 1, 2)
	y := s.seal()
	s.right(x, disks(with(2*page, 0, 1), with(2*page)))
	s.right(y, disks(with(2*page, 8, 8, 1, 2), with(2*page)))
	s.wrong(y, disks(with(2*page, 0, 1, 1, 2), with(2*page)))
	if got, err := s.Content("a"); err != nil || !bytes.Equal(got, with(2*page, 8, 8, 1, 2)) {
		t.Errorf("content: %v", err)
	}
	if !x.Before(y) || y.Before(x) {
		t.Error("seals in the wrong order")
	}
}

func TestUnansweredSealAndUnknownDisk(t *testing.T) {
	s := newStory(t)
	s.wrong(s.SealAsked(), disks(with(2*page), with(2*page)))
	s.wrong(s.seal(), map[string][]byte{"c": nil})
}

// Random stories with many requests in flight: every real cut passes, and one changed byte does not.
func TestRandomStories(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		s := newStory(t)
		var in []*Op
		cut := disks(with(2*page), with(2*page))
		apply := func(disk string, off int, v byte) { cut[disk][off] = v }
		for i := range 30 {
			op := s.Begin(fmt.Sprint(i))
			disk, off := []string{"a", "b"}[rng.IntN(2)], rng.IntN(2*page)
			s.Wrote(op, disk, int64(off), []byte{byte(i + 1)})
			apply(disk, off, byte(i+1))
			if in = append(in, op); len(in) > 3 {
				s.End(in[0])
				in = in[1:]
			}
		}
		x := s.seal()
		for i := range 10 { // sent after the answer: not in
			s.write("a", int64(rng.IntN(2*page)), byte(200+i))
		}
		for _, op := range in {
			s.End(op)
		}
		s.right(x, cut)
		cut["b"][rng.IntN(2*page)] ^= 0x80
		s.wrong(x, cut)
	}
}

func TestATailIsInNoPoint(t *testing.T) {
	s := newStory(t)
	s.Tail("a", 512)
	x := s.seal()
	s.right(x, disks(make([]byte, 2*page-512), with(2*page)))
	s.wrong(x, disks(make([]byte, 2*page), with(2*page)))
	s.write("a", 2*page-513, 7)
	s.write("a", 2*page-512, 8)
	x = s.seal()
	s.right(x, disks(with(2*page-512, 2*page-513, 7), with(2*page)))
	op := s.Begin("t")
	s.Resized(op, "a", 100)
	s.End(op)
	x = s.seal()
	s.wrong(x, disks(nil, with(2*page)))
}
