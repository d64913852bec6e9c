package appliance

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vhdrelay/vhdrelay/appliance/control"
	"github.com/vhdrelay/vhdrelay/fs"
	"github.com/vhdrelay/vhdrelay/fs/image"
	"github.com/vhdrelay/vhdrelay/fs/watch"
	"github.com/vhdrelay/vhdrelay/journal/extent"
)

// watcher tells what others do in the source.
type watcher struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// watchSource begins to notice what other processes do in the source. Where that
// cannot be had the store is served all the same: the next start compares what was
// changed.
func (s *store) watchSource() {
	w, err := watch.Open(s.conf.Source)
	if err != nil {
		s.log.Warn("changes of the source by other processes go unnoticed until the next start", "code", "source-unwatched", "cause", err, "action", "none needed while nothing but vhdrelay touches the source")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.watcher = watcher{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(s.watcher.done)
		if err := w.Run(ctx, s.behind); err != nil {
			s.log.Warn("changes of the source by other processes go unnoticed from now on", "code", "source-unwatched", "cause", err, "action", "restart vhdrelay")
			s.behind(watch.Event{Kind: watch.Lost})
		}
	}()
}

func (w watcher) stop() {
	if w.cancel != nil {
		w.cancel()
		<-w.done
	}
}

// behind judges what another process did in the source.
func (s *store) behind(e watch.Event) {
	switch e.Kind {
	case watch.Lost:
		s.lostTrack()
	case watch.Opened:
		if image.IsImageName(e.Path) && s.writes(e) {
			s.written(e, true)
		}
	case watch.Written:
		s.written(e, s.writes(e))
	default:
		s.appeared(e)
	}
}

func (s *store) full(path string) string {
	source := s.conf.Source
	if resolved, err := filepath.EvalSymlinks(source); err == nil {
		source = resolved
	}
	return filepath.Join(source, filepath.FromSlash(path))
}

// written doubts an image that another process has written, or may be writing still.
func (s *store) written(e watch.Event, still bool) {
	id, err := fs.Identify(s.full(e.Path))
	who := process(e.PID)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.knownAsLocked(e.Path) {
		s.blameLocked(a, who, e.PID, still)
	}
	if err != nil {
		return // gone again
	}
	if a := s.mu.images[fileID{id.Dev, id.Ino}]; a != nil {
		s.blameLocked(a, who, e.PID, still)
	}
}

func (s *store) blameLocked(a *attached, who string, pid int, still bool) {
	a.writer, a.writerPID = who, pid
	s.doubtLocked(a, "written beside the mount, by "+who)
	a.foreign.Store(still) // last: a seal that finds no writer any more finds the suspicion
}

// formerPath is a path that a file had until a time.
type formerPath struct {
	path  string
	until time.Time
}

// formerFor is how long after a rename an event under the old name may mean the file that was renamed: events are told in
// their order, and late when the state disk is slow.
const formerFor = 10 * time.Minute

// moved notes that the file lies elsewhere now.
func (a *attached) moved(to string, now time.Time) {
	a.was = slices.DeleteFunc(a.was, func(f formerPath) bool { return now.Sub(f.until) > formerFor })
	a.was = append(a.was, formerPath{a.now, now})
	a.now = to
}

// knownAsLocked are the images that had a path lately and have another one: an event is read after what it tells of, and
// then the path may lead nowhere, or to another file.
func (s *store) knownAsLocked(path string) (all []*attached) {
	now := s.app.now()
	for _, a := range s.mu.images {
		if slices.ContainsFunc(a.was, func(f formerPath) bool { return f.path == path && now.Sub(f.until) <= formerFor }) {
			all = append(all, a)
		}
	}
	return all
}

// writes tells whether the process of an event has the image open for writing, under the name it has by now.
func (s *store) writes(e watch.Event) bool {
	paths := []string{e.Path}
	s.mu.Lock()
	for _, a := range s.knownAsLocked(e.Path) {
		paths = append(paths, a.now)
	}
	s.mu.Unlock()
	return slices.ContainsFunc(paths, func(p string) bool { return watch.Writes(e.PID, s.full(p)) })
}

// notice attaches an image that came beside the mount. One that a guest has open there under another name is tracked from
// now on: attached behind the server's back it would be a disk whose changes nobody is told of.
func (s *store) notice(path string, id fs.Identity) {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	if srv == nil || !srv.Notice(path, id) {
		s.Attach(path, id)
	}
}

// doubtLocked has an image compared whole, and takes the size that it has by now.
func (s *store) doubtLocked(a *attached, reason string) {
	a.doubts.Add(1)
	first := a.doubt != reason || !a.disk.Suspected()
	a.doubt = reason
	err := a.resized()
	if suspectErr := a.disk.SetSuspect(reason); err == nil {
		err = suspectErr
	}
	if first || err != nil {
		s.log.Warn("image was changed behind the appliance; it is compared whole", "path", a.at(), "vm", a.vm.name, "reason", reason,
			"code", "changed-behind", "cause", err, "action", "open disks at the mount only: "+s.conf.Mount)
	}
	a.vm.resync.wake()
}

// resized tells the journal of a size that another process gave the image: what it
// grew by is changed, what it lost is gone. It may grow meanwhile, and the journal
// takes the size that it finds at the end of a change: so until nothing is left.
func (a *attached) resized() error {
	for known := a.disk.Size(); ; {
		st, err := a.file.Stat()
		if err != nil {
			return err
		}
		c := extent.Change{Kind: extent.Write, Off: known, Len: st.Size() - known}
		switch {
		case c.Len == 0:
			return nil
		case c.Len < 0:
			c = extent.Change{Kind: extent.Truncate, Off: st.Size()}
		}
		pass, err := a.disk.Begin(c)
		if err != nil {
			return fmt.Errorf("its new size: %w", err)
		}
		a.disk.End(c, pass, nil)
		known = st.Size()
	}
}

// appeared looks at a name that another process made, removed or renamed.
func (s *store) appeared(e watch.Event) {
	if !image.IsImageName(e.Path) {
		return
	}
	id, err := fs.Identify(s.full(e.Path))
	key := fileID{id.Dev, id.Ino}
	s.mu.Lock()
	s.removedLocked(e)
	known := s.mu.images[key]
	if err == nil && known != nil && known.at() != e.Path && !s.leadsTo(known.at(), key) {
		known.moved(e.Path, s.app.now())
		s.followLocked(known)
		// What it was written before the rename cannot be told by its old name any more.
		s.doubtLocked(known, "renamed beside the mount, by "+process(e.PID))
	}
	s.mu.Unlock()
	if err == nil && known == nil {
		s.log.Info("a name was made in the source beside the mount", "path", e.Path, "by", process(e.PID))
		s.notice(e.Path, id)
	}
}

// removedLocked ends the disk of a file that another process removed. One that only
// lost this name may have another, which is told next.
func (s *store) removedLocked(e watch.Event) {
	key, found := s.findLocked(e.Path)
	if !found || s.leadsTo(e.Path, key) {
		return
	}
	if a := s.mu.images[key]; a.removed() {
		s.detachLocked(key, "it was removed beside the mount, by "+process(e.PID))
	}
}

// lostTrack doubts every image: the kernel could not say what was done to which.
func (s *store) lostTrack() {
	s.mu.Lock()
	for key, a := range s.mu.images {
		if a.removed() {
			s.detachLocked(key, "it was removed beside the mount")
			continue
		}
		s.doubtLocked(a, "more was done beside the mount than the kernel could tell")
	}
	s.mu.Unlock()
	if err := s.scan(); err != nil {
		s.log.Warn("store cannot be looked through", "code", "survey-failed", "cause", err, "action", "look at the source directory")
	}
}

// writers looks whether the processes that had images open for writing still do: one
// that was killed, or sees the file under another name, is not told by name.
func (s *store) writers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.mu.images {
		if a.foreign.Load() && !watch.Writes(a.writerPID, s.full(a.at())) {
			s.doubtLocked(a, "written beside the mount, by "+a.writer)
			a.foreign.Store(false)
		}
	}
}

// doubtWriters leaves the images to the next start that others have open for writing.
func (s *store) doubtWriters() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.mu.images {
		if a.foreign.Load() {
			s.doubtLocked(a, "written beside the mount, by "+a.writer)
		}
	}
}

// foreignReasonsLocked names who has images of a VM open beside the mount.
func (s *store) foreignReasonsLocked(vm string) []control.Reason {
	var by []string
	for _, a := range s.mu.images {
		if a.vm.name == vm && a.foreign.Load() {
			by = append(by, fmt.Sprintf("%s by %s", a.at(), a.writer))
		}
	}
	if len(by) == 0 {
		return nil
	}
	slices.Sort(by)
	return []control.Reason{critical("foreign-writer", "stop that process; disks are opened at the mount only: "+s.conf.Mount,
		"points pause: open for writing beside the mount: %s", strings.Join(by, ", "))}
}
