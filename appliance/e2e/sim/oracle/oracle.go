// Package oracle knows every state that a recovery point may show.
//
// It is written from the design's text alone (I2: a write answered before a seal is in it, one that starts after it is
// not, and the order of writes is kept across the disks of a VM), and it imports nothing of the project: a mistake of the
// code under test cannot be repeated here by sharing it. What it is told is only what a guest and its disks can see: when
// a request was sent and when it was answered, which bytes changed when, when a seal was asked for and when it was
// answered, and what a power cut left behind.
package oracle

import (
	"fmt"
	"sync"
)

// Moment is a place in the order of all events of one timeline, counted in events.
type Moment int64

// Op is one request of a guest: it is sent, changes bytes, and is answered.
type Op struct {
	Name       string
	begin, end Moment // end 0: not answered
}

// Seal is one request for a seal: every cut it may have made lies between asked and answered.
type Seal struct {
	asked, answered Moment
}

// change is one effect on a disk: bytes written (data), zeroed (data nil), or a new size (resize, at off).
type change struct {
	at     Moment
	op     *Op
	off    int64
	length int64
	data   []byte
	resize bool
}

// era is the time between two losses of what was not synced; within one, changes add up.
type era struct {
	from    Moment
	base    []byte
	changes []change
}

type disk struct {
	eras []*era
	tail int64                                    // bytes at the end of the file that are none of the disk
	form func(file, space []byte) ([]byte, error) // finds the disk in the file; nil: it is the file, less the tail
	roll struct {                                 // the newest state that was worked out, to go on from
		era     *era
		applied int
		content []byte
	}
}

// Timeline is what happened to the disks of one VM, in the order in which it happened. It may be told and asked
// concurrently.
type Timeline struct {
	mu struct { // guards all below; no I/O under it
		sync.Mutex
		now   Moment
		ops   []*Op
		disks map[string]*disk
	}
}

// New returns the timeline of a VM without disks.
func New() *Timeline {
	t := &Timeline{}
	t.mu.disks = make(map[string]*disk)
	return t
}

func (t *Timeline) tickLocked() Moment {
	t.mu.now++
	return t.mu.now
}

// Reset says that the disk now holds content and nothing before it counts for later seals: it was created, or a power cut
// left this. The content is copied.
func (t *Timeline) Reset(name string, content []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.mu.disks[name]
	if d == nil {
		d = &disk{}
		t.mu.disks[name] = d
	}
	d.eras = append(d.eras, &era{from: t.tickLocked(), base: append([]byte(nil), content...)})
}

// Tail says that the last n bytes of what is told of a disk are none of it: a point does not have them.
func (t *Timeline) Tail(name string, n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.disks[name].tail = n
}

// Translated says that what is told of a disk are the bytes of an image file, in which Virtual finds the disk.
func (t *Timeline) Translated(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.disks[name].form = Virtual
}

// Begin says that a guest sends a request.
func (t *Timeline) Begin(name string) *Op {
	t.mu.Lock()
	defer t.mu.Unlock()
	op := &Op{Name: name, begin: t.tickLocked()}
	t.mu.ops = append(t.mu.ops, op)
	return op
}

// End says that the request was answered, whatever the answer.
func (t *Timeline) End(op *Op) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if op.end == 0 {
		op.end = t.tickLocked()
	}
}

// Crash says that whoever served the requests is gone: those not answered never will be.
func (t *Timeline) Crash() {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.tickLocked()
	for _, op := range t.mu.ops {
		if op.end == 0 {
			op.end = now
		}
	}
}

// Wrote says that bytes of a disk changed on behalf of op. The data is kept, and must not change.
func (t *Timeline) Wrote(op *Op, name string, off int64, data []byte) {
	t.add(name, change{op: op, off: off, length: int64(len(data)), data: data[:len(data):len(data)]})
}

// Zeroed says that a range of a disk reads as zeros since now, as far as it lies within its size.
func (t *Timeline) Zeroed(op *Op, name string, off, length int64) {
	t.add(name, change{op: op, off: off, length: length})
}

// Resized says that the disk has another size; what was added reads as zeros.
func (t *Timeline) Resized(op *Op, name string, size int64) {
	t.add(name, change{op: op, off: size, resize: true})
}

func (t *Timeline) add(name string, c change) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c.at = t.tickLocked()
	d := t.mu.disks[name]
	e := d.eras[len(d.eras)-1]
	e.changes = append(e.changes, c)
}

// SealAsked says that a seal of the VM is asked for.
func (t *Timeline) SealAsked() *Seal {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &Seal{asked: t.tickLocked()}
}

// SealAnswered says that the seal was made.
func (t *Timeline) SealAnswered(s *Seal) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s.answered = t.tickLocked()
}

// Before reports whether the seal was answered before the other was asked for.
func (s *Seal) Before(o *Seal) bool { return s.answered != 0 && s.answered < o.asked }

// Content returns what the disk holds now, its tail included.
func (t *Timeline) Content(name string) ([]byte, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	d := t.mu.disks[name]
	if d == nil {
		return nil, fmt.Errorf("oracle: no disk %q", name)
	}
	e := d.eras[len(d.eras)-1]
	return append([]byte(nil), d.rollLocked(e, t.mu.now+1)...), nil
}

// rollLocked returns the disk as all changes of the era before a moment left it. It may be read until the next call.
func (d *disk) rollLocked(e *era, before Moment) []byte {
	r := &d.roll
	if r.era != e || (r.applied > 0 && e.changes[r.applied-1].at >= before) {
		r.era, r.applied, r.content = e, 0, append([]byte(nil), e.base...)
	}
	for r.applied < len(e.changes) && e.changes[r.applied].at < before {
		r.content = e.changes[r.applied].apply(r.content)
		r.applied++
	}
	return r.content
}

func (c change) apply(content []byte) []byte {
	size := int64(len(content))
	switch {
	case c.resize && c.off <= size:
		return content[:c.off]
	case c.resize:
		return append(content, make([]byte, c.off-size)...)
	case c.data == nil:
		if c.off < size {
			clear(content[c.off:min(size, c.off+c.length)])
		}
		return content
	}
	if end := c.off + c.length; end > size {
		content = append(content, make([]byte, end-size)...)
	}
	copy(content[c.off:], c.data)
	return content
}
