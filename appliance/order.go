package appliance

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vhdrelay/vhdrelay/fs"
)

// order does what the mount tells of images one after the other, as it was told. It writes to the state directory, whose disk
// may hang: whoever looks an image up, renames or removes one waits no longer than for a write's activation (I9), and what
// was told is done when the disk answers again.
//
// A goroutine for each lost against nothing: these are rare, and one of them at most is at work.
type order struct {
	patience atomic.Int64 // a time.Duration; 0: wait for the end, as before the mount
	mu       struct {
		sync.Mutex // never held over I/O
		last       chan struct{}
	}
}

// do returns when the work is done, true, or when the patience ends, false: it goes on then.
func (o *order) do(work func()) bool {
	mine := make(chan struct{})
	o.mu.Lock()
	before := o.mu.last
	o.mu.last = mine
	o.mu.Unlock()
	go func() {
		defer close(mine)
		if before != nil {
			<-before
		}
		work()
	}()
	var end <-chan time.Time
	if patience := time.Duration(o.patience.Load()); patience > 0 {
		t := time.NewTimer(patience)
		defer t.Stop()
		end = t.C
	}
	select {
	case <-mine:
		return true
	case <-end:
		return false
	}
}

// answer is a tracker that is made while somebody waits, or who waited has gone.
type answer struct {
	mu struct {
		sync.Mutex // never held over I/O
		tracker    fs.Tracker
		made, left bool
	}
}

// give hands the tracker over; false: nobody waits any more.
func (a *answer) give(t fs.Tracker) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.tracker, a.mu.made = t, true
	return !a.mu.left
}

// take is the tracker, if it has been made; else nobody waits from now on.
func (a *answer) take() (fs.Tracker, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.left = !a.mu.made
	return a.mu.tracker, a.mu.made
}

// reasonServedBare is why an image is compared whole that nobody could track for a while.
const reasonServedBare = "it was served untracked while the disk of the state directory hung"

// Attach implements fs.Volumes. The guest comes first (I9): an image that cannot
// be tracked, or not in time, is marked on itself, durably, and served; only one that
// takes no mark is refused to writers.
func (s *store) Attach(path string, id fs.Identity) fs.Tracker {
	var a answer
	s.order.do(func() {
		if !a.give(s.attach(path, id)) {
			s.doubt(id)
			go s.catchUp(path, id) // it asks us again, after this
		}
	})
	if t, made := a.take(); made {
		return t
	}
	return s.serveBare(path, id)
}

// serveBare serves an image whose tracker is not made yet.
func (s *store) serveBare(path string, id fs.Identity) fs.Tracker {
	if err := s.markSuspect(path, fileID{id.Dev, id.Ino}); err != nil {
		err = fmt.Errorf("the disk of the state directory hangs, and the image takes no mark: %w", err)
		s.log.Error("an image can be neither tracked nor marked in time; writes to it fail", "path", path, "code", "image-refused", "cause", err, "action", "look at the disk of the state directory")
		return refusing{err}
	}
	s.log.Error("an image is served untracked until the disk of the state directory answers; it is compared then", "path", path, "code", "image-untracked",
		"action", "look at the disk of the state directory")
	return nil
}

// catchUp has the mount ask again for an image that it serves without its tracker, now that the state directory answers, and
// has the image compared: nobody was told of what was written meanwhile.
func (s *store) catchUp(path string, id fs.Identity) {
	s.mu.Lock()
	srv := s.srv
	s.mu.Unlock()
	if srv != nil {
		srv.Again(id)
	}
	s.doubt(id)
	s.log.Info("an image is tracked after all", "path", path)
}

// doubt has an image compared whole, if it is a disk.
func (s *store) doubt(id fs.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.mu.images[fileID{id.Dev, id.Ino}]; a != nil {
		s.doubtLocked(a, reasonServedBare)
	}
}

// Renamed implements fs.Volumes. The disk follows its file to another name of its VM,
// open or not, and goes on being replicated. Where it cannot, it stays the disk it was
// until its last close, and is then what its name says: another disk, or none.
func (s *store) Renamed(oldPath, newPath string, id fs.Identity) {
	s.order.do(func() { s.renamed(newPath, id) })
}

// Removed implements fs.Volumes.
func (s *store) Removed(path string, id fs.Identity) {
	s.order.do(func() { s.gone(id) })
}

// Closed implements fs.Volumes.
func (s *store) Closed(_ string, id fs.Identity) {
	s.order.do(func() { s.closed(id) })
}
