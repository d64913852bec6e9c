package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// guest writes to the disks of a VM, one request at a time, until the history ends. serving names the process it talks to.
func (w *world) guest(d *dice, vm string, serving func() *process) {
	for w.asleep(time.Duration(1+d.draw(int(w.pace/time.Millisecond))) * time.Millisecond) {
		for range 1 + d.draw(6) {
			p := serving()
			if p == nil || !p.life.isAlive() {
				break
			}
			if m := p.machine(vm); m != nil {
				w.request(d, m)
			}
			p.life.pause(d.draw(30 * turn))
		}
	}
}

// request is one random request to one random disk.
func (w *world) request(d *dice, m *machine) {
	disks := m.all()
	if len(disks) == 0 {
		return
	}
	t := disks[d.draw(len(disks))]
	if w.copied(m.name, t.image.name) {
		return
	}
	if d.draw(12) == 0 {
		_ = t.image.Datasync() // the guest's own; whether it fails is between it and its disk
		return
	}
	if translated(t.image.name) {
		w.operate(d, m, t)
		return
	}
	c, data := w.change(d, t.image)
	w.issue(m, t, c, data)
}

// change draws what a guest may ask of a disk.
func (w *world) change(d *dice, img *Image) (c extent.Change, data []byte) {
	size := max(1, int(img.diskSize()))
	off := d.draw(size)
	if d.draw(2) == 0 {
		off = d.draw(min(size, 256*kib)) // some blocks are hot
	}
	n := min(size-off, []int{1 + d.draw(600), 1 + d.draw(9000), 4096 * (1 + d.draw(20)), 1 + d.draw(400*kib)}[d.draw(4)])
	if d.draw(3) == 0 {
		off, n = off&^4095, max(1, min(size-off&^4095, n))
	}
	grows := !isVHD(img.name)
	switch k := d.draw(20); {
	case k < 2:
		return extent.Change{Kind: extent.Discard, Off: int64(off), Len: int64(n)}, nil
	case k < 4:
		return extent.Change{Kind: extent.Zero, Off: int64(off), Len: int64(n)}, nil
	case k < 5 && grows && d.draw(4) == 0:
		w.struck("guest truncates")
		most := 2*size + 8*kib // up and down alike
		if d.draw(8) == 0 {
			most = 12 * mib
		}
		return extent.Change{Kind: extent.Truncate, Off: int64(1 + d.draw(most))}, nil
	case k < 6 && grows:
		w.struck("guest writes past the end")
		off = size - d.draw(min(size, 5000)) + d.draw(3)/2*d.draw(100*kib)
		n = 1 + d.draw(20*kib)
	}
	data = make([]byte, n)
	if d.draw(10) != 0 {
		fill(data, uint64(d.draw(1<<30)))
	}
	return extent.Change{Kind: extent.Write, Off: int64(off), Len: int64(n)}, data
}

// issue sends one request through the tracker, as the shim does.
func (w *world) issue(m *machine, t *tracked, c extent.Change, data []byte) {
	t.use.RLock()
	defer t.use.RUnlock()
	if m.tracked(t.image.name) != t {
		return
	}
	life := m.p.life
	w.happened("guest: %s/%s %s %d+%d", m.name, t.image.name, c.Kind, c.Off, c.Len)
	op := m.timeline.Begin(fmt.Sprintf("%s %s %d+%d", t.image.name, c.Kind, c.Off, c.Len))
	pass, err := t.disk.Begin(c)
	if err != nil {
		if life.isAlive() {
			w.fail("I9: a guest's %s of %d bytes at %d of %s/%s failed: %v", c.Kind, c.Len, c.Off, m.name, t.image.name, err)
		}
		return
	}
	err = t.image.do(c, data, m.timeline, op)
	t.disk.End(c, pass, err)
	answer(life, m.timeline, op)
}

// answer ends a request, unless whoever would answer it is dead.
func answer(l *life, line *oracle.Timeline, op *oracle.Op) {
	if l.isAlive() {
		line.End(op)
	}
}

// operator asks for points now and then and keeps what it was told in the ledger.
func (w *world) operator(d *dice, vm string) {
	for w.asleep(time.Duration(20+d.draw(100)) * time.Second) {
		p := w.active()
		if p == nil || !p.life.isAlive() {
			continue
		}
		if m := p.machine(vm); m != nil {
			w.chores(m)
			ctx, cancel := context.WithTimeout(p.ctx, 3*time.Minute)
			_ = w.sync(ctx, m)
			cancel()
		}
	}
}

// sync is `sync --wait`.
func (w *world) sync(ctx context.Context, m *machine) error {
	before := m.timeline.SealAsked()
	_, point, err := m.pipe.Sync(ctx, true, nil)
	if err != nil {
		return err
	}
	if m.p.life.isAlive() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mu.acks = append(w.mu.acks, ack{vm: m.name, line: m.timeline, before: before, point: point.String()})
	}
	return nil
}
