package sim

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/e2e/sim/oracle"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/image/chain"
	"github.com/vhdrelay/vhdrelay/fs/image/formats"
	"github.com/vhdrelay/vhdrelay/journal"
	"github.com/vhdrelay/vhdrelay/journal/durable/platter"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// errSync is what a sync of an image fails with when it is to.
var errSync = errors.New("sim: input/output error of the image")

// Image is an image file in memory: what its readers see, and what a power cut would leave of it.
type Image struct {
	name     string
	ino      uint64
	life     *life
	slow     func() int
	failSync func() bool
	now      func() time.Time

	mu struct { // no I/O under it
		sync.Mutex
		data, synced []byte
		first        []byte      // the disk that it was at first
		writer       *hypervisor // of a translated image
		pending      []edit      // since the last sync, in order
		marked       bool
		ctime        time.Time
	}
}

// edit is a change that is not synced.
type edit struct {
	off  int64
	data []byte // nil: zeros
	n    int64
	size int64 // of the file after it
}

func newImage(name string, ino uint64, content []byte, at time.Time) *Image {
	m := &Image{name: name, ino: ino}
	m.mu.data, m.mu.first, m.mu.ctime = fileOf(name, ino, content), content, at
	m.becomes(content)
	m.mu.synced = bytes.Clone(m.mu.data)
	return m
}

// isVHD says whether an image of this name is a fixed VHD.
func isVHD(name string) bool { return path.Ext(name) == ".vhd" && !translated(name) }

// visible is what a guest sees as its disk in a file; nil if it is none just now.
func visible(name string, data []byte) []byte {
	if translated(name) {
		disk, err := oracle.Virtual(data, nil)
		if err != nil {
			return nil
		}
		return disk
	}
	if isVHD(name) {
		return data[:max(0, len(data)-image.FooterSize)]
	}
	return data
}

// told makes the file's bytes what the oracle knows of the image from now on.
func (m *Image) told(line *oracle.Timeline) {
	m.mu.Lock()
	defer m.mu.Unlock()
	line.Reset(m.name, m.mu.data)
	if isVHD(m.name) {
		line.Tail(m.name, image.FooterSize)
	}
	if translated(m.name) {
		line.Translated(m.name)
	}
}

// content is a copy of the virtual disk.
func (m *Image) content() []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.Clone(visible(m.name, m.mu.data))
}

// diskSize is the size of the virtual disk.
func (m *Image) diskSize() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(visible(m.name, m.mu.data)))
}

// becomes says that somebody writes a file of this content over the image: what its hypervisor knew of it is over.
func (m *Image) becomes(content []byte) {
	if translated(m.name) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.writer = newHypervisor(m.name, m.ino, content)
	}
}

func (m *Image) hypervisor() *hypervisor {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.writer
}

func (m *Image) pause() {
	if m.slow != nil {
		m.life.pause(m.slow())
	}
}

// do performs a guest's change, page by page for a write, and tells the timeline of each effect at its moment. The data is kept.
func (m *Image) do(c extent.Change, data []byte, t *oracle.Timeline, op *oracle.Op) error {
	if c.Kind != extent.Write {
		return m.effect(c, nil, t, op)
	}
	for len(data) > 0 {
		n := min(len(data), page-int(c.Off%page)+page*int(c.Off/page%3))
		if err := m.effect(extent.Change{Off: c.Off, Len: int64(n)}, data[:n], t, op); err != nil {
			return err
		}
		data, c.Off = data[n:], c.Off+int64(n)
	}
	return nil
}

func (m *Image) effect(c extent.Change, data []byte, t *oracle.Timeline, op *oracle.Op) error {
	m.pause()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.check(); err != nil {
		return err
	}
	if !m.life.isAlive() { // buried: nobody looks at this copy
		return errDead
	}
	size := int64(len(m.mu.data))
	e := edit{off: c.Off, n: c.Len, data: data, size: max(size, c.Off+c.Len)}
	switch c.Kind {
	case extent.Write:
		t.Wrote(op, m.name, c.Off, data)
	case extent.Truncate:
		e = edit{off: min(c.Off, size), n: max(0, size-c.Off), size: c.Off}
		t.Resized(op, m.name, c.Off)
	default:
		e.n = max(0, min(c.Len, size-c.Off))
		e.size = size
		t.Zeroed(op, m.name, c.Off, c.Len)
	}
	m.mu.data = e.apply(m.mu.data)
	m.mu.pending = append(m.mu.pending, e)
	m.mu.ctime = m.now()
	return nil
}

func (e edit) apply(b []byte) []byte {
	if int64(len(b)) < e.size {
		b = platter.Fit(b, int(e.size))
	}
	if e.data != nil {
		copy(b[e.off:], e.data)
	} else {
		clear(b[e.off : e.off+e.n])
	}
	return platter.Fit(b, int(e.size))
}

