package oracle

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
)

// Errors of Judge.
var (
	ErrNoCut   = errors.New("no admissible cut shows these bytes")
	ErrTooWide = errors.New("too many requests were in flight at the seal to try every cut")
)

const (
	page    = 4096
	maxCuts = 200_000 // tried per seal; more than any run of the simulation reaches
)

// Judge says whether the disks, as a point shows them, are the state at one cut of the seal: over all disks at once, it has
// every request that was answered before the seal was asked for, none that was sent after the seal was answered, and with
// any request all those answered before it was sent. The content of a disk may be longer than the disk by zeros up to the
// next multiple of round (bytes). Errors: ErrNoCut, with the place and the requests near it; ErrTooWide.
func (t *Timeline) Judge(s *Seal, point map[string][]byte, round int64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.answered == 0 {
		return fmt.Errorf("a point of a seal that was never answered: %w", ErrNoCut)
	}
	c := t.cutLocked(s)
	var names []string
	for name := range point {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		v, err := c.view(t.mu.disks[name], name, point[name], round)
		if err != nil {
			return err
		}
		c.views = append(c.views, v)
	}
	err := c.search(0, make(map[*Op]bool))
	if errors.Is(err, ErrNoCut) { // the first cut tried, with everything in, says most
		return fmt.Errorf("%s; %d cuts tried: %w", c.first, c.tried, ErrNoCut)
	}
	return err
}

// cut is the search for one admissible cut of a seal.
type cut struct {
	seal  *Seal
	start Moment // no free request changed a byte before
	free  []*Op  // may be in or out, in the order they were sent
	views []*view
	tried int
	space []byte // where a file is put together
	disk  []byte // where the disk in it is
	first string // difference of the first cut that was tried
}

func (t *Timeline) cutLocked(s *Seal) *cut {
	c := &cut{seal: s, start: s.asked}
	for _, op := range t.mu.ops {
		if op.begin < s.answered && (op.end == 0 || op.end > s.asked) {
			c.free = append(c.free, op)
			c.start = min(c.start, op.begin)
		}
	}
	return c
}

func (c *cut) isFree(op *Op) bool {
	return op.begin < c.seal.answered && (op.end == 0 || op.end > c.seal.asked)
}

// view is one disk of the point and what may have been written to it around the cut.
type view struct {
	name    string
	cut     int64 // bytes at the end that the point does not have
	form    func(file, space []byte) ([]byte, error)
	base    []byte   // the disk at the cut's start
	tail    []change // after it: of free requests and of those that are in anyway
	content []byte
	round   int64
	known   map[string]string // free requests of this disk that are in → "" or the difference
}

func (c *cut) view(d *disk, name string, content []byte, round int64) (*view, error) {
	if d == nil {
		return nil, fmt.Errorf("disk %s is in the point and was never in the VM: %w", name, ErrNoCut)
	}
	var e *era
	for _, x := range d.eras {
		if x.from < c.seal.answered {
			e = x
		}
	}
	if e == nil {
		return nil, fmt.Errorf("disk %s is in the point and came only after the seal: %w", name, ErrNoCut)
	}
	v := &view{name: name, cut: d.tail, form: d.form, content: content, round: round, known: make(map[string]string)}
	v.base = d.rollLocked(e, c.start)
	for _, ch := range e.changes {
		if ch.at >= c.start && ch.op.begin < c.seal.answered {
			v.tail = append(v.tail, ch)
		}
	}
	return v, nil
}

// search tries every down-closed set of the free requests, those from index i on undecided.
func (c *cut) search(i int, in map[*Op]bool) error {
	if i == len(c.free) {
		if c.tried++; c.tried > maxCuts {
			return ErrTooWide
		}
		return c.compare(in)
	}
	op := c.free[i]
	allowed := true
	for _, earlier := range c.free[:i] {
		if earlier.end != 0 && earlier.end < op.begin && !in[earlier] {
			allowed = false
		}
	}
	if allowed {
		in[op] = true
		err := c.search(i+1, in)
		delete(in, op)
		if err == nil || errors.Is(err, ErrTooWide) {
			return err
		}
	}
	return c.search(i+1, in)
}

func (c *cut) compare(in map[*Op]bool) error {
	for _, v := range c.views {
		if diff := v.compare(c, in); diff != "" {
			if c.first == "" {
				c.first = diff
			}
			return ErrNoCut
		}
	}
	return nil
}

func (v *view) compare(c *cut, in map[*Op]bool) string {
	var key strings.Builder
	for i, op := range c.free {
		if in[op] && v.touchedBy(op) {
			fmt.Fprintf(&key, "%d ", i)
		}
	}
	diff, ok := v.known[key.String()]
	if !ok {
		diff = v.difference(c, in)
		v.known[key.String()] = diff
	}
	return diff
}

func (v *view) touchedBy(op *Op) bool {
	for _, ch := range v.tail {
		if ch.op == op {
			return true
		}
	}
	return false
}

// difference replays the tail over the base and says where the point differs first; "" nowhere.
func (v *view) difference(c *cut, in map[*Op]bool) string {
	want, ok := v.at(c, in)
	if !ok {
		return fmt.Sprintf("disk %s is in the point and at the cut no disk", v.name)
	}
	if len(want) != len(v.content) {
		return fmt.Sprintf("disk %s has %d bytes in the point and %d at the cut", v.name, len(v.content), len(want))
	}
	if bytes.Equal(want, v.content) {
		return ""
	}
	for off := 0; off < len(want); off += page {
		end := min(off+page, len(want))
		if !bytes.Equal(want[off:end], v.content[off:end]) {
			return fmt.Sprintf("disk %s differs at %d (of %d bytes different): point %s, cut %s", v.name, off,
				distance(want, v.content), glance(v.content[off:end], want[off:end]), glance(want[off:end], v.content[off:end]))
		}
	}
	return ""
}

// at is the disk with some of the free requests; it may be read until the next call. False: it is no disk.
func (v *view) at(c *cut, in map[*Op]bool) ([]byte, bool) {
	tail := slices.DeleteFunc(slices.Clone(v.tail), func(ch change) bool { return !in[ch.op] && c.isFree(ch.op) })
	short := func(p []byte) int64 { return (v.round - int64(len(p))%v.round) % v.round }
	want := v.base
	if len(tail) > 0 || v.cut == 0 && short(want) != 0 {
		c.space = append(c.space[:0], v.base...)
		for _, ch := range tail {
			c.space = ch.apply(c.space)
		}
		want = c.space
	}
	if v.form != nil {
		disk, err := v.form(want, c.disk)
		if err != nil {
			return nil, false
		}
		c.disk = disk
		return disk, true
	}
	if int64(len(want)) < v.cut {
		return nil, false
	}
	want = want[:int64(len(want))-v.cut]
	if n := short(want); n > 0 {
		want = append(slices.Clip(want), make([]byte, n)...)
	}
	return want, true
}

func distance(a, b []byte) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

// glance shows the bytes of a from where it first differs from b.
func glance(a, b []byte) string {
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	return fmt.Sprintf("+%d % x", i, a[i:min(i+16, len(a))])
}
