package fs

import "github.com/vhdrelay/vhdrelay/fs/image"

// Retrack asks for the Tracker of every image anew whose path is chosen, also of those that are open: a running guest
// goes on with what Attach answers now. When it returns no change of these files runs that was not told to the new
// Tracker; of a file that had none, none that nobody was told of. Attach is called as Volumes says. It waits for the
// changes under way, so the caller holds nothing that Attach or a Tracker takes.
func (s *Server) Retrack(chosen func(path string) bool) {
	if !s.enter() {
		return
	}
	defer s.store.gate.RUnlock()
	for _, n := range s.store.tree.all() {
		if path, named := s.store.tree.path(n); n.isRegular() && named && image.IsImageName(path) && chosen(path) {
			s.store.retrackNow(n)
		}
	}
}

// Notice tells the server of a name that a file has got beside the mount. If the file is known here and has no tracker, that
// is asked for under the name and in force when Notice returns, also for a file that is open. False: it is not known, so
// nobody has it open, and its tracker is asked for when it is looked up.
func (s *Server) Notice(path string, id Identity) bool {
	n := s.store.tree.get(id.Ino)
	if n == nil || n.gen != id.Gen || !n.isRegular() || s.store.volumes == nil {
		return false
	}
	if !s.enter() {
		return true
	}
	defer s.store.gate.RUnlock()
	n.open.Lock()
	defer n.open.Unlock()
	n.track.Lock()
	defer n.track.Unlock()
	if n.track.tracker == nil {
		n.track.asked, n.track.tracker = true, s.store.volumes.Attach(path, s.store.identity(n))
	}
	return true
}

// Again asks anew for the tracker of a file, by the path it has now; it is in force when Again returns, also for a file that is
// open. A file that is not known here is asked for when it is looked up.
func (s *Server) Again(id Identity) {
	n := s.store.tree.get(id.Ino)
	if n == nil || n.gen != id.Gen || !n.isRegular() || s.store.volumes == nil || !s.enter() {
		return
	}
	defer s.store.gate.RUnlock()
	s.store.retrackNow(n)
}

// enter keeps the store from being frozen. False: it is frozen, or about to be: no file changes any more, the next process
// asks for every tracker anew, and who waited for one here would wait until this process is gone.
func (s *Server) enter() bool { return s.store.gate.TryRLock() }

// retrackNow is retrack for a file that may be open.
func (s *store) retrackNow(n *node) {
	n.open.Lock()
	defer n.open.Unlock()
	n.open.stale = false
	n.track.Lock()
	defer n.track.Unlock()
	s.attachLocked(n)
}
