package fs

import (
	"errors"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// cacheTime is how long the kernel may believe names and attributes. The kernel itself keeps sizes right for what is
// written through the mount; this bounds how late it sees a change made in the source directly.
const cacheTime = time.Second

// store answers the kernel's requests. It implements every method itself: a default that go-fuse adds or changes can
// never write around a Tracker.
type store struct {
	tree   tree
	ledger *ledger // nil: nothing is remembered for another process
	kept   bool    // another process may go on with this mount
	hook   func(point string, request uint64)
	// gate is held for reading by what changes names, or finds files. It is taken for writing once, for ever, by Freeze.
	gate    sync.RWMutex
	root    *node
	dev     uint64 // of the source: nothing on another device is served
	volumes Volumes
	log     *slog.Logger
	observe func(verb string, took time.Duration) // nil: nothing is measured
}

var _ fuse.RawFileSystem = (*store)(nil)

// newStore opens the source directory.
func newStore(source string, volumes Volumes, log *slog.Logger) (*store, error) {
	fd, err := unix.Open(source, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	s := &store{root: newNode(fuse.FUSE_ROOT_ID, 0, st.Mode, fd), dev: st.Dev, volumes: volumes, log: log}
	s.root.lookups = 1
	s.tree.mu.nodes = map[uint64]*node{fuse.FUSE_ROOT_ID: s.root}
	s.tree.ledger = func() *ledger { return s.ledger }
	return s, nil
}

// String names the file system for go-fuse.
func (s *store) String() string { return "vhdrelay" }

// SetDebug does nothing: Options.Debug decides.
func (s *store) SetDebug(bool) {}

// Init has nothing to do: everything is ready before the mount.
func (s *store) Init(*fuse.Server) {}

// OnUnmount closes every descriptor, after the last request was answered.
func (s *store) OnUnmount() {
	for _, n := range s.tree.all() {
		s.show(n)
	}
	s.drop()
}

// drop closes everything, for a mount that goes on without us: files that are open there keep their hidden names.
func (s *store) drop() {
	s.tree.clear()
	_ = s.ledger.close() // memory, and it is not needed any more
}

// status turns the error of a system call into what the kernel reports. An error that is no errno is a bug or a
// tracker's refusal: EIO.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if errors.As(err, &errno) {
		return fuse.Status(errno)
	}
	return fuse.EIO
}

// parentOf checks a request that names a child: the directory must be known and the name must be one.
func (s *store) parentOf(id uint64, name string) (*node, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return nil, unix.EINVAL
	}
	n, err := s.nodeOf(id)
	if err == nil && s.hidden(n, name) {
		return nil, unix.ENOENT
	}
	return n, err
}

// nodeOf returns the node of a request.
func (s *store) nodeOf(id uint64) (*node, error) {
	if n := s.tree.get(id); n != nil {
		return n, nil
	}
	return nil, unix.ESTALE
}
