package fs

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// resent is the bit of a request's number by which the kernel says that it may have been answered before, by a process
// that is gone (FUSE_UNIQUE_RESEND, kernel 6.9).
const resent = 1 << 63

// Points of Options.Hook, by which a test ends the process in the gap they name.
const (
	PointBefore = "before a deed is done"
	PointDone   = "after it is done, before that is noted"
	PointNoted  = "after it is noted, before it is answered"
)

func (s *store) reached(point string, request uint64) {
	if s.hook != nil {
		s.hook(point, request)
	}
}

// deed is a request that would do something else when it is done a second time: an exclusive create would find what it
// made itself.
type deed struct {
	unique uint64
	// before are inode numbers that the names had, 0 for none: what did tells from them whether it is done. The second of a
	// deed that answers with an inode is of answered instead.
	before [2]uint64
	// did says whether it has happened, if the process died between it and the note of it; nil: it may be done again.
	did func(before [2]uint64) bool
	// do does it; or count does, which says in the note, as soon as that is so, what it has counted for the answer.
	do    func() error
	count func(*act) error
	// repeat makes the answer of one that is done, and gives back what is counted twice so: of the inode before[1], if it is
	// not 0. nil: there is nothing in the answer.
	repeat func(before [2]uint64) error
}

// answered notes the inode whose lookup, or open, the answer is going to count: the ledger has counted it. nil is no note.
func (a *act) answered(ino uint64) {
	if a != nil {
		atomic.StoreUint64(&a.before[1], ino)
	}
}

// run does it.
func (d deed) run(note *act) error {
	if d.count != nil {
		return d.count(note)
	}
	return d.do()
}

// once does a deed, or answers as it was answered, or would have been, by the process before this one.
func (s *store) once(d deed) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	i, again := s.ledger.begin(d.unique, d.before)
	if i < 0 {
		return d.run(nil)
	}
	defer s.ledger.busy[i].Store(false)
	a := &s.ledger.acts[i]
	done := again && atomic.LoadUint32(&a.state) == actDone
	if done && a.errno != 0 {
		return unix.Errno(a.errno)
	}
	if done || again && d.did != nil && d.did(a.before) {
		s.log.Info("a request that the process before this one had done is answered", "request", a.unique)
		err := d.answer(a.before)
		a.end(err)
		return err
	}
	s.reached(PointBefore, d.unique)
	err := d.run(a)
	s.reached(PointDone, d.unique)
	a.end(err)
	s.reached(PointNoted, d.unique)
	return err
}

func (d deed) answer(before [2]uint64) error {
	if d.repeat == nil {
		return nil
	}
	return d.repeat(before)
}

// begin notes that the request is about to be done. If an earlier process began it, the note says what that process's
// said, and again is true. -1: it cannot be noted. Whoever gets a note says in busy when nobody needs it any more.
func (l *ledger) begin(unique uint64, before [2]uint64) (i int, again bool) {
	if l == nil {
		return -1, false
	}
	note := act{unique: unique &^ resent, before: before, state: actBegun}
	if unique&resent != 0 {
		var had act
		if had, again = l.past[note.unique]; again {
			note = had
		}
	}
	for range maxActs {
		i := int(l.next.Add(1) % maxActs)
		if !l.busy[i].CompareAndSwap(false, true) {
			continue
		}
		a := &l.acts[i]
		atomic.StoreUint32(&a.state, 0)
		a.unique, a.before, a.errno = note.unique, note.before, note.errno
		atomic.StoreUint32(&a.state, note.state)
		return i, again
	}
	return -1, false
}

// notes are what is noted of requests, by their numbers. One that came again has two notes: the later one knows more.
func (l *ledger) notes() map[uint64]act {
	all := map[uint64]act{}
	for i := range l.acts {
		if a := l.acts[i]; a.state != 0 && all[a.unique].state != actDone {
			all[a.unique] = a
		}
	}
	return all
}

// end notes the outcome. It comes before the answer.
func (a *act) end(err error) {
	a.errno = 0
	if err != nil {
		a.errno = uint32(status(err))
	}
	atomic.StoreUint32(&a.state, actDone)
}

// inoAt is the inode number of a name, 0 if there is none.
func (s *store) inoAt(dir *node, name string) uint64 {
	var st unix.Stat_t
	if unix.Fstatat(dir.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return 0
	}
	return st.Ino
}
