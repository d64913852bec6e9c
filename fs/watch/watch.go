package watch

import (
	"context"
	"errors"
	"fmt"
	iofs "io/fs"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Kind says what another process did.
type Kind int

// The kinds of events.
const (
	Opened   Kind = iota // a file was opened, to read or to write: see Writes
	Written              // a file that was open for writing was closed
	Appeared             // a name was made, or renamed to
	Vanished             // a name was removed, or renamed from
	Lost                 // the queue overflowed: anything may have happened
)

// Event is one thing that another process did, or several of a kind that came one after the other.
type Event struct {
	Kind Kind
	Path string // relative to the source, slash separated; "" of Lost
	PID  int    // of the process; it may have ended
}

// mask is what is asked of the kernel for each directory. Changes of the bytes themselves are not: ours would come too,
// one by one, and whoever writes has to open first.
const mask = unix.FAN_OPEN | unix.FAN_CLOSE_WRITE | unix.FAN_CREATE | unix.FAN_DELETE | unix.FAN_MOVED_FROM | unix.FAN_MOVED_TO |
	unix.FAN_EVENT_ON_CHILD | unix.FAN_ONDIR

const (
	appearing = unix.FAN_CREATE | unix.FAN_MOVED_TO
	vanishing = unix.FAN_DELETE | unix.FAN_MOVED_FROM
)

// Watcher watches the directories of one source. Its methods are for one goroutine, Close excepted.
type Watcher struct {
	source string
	self   int // the process whose events are nobody's business
	most   int // events that wait here at most
	file   *os.File
	dirs   map[string]string // by file handle: the path relative to the source
}

// Open begins to watch: what happens after it returns is told by Run. It needs CAP_SYS_ADMIN, a kernel with fanotify, and
// a file system with file handles; errors are the system's.
func Open(source string) (*Watcher, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_REPORT_DFID_NAME, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("watch %s: fanotify: %w", source, err)
	}
	w := &Watcher{source: source, self: os.Getpid(), most: mostWaiting, file: os.NewFile(uintptr(fd), "fanotify"), dirs: map[string]string{}}
	if err := w.add(source, nil); err != nil {
		return nil, errors.Join(fmt.Errorf("watch %s: %w", source, err), w.Close())
	}
	return w, nil
}

// Close ends Run.
func (w *Watcher) Close() error { return w.file.Close() }

// Run calls tell for every event until ctx ends or the Watcher is closed, which is no error. tell may take its time: the
// kernel's queue is short and has our own events too, so somebody else empties it meanwhile.
func (w *Watcher) Run(ctx context.Context, tell func(Event)) error {
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	q := newQueue(w.self, w.most)
	done := make(chan error, 1)
	go func() {
		err := w.read(q)
		q.end()
		done <- err
	}()
	for {
		e, ok := q.next()
		if !ok {
			return <-done
		}
		w.take(e, tell)
	}
}

// read moves what the kernel says into the queue until the Watcher is closed.
func (w *Watcher) read(q *queue) error {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buffer)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return fmt.Errorf("watch %s: %w", w.source, err)
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var e rawEvent
			if e, rest, err = parse(rest); err != nil {
				return fmt.Errorf("watch %s: %w", w.source, err)
			}
			q.put(e)
		}
	}
}

// take turns what the kernel says into events.
func (w *Watcher) take(e rawEvent, tell func(Event)) {
	if e.mask&unix.FAN_Q_OVERFLOW != 0 {
		w.rewatch()
		tell(Event{Kind: Lost})
		return
	}
	dir, known := w.dirs[e.dir]
	if !known || e.name == "" || e.name == "." {
		return
	}
	at := path.Join(dir, e.name)
	foreign := e.pid != w.self
	if e.mask&unix.FAN_ONDIR != 0 {
		if e.mask&appearing != 0 {
			w.newDir(at, e.pid, foreign, tell)
		}
		return
	}
	if !foreign {
		return
	}
	for _, k := range kinds(e.mask) {
		tell(Event{Kind: k, Path: at, PID: e.pid})
	}
}

// kinds splits a mask: the kernel merges events of one name that nobody has read yet.
func kinds(mask uint64) []Kind {
	var all []Kind
	for _, k := range []struct {
		bits uint64
		kind Kind
	}{{vanishing, Vanished}, {appearing, Appeared}, {unix.FAN_OPEN, Opened}, {unix.FAN_CLOSE_WRITE, Written}} {
		if mask&k.bits != 0 {
			all = append(all, k.kind)
		}
	}
	return all
}

// newDir watches a directory that came, with everything in it. What is in one that somebody else made may have been
// written before it was watched.
func (w *Watcher) newDir(at string, pid int, foreign bool, tell func(Event)) {
	err := w.add(filepath.Join(w.source, filepath.FromSlash(at)), func(file string) {
		if foreign {
			tell(Event{Kind: Appeared, Path: file, PID: pid})
			tell(Event{Kind: Written, Path: file, PID: pid})
		}
	})
	if err != nil && !errors.Is(err, iofs.ErrNotExist) { // a part of the source that nobody watches
		tell(Event{Kind: Lost})
	}
}

// rewatch marks every directory there is.
func (w *Watcher) rewatch() {
	w.dirs = map[string]string{}
	_ = w.add(w.source, nil) // what cannot be watched is among what Lost warns of
}

// add marks a directory and those below it, and visits the files in them. What is on another file system is not served.
func (w *Watcher) add(dir string, visit func(file string)) error {
	var dev uint64
	return filepath.WalkDir(dir, func(full string, d iofs.DirEntry, err error) error {
		if errors.Is(err, iofs.ErrNotExist) && full != dir {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(w.source, full)
		if err != nil {
			return err
		}
		if !d.IsDir() {
			if visit != nil {
				visit(filepath.ToSlash(rel))
			}
			return nil
		}
		return w.mark(full, filepath.ToSlash(rel), full == dir, &dev)
	})
}

func (w *Watcher) mark(full, rel string, first bool, dev *uint64) error {
	var st unix.Stat_t
	err := unix.Lstat(full, &st)
	if first {
		*dev = st.Dev
	}
	if err == nil && st.Dev != *dev {
		return filepath.SkipDir
	}
	var handle unix.FileHandle
	if err == nil {
		handle, _, err = unix.NameToHandleAt(unix.AT_FDCWD, full, 0)
	}
	if err == nil {
		w.dirs[handleKey(handle.Type(), handle.Bytes())] = rel
		err = w.control(func(fd int) error {
			return unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_ONLYDIR|unix.FAN_MARK_DONT_FOLLOW, mask, unix.AT_FDCWD, full)
		})
	}
	if errors.Is(err, unix.ENOENT) && !first {
		return filepath.SkipDir
	}
	if err != nil {
		return &os.PathError{Op: "watch", Path: full, Err: err}
	}
	return nil
}

// control holds on to the descriptor, which Fd would make blocking: Close could not end a Read then.
func (w *Watcher) control(do func(fd int) error) error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return err
	}
	if controlErr := conn.Control(func(fd uintptr) { err = do(int(fd)) }); controlErr != nil {
		return controlErr
	}
	return err
}
