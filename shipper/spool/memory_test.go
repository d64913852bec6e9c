package spool

import (
	"bytes"
	"errors"
	"fmt"
	iofs "io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vhdrelay/vhdrelay/journal/durable"
)

var errInjected = errors.New("injected")

// disk is a file system in memory that knows what a power cut would leave: content is durable after Sync, names after SyncDir of
// their directory. It counts operations, fails some, and calls back before each.
type disk struct {
	mu struct { // everything is in memory, so everything is under it
		sync.Mutex
		root *node
		ops  int
	}
	before func(op int)                    // called without the lock; nil: not
	fail   func(op int, name string) error // nil: nothing fails
	trace  func(op int, name, path string) // nil: not
}

type node struct {
	dir            bool
	data, synced   []byte
	names, durable map[string]*node
}

func newDir() *node { return &node{dir: true, names: map[string]*node{}, durable: map[string]*node{}} }

func newDisk() *disk {
	d := &disk{}
	d.mu.root = newDir()
	return d
}

// op is the beginning of every operation.
func (d *disk) op(name, path string) error {
	d.mu.Lock()
	d.mu.ops++
	n := d.mu.ops
	d.mu.Unlock()
	if d.before != nil {
		d.before(n)
	}
	if d.trace != nil {
		d.trace(n, name, path)
	}
	if d.fail != nil {
		if err := d.fail(n, name); err != nil {
			return &iofs.PathError{Op: name, Path: path, Err: err}
		}
	}
	return nil
}

func notExist(op, path string) error {
	return &iofs.PathError{Op: op, Path: path, Err: iofs.ErrNotExist}
}

func (d *disk) findLocked(path string) *node {
	n := d.mu.root
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(path), "/"), "/") {
		if part == "" || part == "." {
			continue
		}
		if n == nil || !n.dir {
			return nil
		}
		n = n.names[part]
	}
	return n
}

func (d *disk) MkdirAll(path string) error {
	if err := d.op("mkdir", path); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.mu.root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		if n.names[part] == nil {
			n.names[part] = newDir()
		}
		n = n.names[part]
	}
	return nil
}

func (d *disk) Create(path string) (durable.File, error) {
	if err := d.op("create", path); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	parent := d.findLocked(filepath.Dir(path))
	if parent == nil {
		return nil, notExist("create", path)
	}
	n := parent.names[filepath.Base(path)]
	if n == nil {
		n = &node{}
		parent.names[filepath.Base(path)] = n
	}
	n.data = nil
	return &memoryFile{d: d, n: n, path: path}, nil
}

func (d *disk) Rename(from, to string) error {
	if err := d.op("rename", to); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	parent := d.findLocked(filepath.Dir(from))
	if parent == nil || parent.names[filepath.Base(from)] == nil {
		return notExist("rename", from)
	}
	parent.names[filepath.Base(to)] = parent.names[filepath.Base(from)]
	delete(parent.names, filepath.Base(from))
	return nil
}

func (d *disk) Remove(path string) error {
	if err := d.op("remove", path); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return notExist("remove", path)
	}
	if len(n.names) > 0 {
		return fmt.Errorf("remove %s: not empty", path)
	}
	delete(d.findLocked(filepath.Dir(path)).names, filepath.Base(path))
	return nil
}

func (d *disk) SyncDir(path string) error {
	if err := d.op("syncdir", path); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.findLocked(path)
	if n == nil {
		return notExist("syncdir", path)
	}
	n.durable = maps.Clone(n.names)
	return nil
}

func (d *disk) ReadDir(path string) ([]string, error) {
	if err := d.op("readdir", path); err != nil {
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

func (d *disk) ReadFile(path string) ([]byte, error) {
	if err := d.op("readfile", path); err != nil {
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

func (d *disk) Stat(path string) (durable.Info, error) {
	if err := d.op("stat", path); err != nil {
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

func (d *disk) Open(path string) (durable.Reader, error) {
	data, err := d.ReadFile(path)
	return memoryReader{bytes.NewReader(data)}, err
}

type memoryReader struct{ *bytes.Reader }

func (memoryReader) Close() error { return nil }

type memoryFile struct {
	d    *disk
	n    *node
	path string
}

func (f *memoryFile) Write(p []byte) (int, error) {
	if err := f.d.op("write", f.path); err != nil {
		return 0, err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.data = append(f.n.data, p...)
	return len(p), nil
}

func (f *memoryFile) Sync() error {
	if err := f.d.op("sync", f.path); err != nil {
		return err
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.n.synced = bytes.Clone(f.n.data)
	return nil
}

func (f *memoryFile) Close() error { return f.d.op("close", f.path) }

// crash returns what a power cut now would leave. Of everything that is not durable, keep decides whether it made it; nil:
// nothing did.
func (d *disk) crash(keep func() bool) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	if keep == nil {
		keep = func() bool { return false }
	}
	after := &disk{}
	after.mu.root = d.mu.root.crash(keep)
	return after
}

func (n *node) crash(keep func() bool) *node {
	if !n.dir {
		data := n.synced
		if !bytes.Equal(n.synced, n.data) && keep() {
			data = n.data
		}
		return &node{data: bytes.Clone(data), synced: bytes.Clone(data)}
	}
	after := newDir()
	all := maps.Clone(n.durable)
	maps.Copy(all, n.names)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		now, safe := n.names[name], n.durable[name]
		pick := safe
		if now != safe && keep() {
			pick = now
		}
		if pick != nil {
			after.names[name] = pick.crash(keep)
			after.durable[name] = after.names[name]
		}
	}
	return after
}

func (d *disk) Edit(path string) (durable.Editor, error) {
	return nil, &iofs.PathError{Op: "edit", Path: path, Err: errors.ErrUnsupported} // the spool changes nothing in place
}
