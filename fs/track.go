package fs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal/extent"
	"golang.org/x/sys/unix"
)

// refusal is what a guest sees when its Tracker refuses a change: EIO if it cannot be tracked anywhere (I9: only then),
// EFBIG if a disk cannot be that large.
func refusal(err error) error {
	if errors.Is(err, unix.EFBIG) {
		return unix.EFBIG
	}
	return unix.EIO
}

// change does one tracked change of the file: Begin, the operation, End. Write has its own copy of this, because a
// closure there would allocate.
func (n *node) change(c extent.Change, do func() error) error {
	n.track.RLock()
	defer n.track.RUnlock()
	t := n.track.tracker
	if t == nil {
		return do()
	}
	pass, err := t.Begin(c)
	if err != nil {
		return refusal(err)
	}
	err = do()
	t.End(c, pass, err)
	return err
}

// tracked says whether changes of the file are told to a Tracker.
func (n *node) tracked() bool {
	n.track.RLock()
	defer n.track.RUnlock()
	return n.track.tracker != nil
}

// attach asks for the tracker of n if name makes it an image and nobody has asked yet. It returns when the answer is
// in force, so the request that shows the image is answered after it.
func (s *store) attach(n *node, name string) {
	if !n.isRegular() || s.volumes == nil || !image.IsImageName(name) {
		return
	}
	n.track.RLock()
	asked := n.track.asked
	n.track.RUnlock()
	if asked {
		return
	}
	n.track.Lock()
	defer n.track.Unlock()
	if !n.track.asked {
		s.attachLocked(n)
	}
}

// attachLocked asks with the path n has now, or says that the disk it was is closed; n.track is held for writing.
func (s *store) attachLocked(n *node) {
	path, named := s.tree.path(n)
	disk, was := named && image.IsImageName(path), n.track.tracker != nil
	if was && !disk && n.hasOtherName(named) {
		// A hard link, made in the source. The kernel may open the file by it without asking us first, so the Tracker
		// stays until an image's name is seen again.
		n.track.asked = false
		return
	}
	n.track.asked, n.track.tracker = false, nil
	switch {
	case disk:
		n.track.asked, n.track.tracker = true, s.volumes.Attach(path, s.identity(n))
	case named && was:
		s.volumes.Closed(path, s.identity(n))
	}
}

// retrack looks for the tracker anew after n got another path or lost its last one. A tracked file that is open keeps
// its tracker until the last release: a disk does not change its identity under a running guest.
func (s *store) retrack(n *node) {
	if !n.isRegular() || s.volumes == nil {
		return
	}
	n.open.Lock()
	defer n.open.Unlock()
	if n.open.count > 0 && n.tracked() {
		n.open.stale = true
		return
	}
	n.track.Lock()
	defer n.track.Unlock()
	s.attachLocked(n)
}

func (s *store) identity(n *node) Identity { return Identity{Dev: s.dev, Ino: n.ino, Gen: n.gen} }

// isDisk says whether the file is served as a disk: by its name, or because it still has the tracker of one.
func (s *store) isDisk(n *node) bool {
	if !n.isRegular() {
		return false
	}
	path, _ := s.tree.path(n)
	return image.IsImageName(path) || n.tracked()
}

// openFlags chooses how the kernel does I/O. A disk: every request as it comes, side by side, nothing cached twice.
// Other files go through the kernel's cache, written through, so that mmap works on every kernel.
func (s *store) openFlags(n *node) uint32 {
	if s.isDisk(n) {
		return fuse.FOPEN_DIRECT_IO | fuse.FOPEN_PARALLEL_DIRECT_WRITES
	}
	return 0
}
