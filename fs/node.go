package fs

import (
	"path"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// node is a file the kernel knows. Its id is the backing inode number, so that a restarted daemon finds it again; the
// O_PATH descriptor keeps that number from being given to another file as long as the kernel may use it.
type node struct {
	ino  uint64
	gen  uint64 // inode generation, constant: a changed one makes the kernel drop the inode
	kind uint32 // S_IFMT bits
	fd   int    // O_PATH

	// The shared backing descriptors, -1 while there are none. They live from the first open to the last release; the
	// kernel sends no I/O outside. wr is -1 too if the file cannot be opened for writing.
	rd, wr atomic.Int32

	// open counts the kernel's opens. Opening and closing the backing file happens under it, no data I/O does.
	open struct {
		sync.Mutex
		count int
		stale bool // the path has changed: the tracker is looked for anew at the last release
	}

	// track is held for reading during every change of the file, I/O included, and for writing to change the tracker:
	// so no change is half tracked. It is taken for writing only while a file becomes a disk or stops being one.
	track struct {
		sync.RWMutex
		asked   bool
		tracker Tracker
	}

	// sync remembers a failed fsync: the descriptor is shared, so the kernel would report a lost write to one caller
	// only. Cleared by the last release.
	sync atomic.Pointer[unix.Errno]

	hidden atomic.Bool // it has no name any more but the hidden one

	// slot is the node's place in the ledger; nil if it has none. Set before the node is known to others.
	slot *slot

	// Guarded by tree.mu.
	lookups uint64
	parent  *node
	name    string
	removed bool // no name any more
}

func newNode(ino, gen uint64, mode uint32, fd int) *node {
	n := &node{ino: ino, gen: gen, kind: mode & unix.S_IFMT, fd: fd}
	n.rd.Store(-1)
	n.wr.Store(-1)
	return n
}

func (n *node) isRegular() bool { return n.kind == unix.S_IFREG }

// proc is a path that leads to the file itself, for system calls that take no O_PATH descriptor. It never follows a
// symbolic link: the link in /proc ends at the object.
func (n *node) proc() string { return procPath(n.fd) }

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// reopen opens the file anew; flags without O_CREAT and O_TRUNC.
func (n *node) reopen(flags int) (int, error) {
	return unix.Open(n.proc(), flags|unix.O_CLOEXEC, 0)
}

// tree is the table of nodes and the shape they have below the source.
type tree struct {
	asked  atomic.Uint64 // counts the nodes that were asked for: it moves with every request
	ledger func() *ledger
	mu     struct { // no I/O under it but the close of a forgotten descriptor
		sync.RWMutex
		nodes map[uint64]*node // by node id: the inode number, fuse.FUSE_ROOT_ID for the root
	}
}

// get returns the node the kernel means; nil if it was never told of it.
func (t *tree) get(id uint64) *node {
	t.asked.Add(1)
	t.mu.RLock()
	n := t.mu.nodes[id]
	t.mu.RUnlock()
	return n
}

// adopt enters fresh as parent's child name, or the node that already has this inode; then fresh is not used. The
// kernel's count of lookups goes up by one.
func (t *tree) adopt(fresh, parent *node, name string) (n *node, used bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n = t.mu.nodes[fresh.ino]
	if n == nil {
		n, used = fresh, true
		n.slot = t.ledger().give(n.ino, n.gen)
		t.mu.nodes[fresh.ino] = n
	}
	n.lookups++
	n.note()
	n.parent, n.name, n.removed = parent, name, false
	return n, used
}

// note puts the count of lookups where the next process finds it; tree.mu is held.
func (n *node) note() {
	if n.slot != nil {
		n.slot.lookups = n.lookups
	}
}

// forget takes count lookups back. With the last one the node goes, its descriptors are closed, and it is returned.
func (t *tree) forget(id, count uint64) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.mu.nodes[id]
	if n == nil || id == fuse.FUSE_ROOT_ID {
		return nil
	}
	n.lookups -= min(count, n.lookups)
	n.note()
	if n.lookups > 0 {
		return nil
	}
	delete(t.mu.nodes, id)
	t.ledger().takeBack(n.slot)
	n.closeAll()
	return n
}

// move gives n another place.
func (t *tree) move(n, parent *node, name string) {
	t.mu.Lock()
	n.parent, n.name, n.removed = parent, name, false
	t.mu.Unlock()
}

// remove says that n has lost its name, unless it meanwhile has another one.
func (t *tree) remove(n, parent *node, name string) {
	t.mu.Lock()
	if n.parent == parent && n.name == name {
		n.removed = true
	}
	t.mu.Unlock()
}

// path is where n lies below the source; false if it was removed.
func (t *tree) path(n *node) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return pathLocked(n), !n.removed
}

// child is the path of name in the directory n.
func (t *tree) child(n *node, name string) string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return path.Join(pathLocked(n), name)
}

func pathLocked(n *node) string {
	p := ""
	for ; n != nil && n.parent != nil; n = n.parent {
		p = path.Join(n.name, p)
	}
	return p
}

// all returns every node, in no order.
func (t *tree) all() []*node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*node, 0, len(t.mu.nodes))
	for _, n := range t.mu.nodes {
		list = append(list, n)
	}
	return list
}

// clear closes every descriptor; after the last request.
func (t *tree) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, n := range t.mu.nodes {
		n.closeAll()
		delete(t.mu.nodes, id)
	}
}

// closeAll closes what is open, once: the node has left the table. Errors of close say nothing here: fsync has reported what matters.
func (n *node) closeAll() {
	n.closeBacking()
	unix.Close(n.fd)
}

func (n *node) closeBacking() {
	rd, wr := int(n.rd.Swap(-1)), int(n.wr.Swap(-1))
	if rd >= 0 {
		unix.Close(rd)
	}
	if wr >= 0 && wr != rd {
		unix.Close(wr)
	}
}
