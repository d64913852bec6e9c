package sim

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/durable/platter"
	"github.com/vhdrelay/vhdrelay/journal/kv/memory"
)

// fall ends the process, if it lives still, and returns what is left.
func (w *world) fall(cut bool) *host {
	p := w.active()
	p.life.kill()
	next := p.remains(cut)
	w.checkRemains(next)
	w.setActive(nil)
	for vm, line := range next.lines {
		line.Crash()
		if cut {
			for _, img := range next.images[vm] {
				img.told(line)
			}
		}
	}
	p.bury()
	return next
}

// crash ends the process, and starts another over what is left.
func (w *world) crash(cut bool) error { return w.boot(w.fall(cut)) }

// stopClean is the clean stop; false: it did not come to its end.
func (w *world) stopClean() bool {
	p := w.quiet()
	clean := p.stop() == nil && p.life.isAlive()
	if clean {
		w.struck("clean stop")
	} else {
		w.struck("stop was not clean")
	}
	w.setActive(p)
	return clean
}

// stepOffline changes an image while no appliance runs.
func (w *world) stepOffline(s Step) error {
	vm, cut, clean := w.vm(s), s.A/2%3 == 2, false
	if s.A/2%3 == 0 {
		clean = w.stopClean()
	}
	next := w.fall(cut)
	<-time.After(25 * time.Second) // what is changed before the last heartbeat's time is the appliance's own
	// Without a heartbeat, and when the clock was put back, nobody can tell after a kill.
	if clean || cut && !w.stepped.Load() || w.saves && !w.stepped.Load() {
		names := next.order[vm]
		w.changeOffline(next, vm, next.images[vm][names[s.B%len(names)]], s.B/8%4)
	}
	return w.boot(next)
}

func (w *world) changeOffline(h *host, vm string, img *Image, how int) {
	content := img.content()
	switch {
	case len(content) == 0:
		return
	case how == 0:
		w.struck("changed while down")
		for range 1 + w.draw(5) {
			at := w.draw(len(content))
			fill(content[at:min(len(content), at+1+w.draw(30*kib))], uint64(w.draw(1<<30)))
		}
	case how == 1:
		w.struck("resized while down")
		content = platter.Fit(content, w.sizeOf(img.name, 1+w.draw(2*len(content))))
	case how == 2:
		w.struck("reverted while down")
		content = bytes.Clone(img.mu.first)
	default:
		w.struck("replaced while down")
		w.addImage(h, vm, img.name)
		return
	}
	img.rewrite(content, w.now())
	img.told(h.lines[vm])
}

// rewrite gives an image another content, durably, as somebody does while no appliance runs.
func (m *Image) rewrite(content []byte, at time.Time) {
	m.becomes(content)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.data = fileOf(m.name, m.ino, content)
	m.mu.synced, m.mu.pending, m.mu.ctime = bytes.Clone(m.mu.data), nil, at
}

// fileOf is the image file of a disk.
func fileOf(name string, ino uint64, content []byte) []byte {
	if translated(name) {
		return newHypervisor(name, ino, content).file()
	}
	file := bytes.Clone(content)
	if isVHD(name) {
		footer := image.FixedFooter(int64(len(content)), [16]byte{byte(ino)}, time.Unix(1_600_000_000, 0))
		file = append(file, footer[:]...)
	}
	return file
}

// stepLost starts over a state directory of which something is gone.
func (w *world) stepLost(s Step) error {
	next := w.fall(false)
	what := s.A % 4
	if what != 2 {
		w.struck("journal lost")
		next.store = &memory.Store{}
	}
	if what != 3 {
		w.struck("spool and tables lost")
		next.tree, next.saved = newStateDisk(next.tree.life), ""
		next.beats.set(nil)
	}
	w.noteLost("the state directory was lost", func(manifest) bool { return true })
	return w.boot(next)
}

// stepRotten loses or damages a file of the state directory while no appliance runs.
func (w *world) stepRotten(s Step) error {
	next := w.fall(s.A%2 == 0)
	suffix := []string{".table", ".table", ".seg"}[s.A/2%3]
	files := next.tree.files("/state", suffix)
	if len(files) == 0 {
		return w.boot(next)
	}
	path := files[s.B%len(files)]
	switch how := s.B / 16 % 3; {
	case how == 0:
		w.struck("lost: " + suffix)
		_ = next.tree.Remove(path)
	case how == 1:
		w.struck("cut short: " + suffix)
		next.tree.Damage(path, func(data []byte) []byte { return data[:len(data)/2] })
	default:
		w.struck("rotten: " + suffix)
		next.tree.Damage(path, func(data []byte) []byte { clear(data[:min(len(data), 2*page)]); return data }) // of a table: both headers
	}
	return w.boot(next)
}

// files are the paths below a directory that end as told.
func (d *stateDisk) files(dir, suffix string) (paths []string) {
	d.Files(func(path string, _ int64) {
		if strings.HasPrefix(path, dir+"/") && strings.HasSuffix(path, suffix) {
			paths = append(paths, path)
		}
	})
	slices.Sort(paths)
	return paths
}
