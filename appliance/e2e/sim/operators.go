package sim

import (
	"context"
	"errors"
	"slices"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/resync/checksum"
	"github.com/vhdrelay/vhdrelay/shipper"
	"github.com/vhdrelay/vhdrelay/shipper/catalog"
	"github.com/vhdrelay/vhdrelay/shipper/target"
)

// holding is what strikes a comparison in its middle.
type holding int

const (
	holdNot holding = iota
	holdPause
	holdCancel
	holdKill
)

// chores is what operators do because the status tells them to: a VM or a replica that is another's is adopted, and comparisons
// that somebody held go on.
func (w *world) chores(m *machine) {
	for _, t := range m.pipe.Troubles() {
		p, ok := errors.AsType[*shipper.Problem](t.Err)
		if !ok || p.Code != "replica-exists" && p.Code != "owned-by-another" {
			continue
		}
		if m.pipe.Adopt() == nil {
			w.struck("adopted: " + p.Code)
		}
	}
	if m.compare.wishes().Held {
		_ = m.compare.resume() // if it fails it is done next time
	}
}

// stepHold has comparisons of a VM run and holds, cancels or kills one in its middle.
func (w *world) stepHold(s Step) error {
	m := w.active().machine(w.vm(s))
	kind := []holding{holdPause, holdPause, holdCancel, holdKill}[s.B%4]
	w.fate.with(func(f *fate) { f.mu.holding, f.mu.strides = kind, 1+s.B/4%3 })
	for _, t := range m.all() {
		if s.B/16%4 == 0 {
			w.wantDeep(m, t)
		} else if err := t.disk.SetSuspect("asked for by an operator"); err != nil {
			w.struck("comparison could not be asked for")
		}
	}
	m.compare.wake()
	return nil
}

func (w *world) wantDeep(m *machine, t *tracked) {
	if err := m.compare.wish(func(x *wishes) { x.Deep[t.disk.ID()] = deepWish{} }); err != nil {
		w.struck("comparison could not be asked for")
	}
}

// midway strikes a comparison between two strides.
func (c *comparisons) midway() {
	kind := c.m.p.w.fate.strikeComparison()
	if kind == holdNot || !c.m.p.life.isAlive() {
		return
	}
	running := false
	switch kind {
	case holdPause:
		running, _ = c.hold() // an operator tries again if it was not noted
		if running {
			c.struck("comparison paused")
		}
	case holdCancel:
		if running, _ = c.cancel(); running {
			c.struck("comparison cancelled")
		}
	case holdKill:
		c.struck("killed in a comparison")
		c.m.p.life.kill()
		c.m.p.cancel()
	}
}

// stepDeep has the replicas of a VM compared with their tables.
func (w *world) stepDeep(s Step) error {
	m := w.active().machine(w.vm(s))
	for _, t := range m.all() {
		w.wantDeep(m, t)
	}
	m.compare.wake()
	return nil
}

// behind does something at the target that no fault strikes.
func (w *world) behind(do func(context.Context) error) error {
	w.fate.spared.Store(true)
	defer w.fate.spared.Store(false)
	return do(context.Background())
}

// stepDamage has somebody write to a replica who cares for no lease.
func (w *world) stepDamage(s Step) error {
	m := w.active().machine(w.vm(s))
	var complete []string
	for _, d := range m.pipe.Status().Disks {
		if d.Stage == shipper.StageComplete {
			complete = append(complete, d.Name)
		}
	}
	if len(complete) == 0 {
		return nil
	}
	name := complete[s.B%len(complete)]
	return w.behind(func(ctx context.Context) error {
		doc, _, err := catalog.LoadVM(ctx, w.target, m.name)
		i := slices.IndexFunc(doc.Disks, func(d catalog.DiskDoc) bool { return d.Name == name && !d.Removed })
		if err != nil || i < 0 {
			return err
		}
		w.struck("replica damaged")
		return w.damage(ctx, catalog.ReplicaName(m.name, doc.Disks[i].ID), 1+s.B/8%6)
	})
}

func (w *world) damage(ctx context.Context, blob string, n int) error {
	p, err := w.target.Properties(ctx, blob, "")
	if err == nil {
		err = w.target.BreakLease(ctx, blob)
	}
	blocks := int((p.Size - image.FooterSize) / page)
	for range n {
		if err != nil || blocks == 0 {
			return err
		}
		data := make([]byte, page)
		fill(data, uint64(w.draw(1<<30)))
		err = w.target.PutPages(ctx, blob, int64(w.draw(blocks))*page, data, checksum.Of(data), target.Guard{Sequence: p.Sequence})
	}
	return err
}

// seedReplica puts a replica there with another tool: a fixed VHD of about the content of an image that is to be a disk.
func (w *world) seedReplica(vm string, img *Image) error {
	content := img.content()
	for range w.draw(4) {
		fill(content[w.draw(len(content)):][:w.draw(20*kib)%len(content)/2], uint64(w.draw(1<<30)))
	}
	if w.draw(4) == 0 { // of another size
		content = content[:1+w.draw(len(content))]
	}
	file := append(content, make([]byte, (512-len(content)%512)%512)...)
	footer := image.FixedFooter(int64(len(file)), [16]byte{1}, w.now())
	file = append(file, footer[:]...)
	blob := catalog.ReplicaName(vm, img.name)
	return w.behind(func(ctx context.Context) error {
		err := w.target.CreatePages(ctx, blob, int64(len(file)), 0)
		for off := 0; err == nil && off < len(file); off += target.MaxPut {
			part := file[off:min(len(file), off+target.MaxPut)]
			err = w.target.PutPages(ctx, blob, int64(off), part, checksum.Of(part), target.Guard{})
		}
		return err
	})
}
