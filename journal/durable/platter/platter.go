// Package platter is a disk in memory, for tests: a durable.Tree that knows what a power cut would leave of it, and tells of
// each operation before it happens.
package platter

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

const page = 4096 // bytes: what a power cut keeps or loses as a whole

// Disk is a file system in memory. Of its files it knows the pages that were synced, of its directories the names that were;
// of everything else a power cut may leave any part.
type Disk struct {
	hooks Hooks
	mu    struct { // everything is in memory, so everything is under it
		sync.Mutex
		root *node
	}
}

// Hooks are called by a disk; each may be nil. Operations are mkdir, create, rename, remove, syncdir, readdir, readfile, stat,
// open, write, truncate, sync and close.
type Hooks struct {
	// Begin comes before every operation, without a lock. Its error is the operation's.
	Begin func(op, path string) error
	// Enter comes before every change, under the disk's lock: with an error nothing changes, as when a process is dead.
	Enter func() error
	// Synced comes after every sync and syncdir that succeeded, under the disk's lock.
	Synced func(op, path string)
	// Resized tells by how many bytes a file grew or shrank, under the disk's lock. One that is removed or replaced shrinks
	// to nothing.
	Resized func(path string, by int64)
}

// New is an empty disk.
func New(h Hooks) *Disk {
	d := &Disk{hooks: h}
	d.mu.root = newNode(true)
	return d
}

// begin is the beginning of every operation.
func (d *Disk) begin(op, path string) error {
	if d.hooks.Begin == nil {
		return nil
	}
	if err := d.hooks.Begin(op, path); err != nil {
		return &iofs.PathError{Op: op, Path: path, Err: err}
	}
	return nil
}

// change is the beginning of an operation that changes something: without an error it has the lock.
func (d *Disk) change(op, path string) error {
	if err := d.begin(op, path); err != nil {
		return err
	}
	d.mu.Lock()
	if d.hooks.Enter == nil {
		return nil
	}
	err := d.hooks.Enter()
	if err != nil {
		d.mu.Unlock()
	}
	return err
}

func (d *Disk) synced(op, path string) {
	if d.hooks.Synced != nil {
		d.hooks.Synced(op, path)
	}
}

func (d *Disk) resized(path string, by int64) {
	if d.hooks.Resized != nil && by != 0 {
		d.hooks.Resized(path, by)
	}
}

type node struct {
	dir            bool
	data, synced   []byte
	dirty          map[int]bool // pages that may differ between data and synced
	names, durable map[string]*node
}

var _ durable.Tree = (*Disk)(nil)

func newNode(dir bool) *node {
	if dir {
		return &node{dir: true, names: map[string]*node{}, durable: map[string]*node{}}
	}
	return &node{dirty: map[int]bool{}}
}

func notExist(op, path string) error {
	return &iofs.PathError{Op: op, Path: path, Err: iofs.ErrNotExist}
}

func split(path string) []string {
	return strings.FieldsFunc(filepath.Clean(path), func(r rune) bool { return r == '/' })
}

func (d *Disk) findLocked(path string) *node {
	n := d.mu.root
	for _, part := range split(path) {
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[part]
	}
	return n
}

// MkdirAll implements durable.Tree.
func (d *Disk) MkdirAll(path string) error {
	if err := d.change("mkdir", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	n := d.mu.root
	for _, part := range split(path) {
		if n.names[part] == nil {
			n.names[part] = newNode(true)
		}
		n = n.names[part]
	}
	return nil
}

// Create implements durable.FS.
func (d *Disk) Create(path string) (durable.File, error) {
	if err := d.change("create", path); err != nil {
		return nil, err
	}
	defer d.mu.Unlock()
	parent := d.findLocked(filepath.Dir(path))
	if parent == nil {
		return nil, notExist("create", path)
	}
	n := parent.names[filepath.Base(path)]
	if n == nil {
		n = newNode(false)
		parent.names[filepath.Base(path)] = n
	}
	d.resizeLocked(path, n, 0)
	return &handle{d: d, n: n, path: path}, nil
}

func (d *Disk) resizeLocked(path string, n *node, size int64) {
	old := int64(len(n.data))
	n.data = Fit(n.data, int(size))
	for at := min(old, size) / page; at*page < max(old, size); at++ {
		n.dirty[int(at)] = true
	}
	d.resized(path, size-old)
}

// Rename implements durable.FS.
func (d *Disk) Rename(from, to string) error {
	if err := d.change("rename", to); err != nil {
		return err
	}
	defer d.mu.Unlock()
	n, parent, dest := d.findLocked(from), d.findLocked(filepath.Dir(from)), d.findLocked(filepath.Dir(to))
	if n == nil || dest == nil {
		return notExist("rename", from)
	}
	if old := dest.names[filepath.Base(to)]; old != nil {
		d.resized(to, -int64(len(old.data)))
	}
	dest.names[filepath.Base(to)] = n
	delete(parent.names, filepath.Base(from))
	return nil
}

// Remove implements durable.FS.
func (d *Disk) Remove(path string) error {
	if err := d.change("remove", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return notExist("remove", path)
	}
	if len(n.names) > 0 {
		return fmt.Errorf("remove %s: not empty", path)
	}
	delete(d.findLocked(filepath.Dir(path)).names, filepath.Base(path))
	d.resized(path, -int64(len(n.data)))
	return nil
}

// SyncDir implements durable.FS.
func (d *Disk) SyncDir(path string) error {
	if err := d.change("syncdir", path); err != nil {
		return err
	}
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return notExist("syncdir", path)
	}
	n.durable = maps.Clone(n.names)
	d.synced("syncdir", path)
	return nil
}