// ReadAt implements journal.File.
func (m *Image) ReadAt(p []byte, off int64) (int, error) {
	m.pause()
	m.mu.Lock()
	defer m.mu.Unlock()
	if off >= int64(len(m.mu.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.mu.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Datasync implements journal.File: what was answered before the call is durable when it returns.
func (m *Image) Datasync() error {
	m.mu.Lock()
	upto := len(m.mu.pending)
	m.mu.Unlock()
	m.pause()
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.check(); err != nil {
		return err
	}
	if m.failSync != nil && m.life.isAlive() && m.failSync() {
		return errSync
	}
	upto = min(upto, len(m.mu.pending)) // another sync may have been faster
	for _, e := range m.mu.pending[:upto] {
		m.mu.synced = e.apply(m.mu.synced)
	}
	m.mu.pending = slices.Clone(m.mu.pending[upto:])
	return nil
}

// Size implements journal.File.
func (m *Image) Size() (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return int64(len(m.mu.data)), nil
}

// Stat says which file it is.
func (m *Image) Stat() (chain.Stat, error) {
	size, err := m.Size()
	return chain.Stat{Size: size, Inode: m.ino}, err
}

// Facts implements journal.File.
func (m *Image) Facts() (journal.Facts, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return journal.Facts{Size: int64(len(m.mu.data)), Mtime: m.mu.ctime, Ctime: m.mu.ctime, Dev: 1, Ino: m.ino}, nil
}

func (m *Image) mark(to bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.life.check(); err != nil {
		return err
	}
	m.mu.marked = to
	return nil
}

// SetSuspectMark implements journal.File.
func (m *Image) SetSuspectMark() error { return m.mark(true) }

// ClearSuspectMark implements journal.File.
func (m *Image) ClearSuspectMark() error { return m.mark(false) }

// SuspectMarked implements journal.File.
func (m *Image) SuspectMarked() (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.marked, nil
}

// nextData finds data by looking, block by block.
func (m *Image) nextData(off int64) (start, end int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	size := int64(len(m.mu.data))
	zero := func(at int64) bool { return allZero(m.mu.data[at:min(at+page, size)]) }
	for start = off; start < size && zero(start); {
		start += page
	}
	if start >= size {
		return 0, 0, io.EOF
	}
	for end = start; end < size && !zero(end); {
		end += page
	}
	return start, min(end, size), nil
}

func allZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func (m *Image) probe() (image.Info, error) {
	size, _ := m.Size()
	return formats.Probe(m.name, m, size)
}

// after is the image that the next process finds. A power cut keeps of every page what it held after any number of the
// changes that were not synced, and of the file's size likewise.
func (m *Image) after(l *life, cut bool, draw func(n int) int) *Image {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := &Image{name: m.name, ino: m.ino, life: l, slow: m.slow, failSync: m.failSync, now: m.now}
	next.mu.marked, next.mu.ctime, next.mu.first = m.mu.marked, m.mu.ctime, m.mu.first
	next.mu.writer = m.mu.writer.clone()
	next.mu.data, next.mu.synced = bytes.Clone(m.mu.data), bytes.Clone(m.mu.synced)
	next.mu.pending = slices.Clone(m.mu.pending)
	if cut {
		next.mu.data = torn(next.mu.synced, m.mu.pending, draw)
		next.mu.synced, next.mu.pending = bytes.Clone(next.mu.data), nil
	}
	return next
}

// torn replays on every page a random number of its changes.
func torn(synced []byte, pending []edit, draw func(n int) int) []byte {
	size := len(synced)
	if k := draw(len(pending) + 1); k > 0 {
		size = int(pending[k-1].size)
	}
	touched := map[int64][]edit{}
	for _, e := range pending {
		for at := e.off / page; at*page < e.off+e.n; at++ {
			touched[at] = append(touched[at], e)
		}
	}
	out := platter.Fit(bytes.Clone(synced), size)
	for _, at := range slices.Sorted(maps.Keys(touched)) {
		p := make([]byte, page)
		if from := int(at) * page; from < len(synced) {
			copy(p, synced[from:])
		}
		edits := touched[at]
		for _, e := range edits[:draw(len(edits)+1)] {
			e.onPage(p, at*page)
		}
		if from := int(at) * page; from < size {
			copy(out[from:], p)
		}
	}
	return out
}

func (e edit) onPage(p []byte, base int64) {
	from, to := max(e.off, base), min(e.off+e.n, base+page)
	if e.data != nil {
		copy(p[from-base:to-base], e.data[from-e.off:])
	} else {
		clear(p[from-base : to-base])
	}
}
