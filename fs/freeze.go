package fs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Freeze lets no change of a file and of a name begin any more, and returns when those under way have ended. Whoever asks
// for one waits, for the process that takes the mount over: this one can only end after it. Reading goes on.
func (s *Server) Freeze() {
	s.store.gate.Lock()
	for _, n := range s.store.tree.all() {
		n.track.Lock()
	}
	s.unplug()
}

// unplug has every thread that reads /dev/fuse read nothing from now on. One that ends while it copies a request makes the
// kernel answer that with EIO; an orderly end must not do that to a guest. What is not answered comes again.
func (s *Server) unplug() {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		s.store.log.Warn("readers are not stopped before the end", "error", err)
		return
	}
	if err := unix.Dup3(p[0], s.num, unix.O_CLOEXEC); err != nil { // the other end stays open: who reads waits
		s.store.log.Warn("readers are not stopped before the end", "error", err)
		return
	}
	for range 3 { // a thread between two calls is met by a later one
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			if tid, err := strconv.Atoi(t.Name()); err == nil {
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // the runtime's own, which restarts the call: with the pipe
			}
		}
		time.Sleep(answerPause)
	}
}

// How long Answers looks for a moment in which no request waits to be read, or for one that is read.
const (
	answerTries = 100
	answerPause = 50 * time.Millisecond
)

// Errors of Answers.
var errNotRead = errors.New("requests are not read")

// Answers says whether requests are read and the source answers, without asking the mount: a thread that waits for an
// answer of its own mount cannot be killed, so the process could not die, and where somebody else has the connection it
// never ends.
func (s *Server) Answers() error {
	var st fuse.StatfsOut
	if code := s.store.StatFs(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, &st); !code.Ok() {
		return fmt.Errorf("source: %w", unix.Errno(code))
	}
	fd, err := s.store.openPath(s.store.root.fd, ".vhdrelay-alive-"+fmt.Sprint(time.Now().UnixNano()))
	if err == nil {
		unix.Close(fd)
	} else if err != unix.ENOENT {
		return fmt.Errorf("source: %w", err)
	}
	_, _ = s.store.tree.path(s.store.root) // nobody holds its lock for ever
	asked := s.store.tree.asked.Load()
	for range answerTries {
		fds := []unix.PollFd{{Fd: int32(s.device.Fd()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, 0); err == nil && fds[0].Revents&unix.POLLIN == 0 {
			return nil
		}
		time.Sleep(answerPause)
		if s.store.tree.asked.Load() != asked { // under a deep queue there is always one more that waits
			return nil
		}
	}
	return errNotRead
}