// ReadDir implements durable.Tree.
func (d *Disk) ReadDir(path string) ([]string, error) {
	if err := d.begin("readdir", path); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return nil, notExist("readdir", path)
	}
	return slices.Sorted(maps.Keys(n.names)), nil
}

// ReadFile implements durable.Tree.
func (d *Disk) ReadFile(path string) ([]byte, error) {
	if err := d.begin("readfile", path); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return nil, notExist("readfile", path)
	}
	return bytes.Clone(n.data), nil
}

// Stat implements durable.Tree.
func (d *Disk) Stat(path string) (durable.Info, error) {
	if err := d.begin("stat", path); err != nil {
		return durable.Info{}, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return durable.Info{}, notExist("stat", path)
	}
	return durable.Info{Size: int64(len(n.data)), Allocated: int64(len(n.data)), Dir: n.dir}, nil
}

// Open implements durable.Tree.
func (d *Disk) Open(path string) (durable.Reader, error) { return d.open(path) }

// Edit implements durable.Tree.
func (d *Disk) Edit(path string) (durable.Editor, error) { return d.open(path) }

func (d *Disk) open(path string) (*handle, error) {
	if err := d.begin("open", path); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return nil, notExist("open", path)
	}
	return &handle{d: d, n: n, path: path}, nil
}

// handle is an open file.
type handle struct {
	d    *Disk
	n    *node
	path string
}

func (h *handle) Write(data []byte) (int, error) {
	h.d.mu.Lock()
	end := int64(len(h.n.data))
	h.d.mu.Unlock()
	return h.WriteAt(data, end)
}

func (h *handle) WriteAt(data []byte, off int64) (int, error) {
	if err := h.d.change("write", h.path); err != nil {
		return 0, err
	}
	defer h.d.mu.Unlock()
	if end := off + int64(len(data)); end > int64(len(h.n.data)) {
		h.d.resizeLocked(h.path, h.n, end)
	}
	copy(h.n.data[off:], data)
	for at := off / page; at*page < off+int64(len(data)); at++ {
		h.n.dirty[int(at)] = true
	}
	return len(data), nil
}

func (h *handle) ReadAt(data []byte, off int64) (int, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
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
	if err := h.d.change("truncate", h.path); err != nil {
		return err
	}
	defer h.d.mu.Unlock()
	h.d.resizeLocked(h.path, h.n, size)
	return nil
}

func (h *handle) Sync() error { return h.Datasync() }

func (h *handle) Datasync() error {
	if err := h.d.change("sync", h.path); err != nil {
		return err
	}
	defer h.d.mu.Unlock()
	n := h.n
	n.synced = Fit(n.synced, len(n.data))
	for at := range n.dirty {
		if at*page < len(n.data) {
			copy(n.synced[at*page:], n.data[at*page:min(len(n.data), (at+1)*page)])
		}
	}
	clear(n.dirty)
	h.d.synced("sync", h.path)
	return nil
}

func (h *handle) Size() (int64, error) {
	h.d.mu.Lock()
	defer h.d.mu.Unlock()
	return int64(len(h.n.data)), nil
}

func (h *handle) Close() error { return h.d.begin("close", h.path) }

// Fit makes b n bytes long, in place if it can; what it grows by is zeros.
func Fit(b []byte, n int) []byte {
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

// After is the disk that another process finds, with hooks of its own. Without a power cut it is all there. With one, keep
// decides of everything that was not synced whether it made it; nil: nothing did.
func (d *Disk) After(h Hooks, cut bool, keep func() bool) *Disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	next := New(h)
	switch {
	case !cut:
		next.mu.root = d.mu.root.clone(map[*node]*node{})
	case keep == nil:
		next.mu.root = d.mu.root.cut(func() bool { return false })
	default:
		next.mu.root = d.mu.root.cut(keep)
	}
	return next
}

// Files calls visit for each file with its path and size in bytes, in the order of the paths, and asks no hook.
func (d *Disk) Files(visit func(path string, size int64)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.root.files("", visit)
}

func (n *node) files(path string, visit func(string, int64)) {
	if !n.dir {
		visit(path, int64(len(n.data)))
	}
	for _, name := range slices.Sorted(maps.Keys(n.names)) {
		n.names[name].files(path+"/"+name, visit)
	}
}

// Damage changes the content of a file behind everybody's back, and asks no hook.
func (d *Disk) Damage(path string, change func(data []byte) []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	n.data = change(n.data)
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
			after.data = Fit(after.data, len(n.data))
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
