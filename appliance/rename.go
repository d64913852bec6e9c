package appliance

import (
	"errors"
	"path"
	"strings"
	"unicode/utf8"

	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/journal"
)

// renamed has the disk follow its file.
func (s *store) renamed(newPath string, id fs.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fileID{id.Dev, id.Ino}
	isImage := image.IsImageName(newPath)
	if n, ok := s.mu.untracked[key]; ok {
		n.path = newPath
		s.mu.untracked[key] = n
		if !isImage {
			delete(s.mu.untracked, key)
		}
	}
	a := s.mu.images[key]
	if a != nil {
		a.moved(newPath, s.app.now())
		s.followLocked(a)
		return
	}
	if isImage && s.wants(newPath) {
		// Attach follows and ends this, unless the file was a disk once and is open still.
		s.mu.untracked[key] = note{path: newPath, since: s.app.now(), cause: errors.New("it was renamed and has not been closed since")}
	}
}

// followLocked makes an image's new path that of its disk, if it is in the same VM,
// has the same extension, which says what the content is, a record can hold it, and no
// other disk has it.
func (s *store) followLocked(a *attached) {
	vm, disk, _ := belongs(s.conf, a.now)
	if vm != a.vm.name {
		s.mu.moved[a.vm.name] = a.now
	}
	_, taken := s.findLocked(a.now)
	if taken || !utf8.ValidString(a.now) || vm != a.vm.name || !s.wants(a.now) || !strings.EqualFold(path.Ext(a.now), path.Ext(a.at())) {
		return
	}
	was, now := a.at(), a.now
	switch err := a.vm.log.Rename(a.disk, disk); {
	case errors.Is(err, journal.ErrExists): // under another path; it cannot follow
		return
	case err != nil: // it is in force all the same
		s.log.Warn("a disk's new name is not durable yet", "path", now, "vm", vm, "code", "rename-not-durable", "cause", err, "action", "look at the disk of the state directory")
	}
	a.path.Store(&now)
	s.log.Info("disk renamed; it goes on being replicated", "path", now, "was", was, "vm", vm)
	a.vm.pipeline.SealSoon()
}

// gone ends the disk of a file that was removed.
func (s *store) gone(id fs.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fileID{id.Dev, id.Ino}
	delete(s.mu.untracked, key)
	if a := s.mu.images[key]; a != nil && !s.leadsTo(a.at(), key) {
		s.detachLocked(key, "it was removed")
	}
}

// closed ends the disk of a file that is none by its name any more, and was open until now.
func (s *store) closed(id fs.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := fileID{id.Dev, id.Ino}
	if a := s.mu.images[key]; a != nil && !s.leadsTo(a.at(), key) {
		s.detachLocked(key, "its name is no image's any more")
	}
}
