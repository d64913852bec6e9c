package fs

import (
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// adopt serves a mount that an earlier process made, where it stopped: files that were open go on, and requests that were
// not answered come again. It asks nothing of the mount before somebody answers.
func adopt(opts Options, c *Connection) (*Server, error) {
	s, have, err := reopenStore(opts, c)
	if err != nil {
		return nil, err
	}
	o := opts.fuse()
	o.MaxWrite = largestWrite(have.Answer)
	srv, num, answer, err := negotiate(s, asAgreed(have.Init, have.Answer), o)
	if err == nil && !agreed(have.Answer, answer) {
		err = fmt.Errorf("what %s agreed on with the kernel cannot be kept: %w", have.Writer, ErrNewer)
	}
	if err == nil {
		err = s.fill()
	}
	if err == nil {
		s.ledger.raise()
		err = connect(c.Device, num)
	}
	if err == nil {
		err = resend(c.Device)
	}
	if err != nil {
		s.drop()
		return nil, fmt.Errorf("take over the mount %s: %w", opts.Mount, err)
	}
	m := &Server{store: s, fuse: srv, mount: opts.Mount, device: c.Device, num: num, done: make(chan struct{}), kept: true, adopted: true}
	m.serve()
	return m, nil
}

// reopenStore opens what the earlier process left, and the store as it is now.
func reopenStore(opts Options, c *Connection) (*store, facts, error) {
	l, have, err := openLedger(c.State)
	if err != nil {
		return nil, have, err
	}
	if err := have.fits(opts, c.Device); err != nil {
		return nil, have, errors.Join(err, l.close())
	}
	s, err := newStore(opts.Source, opts.Volumes, opts.Log)
	if err != nil {
		return nil, have, errors.Join(fmt.Errorf("source %s: %w", opts.Source, err), l.close())
	}
	s.observe, s.hook, s.ledger, s.kept = opts.Observe, opts.Hook, l, true
	return s, have, nil
}

// hiddenPrefix begins the names, in the root of the source, of files that are open and have no other name any more; the
// inode number follows. They are not seen at the mount.
const hiddenPrefix = ".vhdrelay-open-"

func hiddenName(ino uint64) string { return hiddenPrefix + strconv.FormatUint(ino, 16) }

// hidden says whether the name in the directory is one of ours.
func (s *store) hidden(dir *node, name string) bool {
	return dir == s.root && strings.HasPrefix(name, hiddenPrefix)
}

// fill finds every inode that the kernel knows by looking through the store, and opens what is open.
func (s *store) fill() error {
	want := s.ledger.known()
	s.fillBelow(s.root, want)
	s.fillHidden(want)
	for _, slot := range want {
		if slot.opens > 0 {
			s.log.Warn("a file that is open is not found any more; who has it gets ESTALE", "inode", slot.ino)
		}
		s.tree.mu.Lock()
		s.ledger.takeBack(slot)
		s.tree.mu.Unlock()
	}
	return nil
}

// fillBelow enters what is wanted of a directory. What cannot be read is as good as gone.
func (s *store) fillBelow(dir *node, want map[uint64]*slot) {
	names, err := readNames(dir.fd)
	if err != nil {
		s.log.Warn("a directory cannot be searched for files that are open", "path", s.tree.child(dir, ""), "error", err)
	}
	for _, name := range names {
		if len(want) == 0 {
			return
		}
		if s.hidden(dir, name) {
			continue
		}
		if n := s.restore(dir, name, want); n != nil && n.kind == unix.S_IFDIR {
			s.fillBelow(n, want)
		}
	}
}

// fillHidden enters the files that are open and have no name, and removes those that nobody has.
func (s *store) fillHidden(want map[uint64]*slot) {
	names, _ := readNames(s.root.fd) // fillBelow has said it
	for _, name := range names {
		if !s.hidden(s.root, name) {
			continue
		}
		if n := s.restore(s.root, name, want); n != nil {
			n.hidden.Store(true)
			s.tree.remove(n, s.root, name)
			continue
		}
		s.unhide(name)
	}
}

// restore enters a name if the kernel knows its inode; nil if not.
func (s *store) restore(dir *node, name string, want map[uint64]*slot) *node {
	slot := want[s.inoAt(dir, name)]
	if slot == nil {
		return nil
	}
	fd, err := s.openPath(dir.fd, name)
	if err != nil {
		return nil
	}
	var st syscall.Stat_t
	err = syscall.Fstat(fd, &st)
	if err != nil || st.Dev != s.dev || st.Ino != slot.ino || generation(fd, st.Mode) != slot.gen {
		unix.Close(fd)
		return nil
	}
	delete(want, slot.ino)
	n := newNode(st.Ino, slot.gen, st.Mode, fd)
	n.slot, n.lookups, n.parent, n.name = slot, slot.lookups, dir, name
	s.tree.mu.Lock()
	s.tree.mu.nodes[n.ino] = n
	s.tree.mu.Unlock()
	s.reopenAll(n)
	if dir != s.root || !s.hidden(dir, name) {
		s.attach(n, name)
	}
	return n
}

// reopenAll opens the backing file for those who have it open.
func (s *store) reopenAll(n *node) {
	if n.slot.errno != 0 {
		errno := unix.Errno(n.slot.errno)
		n.sync.Store(&errno)
	}
	if n.slot.opens == 0 {
		return
	}
	n.open.Lock()
	defer n.open.Unlock()
	n.open.count = int(n.slot.opens)
	if err := n.openFirst(false); err != nil {
		s.log.Warn("a file that is open at the mount cannot be opened again", "name", n.name, "error", err)
	}
}

// hide gives a file that is open and about to lose its last name another one, so that the next process finds it.
func (s *store) hide(e entry) {
	n := e.node
	if n == nil || !n.isRegular() || !s.kept || n.hidden.Load() {
		return
	}
	n.open.Lock()
	open := n.open.count > 0
	n.open.Unlock()
	if !open || n.links() != 1 {
		return
	}
	err := unix.Linkat(unix.AT_FDCWD, n.proc(), s.root.fd, hiddenName(n.ino), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		s.log.Warn("an open file that is removed is lost at a restart", "path", e.path, "error", err)
		return
	}
	n.hidden.Store(true)
}

// show takes the hidden name back: the file keeps the name that it was to lose, or nobody knows it any more.
func (s *store) show(n *node) {
	if n.hidden.Swap(false) {
		s.unhide(hiddenName(n.ino))
	}
}

// keepName undoes hide for a file that has not lost its name.
func (s *store) keepName(e entry) {
	if e.node != nil {
		s.show(e.node)
	}
}

func (s *store) unhide(name string) {
	if err := unix.Unlinkat(s.root.fd, name, 0); err != nil && err != unix.ENOENT {
		s.log.Warn("the hidden name of a removed file is left over", "name", path.Join("/", name), "error", err, "action", "remove it")
	}
}

// unhideAll removes what a crash left: no mount knows these files.
func (s *store) unhideAll() {
	names, _ := readNames(s.root.fd) // a source that cannot be read shows elsewhere
	for _, name := range names {
		if s.hidden(s.root, name) {
			s.unhide(name)
		}
	}
}
