package sim

import (
	"bytes"
	"fmt"
	"io"
	iofs "io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

const page = 4096 // what a power cut keeps or loses as a whole

// platter is the file system of a state directory in memory. It knows what a power cut would leave: the pages of a file
// that were synced, the names in a directory that were; of everything else any part.
type platter struct {
	life  *life
	slow  func() int                  // how many turns an operation takes; nil: none
	fail  func(op, path string) error // nil: nothing fails
	trace func(op, path string)       // of operations that change what is durable, after they succeeded; nil: not
	grown func(spool int64)           // after the files below a directory named spool grew
	mu    struct {
		platterState
		sync.Mutex
	} // everything is in memory, so everything is under it
}

type platterState struct {
	root  *node
	spool int64 // bytes in files below a directory named spool
}

type node struct {
	dir            bool
	data, synced   []byte
	dirty          map[int]bool // pages that may differ between data and synced
	names, durable map[string]*node
}

var _ durable.Tree = (*platter)(nil)

func newNode(dir bool) *node {
	if dir {
		return &node{dir: true, names: map[string]*node{}, durable: map[string]*node{}}
	}
	return &node{dirty: map[int]bool{}}
}

func newPlatter(l *life) *platter {
	p := &platter{life: l}
	p.mu.root = newNode(true)
	return p
}

// op is the beginning of every operation.
func (p *platter) op(name, path string) error {
	if p.slow != nil {
		p.life.pause(p.slow())
	}
	if p.fail != nil && p.life.isAlive() {
		if err := p.fail(name, path); err != nil {
			return &iofs.PathError{Op: name, Path: path, Err: err}
		}
	}
	return nil
}

func (p *platter) done(name, path string) {
	if p.trace != nil && p.life.isAlive() {
		p.trace(name, path)
	}
}

// enter takes the lock, unless the process is dead.
func (p *platter) enter() error {
	p.mu.Lock()
	if err := p.life.check(); err != nil {
		p.mu.Unlock()
		return err
	}
	return nil
}

func notExist(op, path string) error {
	return &iofs.PathError{Op: op, Path: path, Err: iofs.ErrNotExist}
}

func split(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' })
}

func (p *platter) findLocked(path string) *node {
	n := p.mu.root
	for _, part := range split(path) {
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[part]
	}
	return n
}

func inSpool(path string) bool { return strings.Contains(path, "/spool/") }

func (p *platter) MkdirAll(path string) error {
	if err := p.op("mkdir", path); err != nil {
		return err
	}
	if err := p.enter(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	n := p.mu.root
	for _, part := range split(path) {
		if n.names[part] == nil {
			n.names[part] = newNode(true)
		}
		n = n.names[part]
	}
	return nil
}

func (p *platter) Create(path string) (durable.File, error) {
	if err := p.op("create", path); err != nil {
		return nil, err
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.mu.Unlock()
	parent := p.findLocked(filepath.Dir(path))
	if parent == nil {
		return nil, notExist("create", path)
	}
	n := parent.names[filepath.Base(path)]
	if n == nil {
		n = newNode(false)
		parent.names[filepath.Base(path)] = n
	}
	p.resizeLocked(path, n, 0)
	return &handle{p: p, n: n, path: path}, nil
}

func (p *platter) resizeLocked(path string, n *node, size int64) {
	old := int64(len(n.data))
	n.data = fit(n.data, int(size))
	for at := min(old, size) / page; at*page < max(old, size); at++ {
		n.dirty[int(at)] = true
	}
	if inSpool(path) {
		p.mu.spool += size - old
	}
}

func (p *platter) Rename(from, to string) error {
	if err := p.op("rename", to); err != nil {
		return err
	}
	if err := p.enter(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	n, parent, dest := p.findLocked(from), p.findLocked(filepath.Dir(from)), p.findLocked(filepath.Dir(to))
	if n == nil || dest == nil {
		return notExist("rename", from)
	}
	if old := dest.names[filepath.Base(to)]; old != nil && inSpool(to) {
		p.mu.spool -= int64(len(old.data))
	}
	dest.names[filepath.Base(to)] = n
	delete(parent.names, filepath.Base(from))
	return nil
}

func (p *platter) Remove(path string) error {
	if err := p.op("remove", path); err != nil {
		return err
	}
	if err := p.enter(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return notExist("remove", path)
	}
	if len(n.names) > 0 {
		return fmt.Errorf("remove %s: not empty", path)
	}
	delete(p.findLocked(filepath.Dir(path)).names, filepath.Base(path))
	if inSpool(path) {
		p.mu.spool -= int64(len(n.data))
	}
	return nil
}

func (p *platter) SyncDir(path string) error {
	if err := p.op("syncdir", path); err != nil {
		return err
	}
	if err := p.enter(); err != nil {
		return err
	}
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return notExist("syncdir", path)
	}
	n.durable = maps.Clone(n.names)
	p.done("sync directory", path)
	return nil
}

func (p *platter) ReadDir(path string) ([]string, error) {
	if err := p.op("readdir", path); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return nil, notExist("readdir", path)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

func (p *platter) ReadFile(path string) ([]byte, error) {
	if err := p.op("readfile", path); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return nil, notExist("readfile", path)
	}
	return bytes.Clone(n.data), nil
}

func (p *platter) Stat(path string) (durable.Info, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return durable.Info{}, notExist("stat", path)
	}
	return durable.Info{Size: int64(len(n.data)), Allocated: int64(len(n.data)), Dir: n.dir}, nil
}

func (p *platter) Open(path string) (durable.Reader, error) { return p.open(path) }

func (p *platter) Edit(path string) (durable.Editor, error) { return p.open(path) }

func (p *platter) open(path string) (*handle, error) {
	if err := p.op("open", path); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.findLocked(path)
	if n == nil {
		return nil, notExist("open", path)
	}
	return &handle{p: p, n: n, path: path}, nil
}

// handle is an open file.
type handle struct {
	p    *platter
	n    *node
	path string
}

func (h *handle) Write(data []byte) (int, error) {
	h.p.mu.Lock()
	end := int64(len(h.n.data))
	h.p.mu.Unlock()
	return h.WriteAt(data, end)
}

func (h *handle) WriteAt(data []byte, off int64) (int, error) {
	if err := h.p.op("write", h.path); err != nil {
		return 0, err
	}
	if err := h.p.enter(); err != nil {
		return 0, err
	}
	defer h.p.mu.Unlock()
	if end := off + int64(len(data)); end > int64(len(h.n.data)) {
		h.p.resizeLocked(h.path, h.n, end)
		if h.p.grown != nil && inSpool(h.path) {
			h.p.grown(h.p.mu.spool)
		}
	}
	copy(h.n.data[off:], data)
	for at := off / page; at*page < off+int64(len(data)); at++ {
		h.n.dirty[int(at)] = true
	}
	return len(data), nil
}

func (h *handle) ReadAt(data []byte, off int64) (int, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	if off >= int64(len(h.n.data)) {
		return 0, io.EOF
	}
	n := copy(data, h.n.data[off:])
	if n < len(data) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Truncate(size int64) error {
	if err := h.p.op("truncate", h.path); err != nil {
		return err
	}
	if err := h.p.enter(); err != nil {
		return err
	}
	defer h.p.mu.Unlock()
	h.p.resizeLocked(h.path, h.n, size)
	return nil
}

func (h *handle) Sync() error { return h.Datasync() }

func (h *handle) Datasync() error {
	if err := h.p.op("sync", h.path); err != nil {
		return err
	}
	if err := h.p.enter(); err != nil {
		return err
	}
	defer h.p.mu.Unlock()
	n := h.n
	n.synced = fit(n.synced, len(n.data))
	for at := range n.dirty {
		if at*page < len(n.data) {
			copy(n.synced[at*page:], n.data[at*page:min(len(n.data), (at+1)*page)])
		}
	}
	clear(n.dirty)
	h.p.done("sync", h.path)
	return nil
}

func (h *handle) Size() (int64, error) {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	return int64(len(h.n.data)), nil
}

func (h *handle) Close() error { return nil }

// fit makes b n bytes long, in place if it can; what it grows by is zeros.
func fit(b []byte, n int) []byte {
	old := len(b)
	if n <= old {
		return b[:n]
	}
	if n <= cap(b) {
		b = b[:n]
		clear(b[old:])
		return b
	}
	return append(b, make([]byte, n-old)...)
}

// after is the file system that another process finds. Without a power cut it is all there. With one, keep decides of
// everything that was not synced whether it made it.
func (p *platter) after(l *life, cut bool, keep func() bool) *platter {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := newPlatter(l)
	if cut {
		next.mu.root = p.mu.root.cut(keep)
	} else {
		next.mu.root = p.mu.root.clone(map[*node]*node{})
	}
	next.mu.spool = next.mu.root.size("")
	return next
}

func (n *node) size(path string) (total int64) {
	if !n.dir {
		if inSpool(path) {
			return int64(len(n.data))
		}
		return 0
	}
	for name, child := range n.names {
		total += child.size(path + "/" + name)
	}
	return total
}

// clone keeps what is synced and what is not apart.
func (n *node) clone(seen map[*node]*node) *node {
	if n == nil {
		return nil
	}
	if c := seen[n]; c != nil {
		return c
	}
	c := newNode(n.dir)
	seen[n] = c
	if !n.dir {
		c.data, c.synced, c.dirty = bytes.Clone(n.data), bytes.Clone(n.synced), maps.Clone(n.dirty)
		return c
	}
	for name, child := range n.names {
		c.names[name] = child.clone(seen)
	}
	for name, child := range n.durable {
		c.durable[name] = child.clone(seen)
	}
	return c
}

func (n *node) cut(keep func() bool) *node {
	after := newNode(n.dir)
	if !n.dir {
		after.data = bytes.Clone(n.synced)
		if len(n.data) != len(n.synced) && keep() {
			after.data = fit(after.data, len(n.data))
		}
		for _, at := range slices.Sorted(maps.Keys(n.dirty)) {
			if from := at * page; from < min(len(n.data), len(after.data)) && keep() {
				copy(after.data[from:], n.data[from:min(len(n.data), from+page)])
			}
		}
		after.synced = bytes.Clone(after.data)
		return after
	}
	all := maps.Clone(n.durable)
	maps.Copy(all, n.names)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		pick := n.durable[name]
		if now := n.names[name]; now != pick && keep() {
			pick = now
		}
		if pick != nil {
			after.names[name] = pick.cut(keep)
			after.durable[name] = after.names[name]
		}
	}
	return after
}
