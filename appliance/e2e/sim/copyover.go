package sim

import (
	"time"

	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// copying is a file that somebody writes over a disk: it is emptied, and written from its beginning to its end. Whoever does it
// begins again when the appliance dies.
type copying struct {
	vm, name string
	content  []byte
	beside   bool // not through the mount
}

func (w *world) copied(vm, name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.copies[vm+"/"+name] != nil
}

// stepCopy writes a file over a disk, at the mount or beside it.
func (w *world) stepCopy(s Step) error {
	p, vm := w.active(), w.vm(s)
	m := p.machine(vm)
	disks := m.all()
	if len(disks) == 0 {
		return nil
	}
	t := disks[s.B%len(disks)]
	content := make([]byte, w.sizeOf(t.image.name, 1+w.draw(w.most())))
	for at := 0; at < len(content); at += 64 * kib * (1 + w.draw(4)) {
		fill(content[at:min(len(content), at+100+w.draw(60*kib))], uint64(w.draw(1<<30)))
	}
	c := &copying{vm: vm, name: t.image.name, content: content, beside: s.B/8%3 == 0}
	if !w.beginCopy(c) {
		return nil
	}
	if c.beside {
		w.writtenBeside(m, t, c)
		w.endCopy(c)
		return nil
	}
	w.struck("copied over a disk")
	w.guests.Go(func() {
		for !w.copyOnce(c) && w.asleep(time.Second) {
		}
	})
	return nil
}

// beginCopy keeps the guests from a disk; false: one is under way.
func (w *world) beginCopy(c *copying) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := c.vm + "/" + c.name
	if w.mu.copies[key] != nil {
		return false
	}
	w.mu.copies[key] = c
	return true
}

func (w *world) endCopy(c *copying) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.mu.copies, c.vm+"/"+c.name)
}

// finishCopies brings the copies to their end that a crash interrupted last.
func (w *world) finishCopies() {
	w.mu.Lock()
	var left []*copying
	for _, c := range w.mu.copies {
		left = append(left, c)
	}
	w.mu.Unlock()
	for _, c := range left {
		w.copyOnce(c)
	}
}

// copyOnce writes all of it through the mount; false: the process died, or none runs. A disk that is gone is done with.
func (w *world) copyOnce(c *copying) bool {
	p := w.active()
	if p == nil || !p.life.isAlive() {
		return false
	}
	m := p.machine(c.vm)
	if m == nil {
		return false
	}
	if t := m.tracked(c.name); t != nil {
		t.image.becomes(c.content)
		for change := range c.requests(t.image) {
			w.issue(m, t, change.Change, change.data)
			p.life.pause(w.haste.draw(20 * turn))
			if !p.life.isAlive() {
				return false
			}
			if w.haste.draw(20) == 0 {
				<-time.After(time.Duration(w.haste.draw(9000)) * time.Millisecond)
			}
		}
	}
	w.endCopy(c)
	return true
}

type request struct {
	extent.Change
	data []byte
}

// requests are what a tool sends that copies a file over another.
func (c *copying) requests(img *Image) func(yield func(request) bool) {
	file := fileOf(c.name, img.ino, c.content)
	return func(yield func(request) bool) {
		if !yield(request{Change: extent.Change{Kind: extent.Truncate}}) {
			return
		}
		const most = 128 * kib
		for off := 0; off < len(file); off += most {
			data := file[off:min(len(file), off+most)]
			if off+most >= len(file) { // what others wrote to the file before they saw that it is another
				if !yield(request{Change: extent.Change{Kind: extent.Truncate, Off: int64(off)}}) {
					return
				}
			}
			if !yield(request{extent.Change{Kind: extent.Write, Off: int64(off), Len: int64(len(data))}, data}) {
				return
			}
		}
	}
}

// writtenBeside is another process that has the image open for writing in the source itself. The appliance is told when it
// opens and when it closes the file. No guest writes to the disk meanwhile: who of the two made it grow nobody could tell.
func (w *world) writtenBeside(m *machine, t *tracked, c *copying) {
	t.use.Lock()
	t.use.Unlock() //lint:ignore SA2001 the lock is taken to see the last request leave
	w.fate.with(func(f *fate) { clear(f.mu.at); f.mu.any = 0 })
	w.struck("written beside the mount")
	m.doubt(t)
	t.foreign.Store(true)
	t.image.becomes(c.content)
	for change := range c.requests(t.image) {
		op := m.timeline.Begin(c.name + " beside")
		err := t.image.do(change.Change, change.data, m.timeline, op)
		answer(m.p.life, m.timeline, op)
		m.p.life.pause(w.haste.draw(20 * turn))
		if err != nil {
			break
		}
	}
	m.doubt(t)
	t.foreign.Store(false)
}

// doubt has an image compared whole, and takes the size that it has by now.
func (m *machine) doubt(t *tracked) {
	t.doubts.Add(1)
	for known := t.disk.Size(); ; {
		size, _ := t.image.Size()
		c := extent.Change{Kind: extent.Write, Off: known, Len: size - known}
		if c.Len < 0 {
			c = extent.Change{Kind: extent.Truncate, Off: size}
		}
		if c.Len == 0 {
			break
		}
		pass, err := t.disk.Begin(c)
		if err != nil {
			break
		}
		t.disk.End(c, pass, nil)
		known = size
	}
	if err := t.disk.SetSuspect("written beside the mount"); err != nil && m.p.life.isAlive() {
		m.p.w.fail("I9: an image takes no mark: %v", err)
	}
	m.compare.wake()
}
