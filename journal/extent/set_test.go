package extent

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// model is the naive set every structure here is compared with.
type model [600]bool

func (m *model) put(r rng, v bool) {
	for b := r.Start; b < r.End; b++ {
		m[b] = v
	}
}

func (m *model) ranges() (out []rng) {
	for b := 0; b < len(m); b++ {
		if !m[b] {
			continue
		}
		start := b
		for b < len(m) && m[b] {
			b++
		}
		out = append(out, rng{FileBlock(start), FileBlock(b)})
	}
	return out
}

func (m *model) count(r rng) (n int64) {
	for b := r.Start; b < r.End; b++ {
		if m[b] {
			n++
		}
	}
	return n
}

func randomRange(r *rand.Rand, within int) rng {
	start := r.IntN(within)
	return rng{FileBlock(start), FileBlock(start + r.IntN(min(40, within-start+1)))}
}

func checkSet(t *testing.T, s Set[FileBlock], m *model, what string) {
	t.Helper()
	if !slices.Equal(s.Ranges(), m.ranges()) {
		t.Fatalf("%s: ranges %v, expected %v", what, s.Ranges(), m.ranges())
	}
	if s.Blocks() != m.count(rng{0, 600}) || s.Empty() != (len(m.ranges()) == 0) {
		t.Fatalf("%s: %d blocks, expected %d", what, s.Blocks(), m.count(rng{0, 600}))
	}
}

func TestSetEqualsModel(t *testing.T) {
	const seed = 11
	r := rand.New(rand.NewPCG(seed, 0))
	var s Set[FileBlock]
	var m model
	for i := range 20000 {
		x := randomRange(r, 600)
		if r.IntN(2) == 0 {
			s.Add(x)
			m.put(x, true)
		} else {
			s.Remove(x)
			m.put(x, false)
		}
		checkSet(t, s, &m, "after a change")
		q := randomRange(r, 600)
		if n := m.count(q); s.Overlaps(q) != (n > 0) || s.Contains(q) != (n == q.Len()) {
			t.Fatalf("seed %d, step %d: %v in %v: overlaps %v, contains %v", seed, i, q, s.Ranges(), s.Overlaps(q), s.Contains(q))
		}
	}
}

func randomSet(r *rand.Rand) (Set[FileBlock], *model) {
	var m model
	var list []rng
	for range r.IntN(15) {
		x := randomRange(r, 600)
		m.put(x, true)
		list = append(list, x)
	}
	return Of(list...), &m
}

func TestSetAlgebraEqualsModel(t *testing.T) {
	r := rand.New(rand.NewPCG(12, 0))
	for range 5000 {
		a, ma := randomSet(r)
		b, mb := randomSet(r)
		var union, both, rest model
		for i := range ma {
			union[i] = ma[i] || mb[i]
			both[i] = ma[i] && mb[i]
			rest[i] = ma[i] && !mb[i]
		}
		checkSet(t, a.Union(b), &union, "union")
		checkSet(t, a.Intersect(b), &both, "intersection")
		checkSet(t, a.Subtract(b), &rest, "difference")
		checkSet(t, a, ma, "left operand")
		checkSet(t, b, mb, "right operand")
	}
}

func TestCloneSharesNothing(t *testing.T) {
	a := Of(rng{0, 4}, rng{10, 12})
	b := a.Clone()
	b.Remove(rng{1, 2})
	if !a.Contains(rng{0, 4}) {
		t.Error("a change of the clone changed the original")
	}
}

func TestEmptyRangeIsNowhere(t *testing.T) {
	s := Of(rng{2, 6})
	s.Add(rng{9, 3})
	s.Remove(rng{4, 4})
	if got := s.Ranges(); !slices.Equal(got, []rng{{2, 6}}) || s.Overlaps(rng{4, 4}) || !s.Contains(rng{4, 4}) {
		t.Errorf("ranges %v", got)
	}
}

func FuzzSet(f *testing.F) {
	f.Add([]byte{0, 1, 5, 1, 2, 3})
	f.Fuzz(func(t *testing.T, ops []byte) {
		var s Set[FileBlock]
		var m model
		for ; len(ops) >= 3; ops = ops[3:] {
			x := rng{FileBlock(ops[1]), FileBlock(ops[1]) + FileBlock(ops[2])}
			m.put(x, ops[0]%2 == 0)
			if ops[0]%2 == 0 {
				s.Add(x)
			} else {
				s.Remove(x)
			}
		}
		checkSet(t, s, &m, "fuzzed")
	})
}
